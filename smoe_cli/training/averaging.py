"""Averages of weights: a moving one over the steps, or one over checkpoints; and when the loss has stopped falling."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from smoe_cli import checkpoint
from smoe_cli.errors import CheckpointError
from smoe_cli.training.guard import Stop
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.shard import is_divided, like, own
from smoe_cli.watch import Watcher

AVERAGE = "average"
"""Key of a weight's moving average among the training tensors of a checkpoint, beside the optimiser's."""


class MovingAverage:
    """An exponential moving average of every weight that learns.

    The weights of an expert that a step does not use have an average that stands still too. The decay grows from 2/11 with the number
    of updates that the weight itself has had, so that the first weights, which nothing taught yet, are soon forgotten, also by experts
    that come late.

    Source: arXiv:1706.03762 averages checkpoints to the same end; the growing decay is that of TensorFlow's `num_updates`.

    Args:
        model: Whose weights are averaged.
        decay: Share of the average that one step leaves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        self.updates = dict.fromkeys(self.averages, 0)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step, of which those with a gradient were moved."""
        groups: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                self.updates[name] += 1
                decay = min(self.decay, (1 + self.updates[name]) / (10 + self.updates[name]))
                averages, weights = groups[decay]
                averages.append(own(self.averages[name]))
                weights.append(own(weight))
        for decay, (averages, weights) in groups.items():
            get_ema_multi_avg_fn(decay)(averages, weights, 0)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {f"{name}|{AVERAGE}": value for name, value in self.averages.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` and the optimiser, which counts the updates of each weight, left in a checkpoint."""
        for name, average in self.averages.items():
            own(average).copy_(own(like(average, tensors[f"{name}|{AVERAGE}"])))
            self.updates[name] = int(tensors.get(f"{name}|step", torch.zeros(())))


@contextmanager
def in_place_of(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model have other weights for a while; its own come back untouched."""
    parameters = {name: weight for name, weight in model.named_parameters() if name in weights}
    if is_divided(model):
        # FSDP gathers from memory of its own.
        kept = {name: own(weight).clone() for name, weight in parameters.items()}
        try:
            for name, weight in parameters.items():
                own(weight).copy_(own(weights[name]))
            yield
        finally:
            for name, data in kept.items():
                own(parameters[name]).copy_(data)
        return
    kept = {name: weight.data for name, weight in parameters.items()}
    try:
        for name in kept:
            parameters[name].data = weights[name]
        yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


def mean_weights(
    folders: Sequence[Path], model: nn.Module, ranks: Ranks, stop: Stop, watcher: Watcher
) -> tuple[dict[str, Tensor], list[Path]]:
    """The mean of every weight over checkpoints, where those of a model are and in shards if they are.

    Args:
        ranks: The processes that all compute it; what one of them cannot read, none takes.
        stop: Asked before every checkpoint.
        watcher: Told of a checkpoint that cannot be read.

    Returns:
        The mean, and the checkpoints that it is of, which are all that can be read.

    Raises:
        Stopped: If a process was asked to stop.
        SmoeError: If a process has gone.
    """
    sums: dict[str, Tensor] = {}
    taken = []
    for folder in folders:
        stop.heed()
        found, wrong = None, ""
        try:
            found = checkpoint.load(folder)
        except CheckpointError as error:
            wrong = error.message
        wrongs = [said for said in ranks.collect(wrong) if said]
        if wrongs or found is None:
            watcher.log(f"warning: left out of the average: {wrongs[0]}")
            continue
        taken.append(folder)
        for name, weight in found.model.named_parameters():
            # A sum of equal float32 values is exact in float64: what never moved comes out as it was.
            sums[name] = sums.get(name, torch.zeros_like(weight, dtype=torch.float64)) + weight.detach()
    weights = dict(model.named_parameters())
    return {name: like(weights[name], (total / len(taken)).float()) for name, total in sums.items()}, taken


def chosen_steps(rule: str | None, losses: Mapping[int, float]) -> list[int]:
    """The steps whose checkpoints `train.average` averages, in their order.

    Args:
        rule: `last K` or `best K`; None: there is no average.
        losses: Step -> mean validation loss.
    """
    if rule is None:
        return []
    which, _, count = rule.partition(" ")
    ranked = sorted(losses, key=lambda step: (_comparable(losses[step]), step)) if which == "best" else sorted(losses, reverse=True)
    return sorted(ranked[: int(count)])


def validations_without_gain(losses: Mapping[int, float]) -> int:
    """How many validations there have been since the one with the lowest mean loss; 0: the last one is it."""
    steps = sorted(losses)
    best = min(steps, key=lambda step: (_comparable(losses[step]), step), default=0)
    return sum(step > best for step in steps)


def _comparable(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
