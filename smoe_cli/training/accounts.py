"""What a run keeps count of from step to step, and what it warns of: losses, experts, utterances that CTC skips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.loss import Losses
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.alarms import EXPLODING, QUIET, TOO_SHORT, explosion, other_rate, starvation, stop_at
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.shares import Shares
from smoe_cli.watch import Watcher


class Accounts:
    """Counts of all processes together.

    Args:
        shares: What every expert was given.
        settings: Of training.
        folder: Of the run, for the cuts of a batch that fails.
        ranks: The processes.

    Attributes:
        recent: Route -> recent mean of the loss of its batches, which other routes may be part of.
        rows: Route whose last batch exploded -> the step at which that began, and how many batches of it in a row.
        gradient_norm: Of the last step, before it was clipped; None: not known.
        ctc_skipped: Utterances so far.
        exploded: Steps so far.
    """

    def __init__(self, shares: Shares, settings: TrainSettings, folder: Path, ranks: Ranks) -> None:
        self.shares, self.settings, self.folder, self.ranks = shares, settings, folder, ranks
        self.recent: dict[str, float] = {}
        self.rows: dict[str, tuple[int, int]] = {}
        self.starving: set[str] = set()
        self.gradient_norm: float | None = None
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
            SmoeError: If the loss is no number or has exploded for good, or a process has gone.
        """
        own_loss = losses.total.item()
        plan_routes = self.shares.plan.routes
        own_frames, own_tokens = Counter[str](), Counter[str]()
        for batch in batches:
            of_utterances = batch.feature_lengths.tolist(), (batch.targets != IGNORE_ID).sum(1).tolist()
            for route, frames, tokens in zip(map(str, batch.routes), *of_utterances, strict=True):
                own_frames[route] += frames
                own_tokens[route] += tokens
        own_filling = [sum(some) for some in zip(*(batch.filling for batch in batches), strict=True)]
        own_counts = [*own_filling, *(own_frames[route] for route in plan_routes), *(own_tokens[route] for route in plan_routes)]
        loss, *counts = self.ranks.total(own_loss, losses.too_short, *own_counts)
        too_short, *of_all = map(int, counts)
        filling, of_routes = of_all[: len(own_filling)], of_all[len(own_filling) :]
        if not math.isfinite(loss):
            self.stop(step, batches, f"the loss became {loss}", math.isfinite(own_loss))
        if too_short and not self.ctc_skipped:
            watcher.log(TOO_SHORT)
        self.ctc_skipped += too_short
        served = batches[0].routes_served
        self._judge(step, batches, loss, watcher)
        frames_of = dict(zip(plan_routes, of_routes, strict=False))
        tokens_of = dict(zip(plan_routes, of_routes[len(plan_routes) :], strict=True))
        self.shares.note({route: frames_of[route] for route in served}, {route: tokens_of[route] for route in served}, filling)
        return sum(frames_of.values())

    def _judge(self, step: int, batches: Sequence[Batch], loss: float, watcher: Watcher) -> None:
        """Compare a loss with the recent ones of its routes; one that explodes is told, and too many in a row end training."""
        served = batches[0].routes_served
        usual = max(self.recent.get(route, math.inf) for route in served)
        exploded = step >= self.settings.warmup_steps and loss > EXPLODING * max(usual, QUIET)
        for route in served:
            mean = self.recent.get(route, loss)
            # At its full size one such loss would make those after it look usual.
            self.recent[route] = 0.9 * mean + 0.1 * (min(loss, 2 * max(mean, QUIET)) if exploded else loss)
            began, row = self.rows.pop(route, (step, 0))
            if exploded:
                self.rows[route] = began, row + 1
        if not exploded:
            return
        self.exploded += 1
        watcher.log(explosion(step, batches, loss, usual))
        began, row = max((self.rows[route] for route in served), key=lambda found: found[1])
        if row >= self.settings.explosions > 0:
            self.stop(step, batches, f"the loss has exploded: {row} times in a row, it was {loss:.3g}", True, began - 1)

    def refuse(self, step: int, batches: Sequence[Batch], losses: Losses, norm: float, own_norm: Callable[[], float | None]) -> NoReturn:
        """End before gradients that are no numbers reach the weights, on all processes.

        Args:
            batches, losses: Of this process.
            norm: Of the gradients of all.
            own_norm: Gives that of this process's own; None: nobody can tell.

        Raises:
            SmoeError: Naming the file with the batch's cuts.
        """
        own_loss = losses.total.item()
        (loss,) = self.ranks.total(own_loss)
        if not math.isfinite(loss):
            self.stop(step, batches, f"the loss became {loss}", math.isfinite(own_loss))
        # Those of all processes were added up: whose it was is found out without the others.
        own = own_norm()
        self.stop(step, batches, f"the gradients became {norm} under a loss of {loss:.3g}", own is None or math.isfinite(own))

    def stop(self, step: int, batches: Sequence[Batch], what: str, sound: bool, good: int | None = None) -> NoReturn:
        """End at a step, as `alarms.stop_at` does.

        Args:
            what: Is wrong.
            sound: Whether this process's own part of the step is all right.
            good: The last step after which the weights were good; None: this one.

        Raises:
            SmoeError: Naming the file with the batch's cuts.
        """
        cure = other_rate(self.settings, self.folder, step if good is None else good)
        stop_at(step, batches, what, sound, cure, self.folder, self.ranks)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a run that goes on counts and judges as one that never stopped."""
        counted = {"exploded": self.exploded, "ctc_skipped": self.ctc_skipped}
        alarms = {"recent": self.recent, "rows": self.rows, **counted, "starving": sorted(self.starving)}
        return {**self.shares.state(), "alarms": alarms, "gradient_norm": self.gradient_norm}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; what a checkpoint of an older version does not have begins anew."""
        self.shares.restore(state)
        alarms = state.get("alarms", {})
        self.recent = dict(alarms.get("recent", {}))
        self.rows = {route: (began, row) for route, (began, row) in alarms.get("rows", {}).items()}
        self.gradient_norm = state.get("gradient_norm")
        self.exploded, self.ctc_skipped = alarms.get("exploded", 0), alarms.get("ctc_skipped", 0)
        self.starving = set(alarms.get("starving", ()))

    def result(self) -> dict[str, Any]:
        """What training says of them when it ends."""
        experts = self.shares.experts()
        learned = {name: (share.updates, share.frames) for name, share in experts.items() if not share.frozen}
        return {
            "steps_by_route": self.shares.by_route(),
            "experts": experts,
            "starved": sorted(self.shares.judged(learned)),
            "ctc_skipped": self.ctc_skipped,
        }

    def review(self, watcher: Watcher) -> dict[str, Any]:
        """What a validation writes down; says which experts have begun to starve, once their stack has had enough updates to tell."""
        recent = self.shares.recent()
        found = self.shares.judged(recent)
        for name in sorted(found.keys() - self.starving):
            watcher.log(starvation(name, self.shares.recent_steps(), found[name]))
        self.starving = set(found) | {name for name in self.starving if not self.shares.enough(recent, name)}
        if all(self.shares.enough(recent, name) for name in recent):
            self.shares.review()
        return {
            "filled": self.shares.filled,
            "ctc_skipped": self.ctc_skipped,
            "exploded": self.exploded,
            "experts": {name: share.model_dump() for name, share in self.shares.experts().items()},
            "starving": sorted(self.starving),
        }
