"""The checkpoints of one training folder: saved, found again, refused if they are of another run, and removed when old."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet

from smoe_cli import checkpoint, upcycling
from smoe_cli.checkpoint import Position, System
from smoe_cli.config import CHECKPOINTS, FEATURE_HANDLING, FINAL, Config, differences
from smoe_cli.cut_table import digest_of
from smoe_cli.errors import CheckpointError
from smoe_cli.records import bring_back
from smoe_cli.tags import Route
from smoe_cli.train_settings import LENGTH, MEANS, WATCHING
from smoe_cli.training.measured import MEASURED
from smoe_cli.training.ranks import Ranks
from smoe_cli.watch import Watcher

KEPT_CHECKPOINTS = 2
START_ANEW = "train anew with `smoe train --resume never` (or `smoe run --force`), or set another exp_dir"
FREE = {"train": WATCHING | LENGTH | MEANS, "features": FEATURE_HANDLING}
"""Settings that a continued run may have otherwise: they change nothing of the steps that are done, nor of what a step computes, but for
the last digits that some of `MEANS` may change."""
DECISIVE = {"validate_every", "validation_utterances"}
"""Settings that are not free where validations decide when training ends, or what becomes the model."""
ORIGIN = {"init_from", "init_noise", "init_experts"}
"""Settings of `train` that are compared with a checkpoint's own account of its origin."""


