"""Timing that a busy machine disturbs little: the sides of a comparison take turns, piece by piece, many times in each round.

What a machine is doing besides lasts for seconds, and a training step at paper scale takes ten or more: steps one after the other meet
other times. Here each side runs in a thread of its own, of which only one runs at a time, and hands on after every piece of its work, such
as a layer's forward or backward pass: both sides then meet the same good and bad times.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn

from smoe_cli.training.allocator import mallopt

RESAMPLES = 2000
M_ARENA_MAX = -8
"""From malloc.h. Threads otherwise have memory of their own, which glibc gives back to the system after every step."""
_here = threading.local()


@dataclass
class Times:
    """Seconds of one side, by round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)


class Turn(threading.Thread):
    """Work that runs only when it is its turn, and the seconds that it took.

    Attributes:
        cpu, wall: Seconds so far; CPU seconds are those of all threads of the process, of which no other works meanwhile.
        phases: Name -> CPU seconds.
    """

    def __init__(self, work: Callable[[Turn], object]) -> None:
        super().__init__(daemon=True)
        self.cpu = self.wall = 0.0
        self.phases: dict[str, float] = {}
        self._work, self._error = work, list[BaseException]()
        self._mine, self._theirs, self._over = threading.Semaphore(0), threading.Semaphore(0), False
        self.start()

    def go_on(self) -> bool:
        """Let it do its next piece; whether there is more to do.

        Raises:
            BaseException: Whatever the work raised.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        self._mine.release()
        self._theirs.acquire()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        if self._error:
            raise self._error[0]
        return not self._over

    def run(self) -> None:
        _here.turn = self
        # OpenMP's number of threads is each thread's own.
        torch.set_num_threads(torch.get_num_threads())
        self._mine.acquire()
        try:
            self._work(self)
        except BaseException as error:  # Raised again where turns are given.
            self._error.append(error)
        self._over = True
        self._theirs.release()

    def hand_on(self) -> None:
        """Let the others work; returns at the next turn."""
        self._theirs.release()
        self._mine.acquire()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the work that is counted by itself; begins and ends with a handing on, so that it is made of whole pieces."""
        self.hand_on()
        before = self.cpu
        yield
        self.hand_on()
        self.phases[name] = self.cpu - before


def hand_on() -> None:
    """Let the others work, if this thread takes turns with any."""
    turn = getattr(_here, "turn", None)
    if turn is not None:
        turn.hand_on()


def hand_on_after(layers: Sequence[nn.Module]) -> None:
    """Make each layer's forward pass a piece, and its backward pass; a layer returns a tensor, or a tuple that begins with one."""

    def piece(_: nn.Module, __: Any, out: Any) -> None:
        state: Tensor = out[0] if isinstance(out, tuple) else out
        if state.requires_grad:
            # Reached when the backward pass has done all that came after the layer.
            state.register_hook(lambda _: hand_on())
        hand_on()

    for layer in layers:
        layer.register_forward_hook(piece)


def one_arena() -> None:
    """Let all threads share one heap, of which glibc keeps what is freed if it was told to; elsewhere than on glibc nothing changes."""
    mallopt(M_ARENA_MAX, 1)


def use_memory(gigabytes: float) -> None:
    """Use so much memory once and leave it to the heap: a page's first use takes time, here and there half a second for each gigabyte.

    Without it, whichever side first needs more than was ever in use pays for all.
    """
    torch.ones(int(gigabytes * 2**30) // 4)


def take_turns(sides: Mapping[str, Callable[[int, Turn], object]], rounds: int, say: Callable[[str], None]) -> dict[str, Times]:
    """Time every side once in each round, piece by piece in turn, in an order that changes; one round before them warms up.

    Args:
        sides: Name -> work, given the round's number (-1 for the first one) and its turn.
    """
    times = {name: Times() for name in sides}
    order, shuffle = list(sides), random.Random(0)
    for number in range(-1, rounds):
        turns = {name: Turn(partial(work, number)) for name, work in sides.items()}
        running = set(turns)
        while running:
            shuffle.shuffle(order)
            running -= {name for name in order if name in running and not turns[name].go_on()}
        if number >= 0:
            for name, turn in turns.items():
                times[name].cpu.append(turn.cpu)
                times[name].wall.append(turn.wall)
                times[name].phases.append(turn.phases)
            say("  ".join(f"{name} {turn.cpu:.3f}" for name, turn in turns.items()))
    return times


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the geometric mean, by a bootstrap over rounds: how much rounds differ, not how much runs do."""
    generator = random.Random(0)
    means = sorted(geometric_mean(generator.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
