"""The processes of a run: who they are, and all that they say to each other. A single process talks to nobody.

Every process has the whole model, unless it is in shards (`shard.py`): then torch sends weights and gradients. A step takes consecutive
batches of one route, dealt out to the processes; each scales its loss by the tokens of all, and the gradients are added up. So a step of
N processes is that of one process with `accumulate: N`.

Torch's DistributedDataParallel is not used. It averages what is to be added; it wants every weight that is used to be used inside one
call of the model, where the loss in chunks uses the output layer after it; and to find idle experts it walks the graph at every step.
Gradients added up in a few large pieces after the backward pass leave those of idle experts None, which is what keeps AdamW from moving
them. What that costs: the sums do not overlap with the backward pass.

Small things (counts, flags, texts) go over gloo, on GPUs too: there a process that has gone is noticed at once, where NCCL waits.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smoe_cli.errors import ConfigError, SmoeError
from smoe_cli.training.shard import whole

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: the first one may save, take samples or average meanwhile."""
BUCKET_BYTES = 64 * 2**20
"""Gradients are added up in pieces of about this size: large enough that the number of messages does not matter."""
NETWORK = re.compile(r"gloo|NCCL|Connection (reset|closed|refused)")
"""In the message of torch's error when another process does not answer."""
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """This process among those of the run. Without arguments: the only one, and every method does nothing.

    Args:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on this machine.
        local_size: How many there are on this machine.
        gradients: The group that adds up gradients; None: the one for all else.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, gradients: dist.ProcessGroup | None = None
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size, self._gradients = rank, size, local_rank, local_size, gradients

    @property
    def gradients(self) -> dist.ProcessGroup:
        """The group that adds up gradients, of a process that is not alone."""
        # Not kept where it is the one for all: nothing may hold that when the process leaves.
        group = self._gradients or dist.group.WORLD
        assert group is not None
        return group

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of every process, the same on all of them.

        Raises:
            SmoeError: If a process has gone.
        """
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._together():
            dist.all_gather(found, own)
        return [of_one.tolist() for of_one in found]

    def total(self, *numbers: float) -> list[float]:
        """Each number added up over the processes.

        Raises:
            SmoeError: If a process has gone.
        """
        return [sum(values) for values in zip(*self.gather(*numbers), strict=True)]

    def collect(self, value: T) -> list[T]:
        """The values of every process.

        Raises:
            SmoeError: If a process has gone.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all.

        Raises:
            SmoeError: If a process has gone.
        """
        found: list[Any] = [make() if self.leads else None]
        if self.size > 1:
            with self._together():
                dist.broadcast_object_list(found, src=0)
        return found[0]

    def same(self, what: str, make: Callable[[], object], hint: str) -> None:
        """Refuse to go on where processes differ; a single process makes no value.

        Args:
            what: Name of the value.
            make: Gives it.
            hint: What to do about a difference.

        Raises:
            SmoeError: Naming the first process that differs, or if one has gone.
        """
        if self.size == 1:
            return
        found = self.collect(make())
        for rank, value in enumerate(found):
            if value != found[0]:
                raise SmoeError(f"process {rank} of {self.size} has {what} other than process 0", hint)

    def wait(self) -> None:
        """Go on when every process has come here.

        Raises:
            SmoeError: If a process has gone.
        """
        self.gather(0.0)

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes; a weight that has none on any of them keeps none.

        Raises:
            SmoeError: If a process has gone.
        """
        if self.size == 1:
            return
        there = bytes(weight.grad is not None for weight in weights)
        if len(set(map(tuple, self.gather(zlib.crc32(there))))) > 1:
            # CTC's head, say, where the utterances of one process have no transcripts: there its gradient is 0.
            anywhere = [any(flags) for flags in zip(*self.collect(there), strict=True)]
            for weight, used in zip(weights, anywhere, strict=True):
                if used and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
        pieces = [(piece, torch.cat([gradient.flatten() for gradient in piece])) for piece in _pieces(weights)]
        with self._together():
            sent = [dist.all_reduce(flat, group=self._gradients, async_op=True) for _, flat in pieces]
            for work, (piece, flat) in zip(sent, pieces, strict=True):
                if work is not None:
                    work.wait()
                for gradient, summed in zip(piece, flat.split([gradient.numel() for gradient in piece]), strict=True):
                    gradient.copy_(summed.view_as(gradient))

    def device(self) -> torch.device:
        """What this process computes on.

        Raises:
            ConfigError: If there are more processes on this machine than GPUs.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.size == 1:
            return torch.device("cuda")
        _check_gpus(self.local_size)
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Within it, an error of the network is told as that of a process that has gone, also where torch itself sends weights.

        Raises:
            SmoeError: If a process has gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or NETWORK.search(str(error))):
                raise
            with self._together():
                raise

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise SmoeError(
                f"process {self.rank} of {self.size} lost another one, which has ended or did not answer within "
                f"{PATIENCE.total_seconds() / 60:.0f} min: {str(error).splitlines()[0]}",
                "look for the message of the process that ended first; the same command goes on from the last checkpoint",
                own=self.rank == 1,  # the first one may be what is lost
            ) from error


def _pieces(weights: Sequence[nn.Parameter]) -> list[list[Tensor]]:
    """The gradients that there are, in their order, in groups of one type and a bounded size."""
    pieces: list[list[Tensor]] = []
    held = 0
    for gradient in (weight.grad for weight in weights if weight.grad is not None):
        if not pieces or held + gradient.nbytes > BUCKET_BYTES or pieces[-1][0].dtype != gradient.dtype:
            pieces.append([])
            held = 0
        pieces[-1].append(gradient)
        held += gradient.nbytes
    return pieces


def weights_digest(model: nn.Module) -> int:
    """A number that is another one where weights are others."""
    sums = torch.stack([whole(weight.detach().sum(dtype=torch.float64)) for weight in model.parameters()])
    return zlib.crc32(sums.cpu().numpy().tobytes())


@cache
def join() -> Ranks:
    """Meet the other processes, if a launcher such as torchrun has started several.

    Raises:
        ConfigError: If the launcher leaves out what is needed to find them, or gives this machine more processes than GPUs.
        SmoeError: If they cannot be found.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        return Ranks()
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, and the environment lacks {', '.join(missing)}", "start the processes with torchrun, or set these too"
        )
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if torch.cuda.is_available():
        _check_gpus(local_size)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Its functions take the group that there is when it is loaded for their default, and torch loads it sooner or later: loaded
    # after the group was made, it would hold the group for ever.
    import_module("torch.distributed.nn.functional")

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
            atexit.register(_leave)
        gradients = dist.new_group(backend="nccl", timeout=PATIENCE) if torch.cuda.is_available() else None
    except RuntimeError as error:
        raise SmoeError(
            f"process {os.environ['RANK']} of {size} cannot meet the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{str(error).splitlines()[0]}",
            "check that all were started, that the address can be reached from every machine, and GLOO_SOCKET_IFNAME",
        ) from error
    return Ranks(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), local_size, gradients)


def _check_gpus(processes: int) -> None:
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"{processes} processes on this machine, and {torch.cuda.device_count()} GPUs",
            "start one process for each GPU, or none may be seen: CUDA_VISIBLE_DEVICES=",
        )


def _leave() -> None:
    """End the group, and with the last reference to it gloo's threads, while there is an interpreter.

    A thread of gloo's gives back the tensors of the last message after that has come. If it needs the interpreter for that when Python has
    begun to end, it ends the whole process: "terminate called without an active exception", signal 6.
    """
    gc.collect()  # what FSDP holds it with is in cycles
    if dist.is_initialized():
        dist.destroy_process_group()
