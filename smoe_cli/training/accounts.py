"""What a run keeps count of from step to step, and what it warns of: losses, experts, utterances that CTC skips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.loss import Losses
from smoe_cli.training.alarms import EXPLODING, TOO_SHORT, explosion, starvation, stop_at
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.shares import Shares
from smoe_cli.watch import Watcher


class Accounts:
    """Counts of all processes together.

    Args:
        shares: What every expert was given.
        warmup_steps: Before so many, a loss may jump.
        folder: Of the run, for the cuts of a batch that fails.
        ranks: The processes.

    Attributes:
        recent: Route -> recent mean of the loss of its batches, which other routes may be part of.
        ctc_skipped: Utterances so far.
        exploded: Steps so far.
    """

    def __init__(self, shares: Shares, warmup_steps: int, folder: Path, ranks: Ranks) -> None:
        self.shares, self.warmup_steps, self.folder, self.ranks = shares, warmup_steps, folder, ranks
        self.recent: dict[str, float] = {}
        self.starving: set[str] = set()
        self.ctc_skipped = self.exploded = 0

    def note(self, step: int, batches: Sequence[Batch], losses: Losses, watcher: Watcher) -> int:
        """Account for a step.

        Args:
            batches: Of this process.
            losses: Of these.
            watcher: Told of what is wrong.

        Returns:
            Feature frames of all processes.

        Raises:
            SmoeError: If the loss is no number, or a process has gone.
        """
        own_loss = losses.total.item()
        plan_routes = self.shares.plan.routes
        own_frames, own_tokens = Counter[str](), Counter[str]()
        for batch in batches:
            of_utterances = batch.feature_lengths.tolist(), (batch.targets != IGNORE_ID).sum(1).tolist()
            for route, frames, tokens in zip(map(str, batch.routes), *of_utterances, strict=True):
                own_frames[route] += frames
                own_tokens[route] += tokens
        own_counts = [*(own_frames[route] for route in plan_routes), *(own_tokens[route] for route in plan_routes)]
        loss, *counts = self.ranks.total(own_loss, losses.too_short, *own_counts)
        too_short, *of_routes = map(int, counts)
        if not math.isfinite(loss):
            stop_at(step, batches, loss, own_loss, self.folder, self.ranks)
        if too_short and not self.ctc_skipped:
            watcher.log(TOO_SHORT)
        self.ctc_skipped += too_short
        served = batches[0].routes_served
        usual = max(self.recent.get(route, math.inf) for route in served)
        if step >= self.warmup_steps and loss > EXPLODING * usual:
            self.exploded += 1
            watcher.log(explosion(step, batches, loss, usual))
        for route in served:
            self.recent[route] = 0.9 * self.recent.get(route, loss) + 0.1 * loss
        frames_of = dict(zip(plan_routes, of_routes, strict=False))
        tokens_of = dict(zip(plan_routes, of_routes[len(plan_routes) :], strict=True))
        self.shares.note({route: frames_of[route] for route in served}, {route: tokens_of[route] for route in served})
        return sum(frames_of.values())

    def result(self) -> dict[str, Any]:
        """What training says of them when it ends."""
        experts = self.shares.experts()
        return {
            "steps_by_route": self.shares.by_route(),
            "experts": experts,
            "starved": sorted(self.shares.starving({name: share.updates for name, share in experts.items()})),
            "ctc_skipped": self.ctc_skipped,
        }

    def review(self, watcher: Watcher) -> dict[str, Any]:
        """What a validation writes down; says which experts have begun to starve since the last one."""
        recent = self.shares.recent()
        found = self.shares.starving(recent)
        for name in found.keys() - self.starving:
            watcher.log(starvation(name, recent[name], found[name]))
        self.starving = set(found)
        self.shares.review()
        return {
            "ctc_skipped": self.ctc_skipped,
            "exploded": self.exploded,
            "experts": {name: share.model_dump() for name, share in self.shares.experts().items()},
            "starving": sorted(found),
        }
