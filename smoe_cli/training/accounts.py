"""What a run keeps count of from step to step, and what it warns of: losses, experts, utterances that CTC skips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoe_cli.batching import Batch
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
        recent: Route -> recent mean of its loss.
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
        route, own_loss = str(batches[0].routes[0]), losses.total.item()
        own_frames = sum(int(batch.feature_lengths.sum()) for batch in batches)
        loss, *counts = self.ranks.total(own_loss, losses.tokens, losses.too_short, own_frames)
        tokens, too_short, frames = map(int, counts)
        if not math.isfinite(loss):
            stop_at(step, batches, loss, own_loss, self.folder, self.ranks)
        if too_short and not self.ctc_skipped:
            watcher.log(TOO_SHORT)
        self.ctc_skipped += too_short
        if step >= self.warmup_steps and loss > EXPLODING * self.recent.get(route, math.inf):
            self.exploded += 1
            watcher.log(explosion(step, batches, loss, self.recent[route]))
        self.recent[route] = 0.9 * self.recent.get(route, loss) + 0.1 * loss
        self.shares.note(route, frames, tokens)
        return frames

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
