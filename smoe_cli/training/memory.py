"""How large a batch this machine can take, and what to do with one that was too large after all."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut
from torch import Tensor

from smoe_cli.batching import IGNORE_ID, Batch, Collator
from smoe_cli.cut_table import letters_of
from smoe_cli.errors import ConfigError, SmoeError
from smoe_cli.tags import Route
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.alarms import stop_without_memory
from smoe_cli.watch import Watcher

ALLOCATION = re.compile(r"DefaultCPUAllocator|not enough memory|out of memory|could not create a primitive(?! descriptor)")
"""In the message of torch's error when a CPU has no memory left, the last one where it is oneDNN that has none; on GPUs the error has a
class of its own."""
PROCESS, MACHINE, CGROUPS = Path("/proc/self"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_2 = ("memory.max", "memory.current", "inactive_file")
"""Control groups in the kernel's two versions: the files of limit and use, and the line of `memory.stat` for what of it are copies of files
that the kernel drops when memory is asked for. Reading a corpus fills a container with these."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or bool(ALLOCATION.search(str(error)))


def halves(batch: Batch) -> tuple[Batch, ...]:
    """A batch as two, each only as long as its own utterances; one of a single utterance stays as it is."""
    middle = len(batch.cuts) // 2
    return (_part(batch, slice(0, middle)), _part(batch, slice(middle, None))) if middle else (batch,)


def in_halves(batches: Sequence[Batch], when: str, device: torch.device) -> tuple[Batch, ...]:
    """The same utterances in smaller batches, and what memory they need given back.

    Not to be asked while the error is handled: its traceback holds all that was computed.

    Args:
        when: As in `at step 3`.

    Raises:
        SmoeError: If each batch is of one utterance.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    parts = tuple(half for batch in batches for half in halves(batch))
    if len(parts) == len(batches):
        stop_without_memory(when, batches)
    return parts


@contextmanager
def enough_for_state(step: int) -> Iterator[None]:
    """The optimiser's step: when it runs out of memory, what a batch takes is free again, and smaller batches are no help.

    Raises:
        SmoeError: If it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SmoeError(
            f"memory does not suffice for the optimiser's state at step {step}: two numbers for each weight that learns",
            "take a smaller model, set `train.freeze`, or leave each of several processes a part of it: `train.shard`",
        ) from error


def _part(batch: Batch, rows: slice) -> Batch:
    def cut(tensor: Tensor, length: int) -> Tensor:
        return tensor[rows, :length].contiguous()

    places = torch.arange(1, batch.targets.shape[1] + 1, device=batch.targets.device)
    tokens = int(((batch.targets[rows] != IGNORE_ID) * places).max())
    return replace(
        batch,
        features=cut(batch.features, int(batch.feature_lengths[rows].max())),
        tokens_in=cut(batch.tokens_in, tokens),
        targets=cut(batch.targets, tokens),
        ctc_targets=cut(batch.ctc_targets, int(batch.ctc_lengths[rows].max())),
        **{name: getattr(batch, name)[rows] for name in ("feature_lengths", "ctc_lengths", "encoder_expert", "decoder_expert")},
        routes=batch.routes[rows],
        cuts=batch.cuts[rows],
    )