class Found(NamedTuple):
    """A checkpoint to go on from."""

    folder: Path
    system: System
    position: Position


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Of the model; they lie in `checkpoints/`.
        groups: The training cuts by route: what the order of batches depends on besides the configuration.
        corpus_weights: On it depends that order too.
        processes: That train; with `train.accumulate`, their number decides the batches of a step.
    """

    def __init__(self, folder: Path, groups: dict[Route, CutSet], corpus_weights: dict[str, float], processes: int = 1) -> None:
        self.folder, self.groups, self.corpus_weights, self.processes = folder / CHECKPOINTS, groups, corpus_weights, processes
        self.damaged: set[Path] = set()

    def all(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True) if self.folder.is_dir() else []

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, system: System, position: Position, needed: Collection[int] = ()) -> None:
        """Write the checkpoint of a step, and remove all older ones but the one before and those of steps that are needed still.

        A damaged one is no checkpoint before; one of a later step stays until training comes there.

        Raises:
            DataError: If it cannot be written.
        """
        position.state.update({"step": step, "data": self.fingerprint, "processes": self.processes})
        checkpoint.save(self.at(step), system, position)
        self.damaged.discard(self.at(step))
        old = [folder for folder in self.all() if folder.name <= self.at(step).name]
        sound = [folder for folder in old if folder not in self.damaged]
        kept = {*sound[:KEPT_CHECKPOINTS], *(self.at(other) for other in needed)}
        for folder in old:
            if folder not in kept:
                shutil.rmtree(folder)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the batch order depends on besides the configuration."""
        digests: dict[str, Any] = {str(route): digest_of(route, cuts) for route, cuts in self.groups.items()}
        # The settings of corpora are not compared otherwise: another place of the same data does not matter.
        return digests | ({"corpus_weights": self.corpus_weights} if self.corpus_weights else {})

    def newest(self, wanted: System, watcher: Watcher) -> Found | None:
        """The newest checkpoint that is whole; says so when it had to pass over a damaged one.

        Args:
            wanted: The run that would go on from it.
            watcher: Told of damaged ones.

        Raises:
            CheckpointError: If it is of another configuration, plan, tokenizer or of other data, or has had more steps than wanted; or if
                there are checkpoints, and none is whole.
        """
        wrong = []
        for folder in self.all():
            try:
                saved, position = checkpoint.load(folder), checkpoint.load_position(folder)
            except CheckpointError as error:
                watcher.log(f"passing over a damaged checkpoint: {error.message}")
                self.damaged.add(folder)
                wrong.append(error.message)
                continue
            wanted = self._check_processes(saved, position.state.get("processes", 1), wanted, folder, watcher)
            check_same(saved, wanted, folder)
            if position.state["data"] != self.fingerprint:
                raise CheckpointError(
                    f"`{folder}` was trained on other data than the manifests hold now, or with other weights of the corpora", START_ANEW
                )
            steps, most = position.state["step"], wanted.config.train.max_steps
            if steps > most:
                raise CheckpointError(
                    f"`{folder}` has had {steps:,} steps, more than `train.max_steps` ({most:,})", f"raise `train.max_steps`, {START_ANEW}"
                )
            return Found(folder, saved, position)
        if wrong:
            raise CheckpointError(
                f"no checkpoint in `{self.folder}` can be read: {'; '.join(wrong)}", f"bring one back from a copy, or {START_ANEW}"
            )
        return None

    def _check_processes(self, saved: System, before: int, wanted: System, folder: Path, watcher: Watcher) -> System:
        """Refuse another number of processes, unless `train.accumulate` makes the batches of each step the same.

        Returns:
            What to compare the checkpoint with.
        """
        if before == self.processes:
            return wanted
        old, new = before * saved.config.train.accumulate, self.processes * wanted.config.train.accumulate
        if old != new:
            cure = f"set `train.accumulate` to {old // self.processes}, or start " if old % self.processes == 0 else "start "
            raise CheckpointError(
                f"`{folder}` was trained by {before} process(es), {old} batches a step together; {self.processes} with `train.accumulate: "
                f"{wanted.config.train.accumulate}` would take {new}",
                f"{cure}as many processes as before: `torchrun --nproc_per_node {before}`; or {START_ANEW}",
            )
        watcher.log(f"trained by {before} process(es) before, by {self.processes} now: the same batches, but perhaps other last digits")
        train = wanted.config.train.model_copy(update={"accumulate": saved.config.train.accumulate})
        return replace(wanted, config=wanted.config.model_copy(update={"train": train}))

    def forget(self) -> None:
        """Discard the checkpoints and the model of an earlier run, and what it measured.

        Raises:
            OSError: If that cannot be done: what is left would be taken for this run's.
        """
        for folder in (self.folder, self.folder.parent / FINAL):
            if folder.exists():
                shutil.rmtree(folder)
        (self.folder.parent / MEASURED).unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Remove what a killed process left half-written, and bring back what it had put aside and not yet replaced."""
        for place in (self.folder.parent, self.folder):
            bring_back(place)
            for left in place.glob(".*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def check_same_run(ranks: Ranks, config: Config, checkpoints: Checkpoints) -> None:
    """Refuse processes that have other settings or other data than the first one.

    Raises:
        SmoeError: Naming the process, or if one has gone.
    """
    own: dict[str, Any] = {"name": True, "exp_dir": True, "decode": True, "data": True, "train": {"init_from", "threads"}}
    ranks.same("a recipe", lambda: config.model_dump_json(exclude=own), "start all with the same `smoe.yaml` and the same options")
    ranks.same("training data", lambda: checkpoints.fingerprint, "let all read the same manifests: `smoe prepare` once, for all machines")


def check_same(saved: System, wanted: System, folder: Path) -> None:
    """Refuse to continue a run of another configuration, plan or tokenizer.

    Raises:
        CheckpointError: Naming what differs.
    """
    changed = _changes(saved.config, checkpoint.portable(wanted.config)) + upcycling.differences(saved.origin, wanted.config.train)
    if changed:
        raise CheckpointError(f"`{folder}` was trained with another configuration: {'; '.join(changed)}", f"set these back, {START_ANEW}")
    if saved.plan != wanted.plan:
        raise CheckpointError(
            f"`{folder}` has another routing plan: {'; '.join(saved.plan.differences(wanted.plan))}",
            f"set the recipe back, {START_ANEW}",
        )
    if not saved.tokenizer.same_as(wanted.tokenizer):
        raise CheckpointError(
            f"`{folder}` was trained with another tokenizer: {saved.tokenizer.difference(wanted.tokenizer)}",
            f"bring that tokenizer back, {START_ANEW}",
        )


def _changes(before: Config, now: Config) -> list[str]:
    """Settings that differ and matter, each as `name: old -> new`."""
    ignored = {"name", "exp_dir", "decode", "data"}
    old, new = before.model_dump(exclude=ignored), now.model_dump(exclude=ignored)
    decisive = DECISIVE if now.train.average or now.train.patience else set()
    for section, keys in (FREE | {"train": FREE["train"] - decisive | ORIGIN}).items():
        for key in keys:
            old[section].pop(key), new[section].pop(key)
    return differences(old, new)