class Memory:
    """Bytes that this process uses on a device, and could use.

    Args:
        sharers: Processes that divide what is free among them, where it is the machine's.

    Raises:
        ConfigError: If the system does not tell.
    """

    def __init__(self, device: torch.device, sharers: int = 1) -> None:
        self.device, self.sharers = device, sharers
        if device.type == "cpu":
            self.reset()

    def reset(self) -> None:
        """Let the peak begin anew at what is used now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            (PROCESS / "clear_refs").write_text("5")
        except OSError as error:
            raise ConfigError(
                f"this system does not tell how much memory a step takes: {error}", "set `train.batch_s` to a number"
            ) from error

    def peak(self) -> int:
        """Most bytes in use since the last reset."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _kilobytes(PROCESS / "status", "VmHWM")

    def used(self) -> int:
        """Bytes in use now."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _kilobytes(PROCESS / "status", "VmRSS")

    def free(self) -> int:
        """Bytes that could be had besides: of the machine, or of the group of processes that has a limit."""
        if self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + cached
        return min([_kilobytes(MACHINE, "MemAvailable"), *_left_in_groups()]) // self.sharers


def _kilobytes(path: Path, name: str) -> int:
    """A value of a file of the kernel, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise ConfigError(f"`{path}` does not tell `{name}`, so how much memory there is is unknown", "set `train.batch_s` to a number")
    return int(found[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """Bytes left in each group of processes that has a limit, of those that this one is in: a container's, a job's of a cluster."""
    membership = PROCESS / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CGROUPS / "memory", CGROUP_1) if controllers else (CGROUPS, CGROUP_2)
        group = root / path.lstrip("/")
        # A container may see the path that its group has outside, and the group itself at the root.
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            limit, now = (folder / name for name in names[:2])
            if limit.exists() and now.exists() and (text := limit.read_text().strip()) != "max":
                stat = folder / "memory.stat"
                dropped = re.search(rf"^{names[2]} (\d+)", stat.read_text() if stat.exists() else "", re.MULTILINE)
                yield int(text) - int(now.read_text()) + (int(dropped[1]) if dropped else 0)


def _length(cut: MonoCut) -> tuple[float, int]:
    """Seconds, and of equally long cuts letters."""
    return cut.duration, letters_of(cut)


def longest_batch(cuts: Sequence[MonoCut], utterances: int) -> list[MonoCut]:
    """A batch of the longest cuts, beginning again where there are too few."""
    return list(islice(cycle(sorted(cuts, key=_length, reverse=True)[:utterances]), utterances))


def most_utterances(measure: Callable[[int], tuple[int, int] | None], bound: int, most: int) -> int:
    """How many utterances a batch can have.

    Activations grow evenly with their number. So nothing is tried that would pass the bound by what the tries before it say.

    Args:
        measure: Peak bytes of a step with so many, and those in use after it, gradients included; None: there was not enough memory.
        bound: Peak bytes that are allowed.
        most: Never try more.

    Returns:
        The number; 0 if not even one fits.
    """
    count, fits = 1, 0
    last_peak = 0
    while True:
        found = measure(count)
        if found is None or found[0] > bound:
            return fits
        peak, held = found
        each = max(1.0, (peak - last_peak) / (count - fits) if fits else peak - held)
        fits, last_peak = count, peak
        count = min(2 * fits, fits + int((bound - peak) / each), most)
        if count <= fits:
            return fits


def largest_batch_s(
    groups: Mapping[Route, CutSet],
    collator: Collator,
    gradients: Callable[[Batch], object],
    forget: Callable[[], None],
    state_bytes: int,
    memory: Memory,
    settings: TrainSettings,
    stop: threading.Event,
    watcher: Watcher,
) -> float:
    """Seconds of audio in the largest batch that memory takes, found by steps on more and more of the longest cuts.

    Args:
        groups: Route -> its training cuts.
        collator: Makes batches of them.
        gradients: Computes those of a batch.
        forget: Drops them.
        state_bytes: What the optimiser will need besides.
        memory: Of the device.
        settings: `max_utterances` and `memory_share` are bounds.
        stop: Raised when nothing more is to be tried; what comes back then is no answer.
        watcher: Told of every try, and of what ended them.

    Raises:
        ConfigError: If not even one utterance fits, or fewer than the turns that share a batch.
    """
    # Tasks often share their audio: then the one that writes the most takes the most.
    cuts = list(max(groups.values(), key=lambda some: max(map(_length, some))))
    longest_s = max(cut.duration for cut in cuts)
    bound = memory.used() + int(settings.memory_share * (memory.free() - state_bytes))
    peaks: dict[int, float] = {}

    def measure(utterances: int) -> tuple[int, int] | None:
        if stop.is_set():
            return None
        batch = collator(longest_batch(cuts, utterances))
        memory.reset()
        try:
            gradients(batch)
            found = memory.peak(), memory.used()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            forget()
        peaks[utterances] = found[0] / bound
        watcher.log(f"a batch of {utterances} x {longest_s:.1f} s: {found[0] / 2**20:,.0f} MiB of {bound / 2**20:,.0f}")
        return found

    utterances = most_utterances(measure, bound, settings.max_utterances)
    if stop.is_set():
        return 0.0
    if not utterances:
        raise ConfigError(
            f"memory does not suffice for one utterance of {longest_s:.1f} s",
            "raise `train.memory_share`, set `train.loss_chunk` and `train.activation_checkpointing`, or take a smaller model",
        )
    if utterances < settings.turns_per_batch:
        raise ConfigError(
            f"memory takes {utterances} utterances of {longest_s:.1f} s, fewer than the turns that share a batch: "
            f"`train.turns_per_batch` is {settings.turns_per_batch}",
            f"set it to {utterances} or less, raise `train.memory_share`, or set `train.loss_chunk` and `train.activation_checkpointing`",
        )
    taken = f"{utterances} utterances of {longest_s:.1f} s, the longest cut"
    if utterances == settings.max_utterances:
        taken += f": as many as `train.max_utterances` allows; they take {peaks[utterances]:.0%} of what `train.memory_share` does"
    else:
        taken += ": as many as the memory takes of which `train.memory_share` is used"
    watcher.log(taken)
    return utterances * longest_s
