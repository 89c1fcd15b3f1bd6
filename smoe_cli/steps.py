"""What each step reads, writes and depends on, and whether its results are up to date."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from smoe_cli import __version__
from smoe_cli.config import FEATURE_HANDLING, SPLITS, Config, differences
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.records import Record, file_digest, write_text_atomically
from smoe_cli.train_settings import MEANS, WATCHING

MISSING = "missing"
"""Instead of the digest of a file that does not exist. Not every file that could be written is: a test split may lack a language."""
SETTINGS_CHANGED = "its settings changed"
"""How the reason of a step begins that would run for this."""
A_CHECKPOINT = "a checkpoint"
"""Instead of a path: what the checkpoint holds counts, not where it lies."""


class Step(Record):
    """One step of a recipe, and how it stands."""

    name: str
    state: Literal["would run", "up to date", "done", "skipped"]
    reason: str = Field(default="", description="Why it would run.")
    seconds: float | None = None
    reads: list[Path] = Field(default_factory=list)
    writes: list[Path] = Field(default_factory=list)


@dataclass(frozen=True)
class _Definition:
    """A step's files, and the settings whose change makes it stale."""

    settings: Callable[[Config], dict[str, Any]]
    reads: Callable[[Config, Layout], list[Path]]
    writes: Callable[[Config, Layout], list[Path]]


def _sources(config: Config) -> list[Path]:
    """Tables and manifests that the corpora start from; a `*` in a name stands for all that are there."""
    root = config.data.root or Path()
    named = [root / path for corpus in config.data.corpora.values() for path in corpus.sources()]
    return [path for name in named for path in (sorted(name.parent.glob(name.name)) if "*" in name.name else [name])]


def _tasks(config: Config) -> dict[str, Any]:
    return {name: task.model_dump() for name, task in config.tasks.items()}


def _given(config: Config) -> list[Path]:
    """The checkpoint that the recipe starts from, if it names one."""
    return [config.train.init_from] if config.train.init_from else []


def _prepare_settings(config: Config) -> dict[str, Any]:
    # What is allowed changes nothing of what was made.
    data = config.data.model_dump(mode="json", exclude={"root": True, "corpora": {"__all__": {"weight", "allow_sources"}}})
    return {"data": data, "features": {"sample_rate_hz": config.features.sample_rate_hz}, "tasks": _tasks(config), "axes": config.axes}


def _tokenize_settings(config: Config) -> dict[str, Any]:
    start = {"train": {"init_from": A_CHECKPOINT}} if _given(config) else {}
    return {"tokenizer": config.tokenizer.model_dump(), "tasks": _tasks(config)} | start


def _train_settings(config: Config) -> dict[str, Any]:
    # Where the checkpoint lies does not count, and how corpora are blended only where they are.
    init = {"init_from"} if _given(config) else {"init_from", "init_noise", "init_experts"}
    unset = {"corpus_temperature"} if config.train.corpus_temperature == 1.0 else set()
    means = MEANS - {"memory_share"} if config.train.batch_s == "auto" else MEANS
    return {
        "model": config.model.model_dump(),
        "train": ({"init_from": A_CHECKPOINT} if _given(config) else {}) | config.train.model_dump(exclude=WATCHING | means | init | unset),
        "features": config.features.model_dump(exclude=FEATURE_HANDLING),
        "tasks": _tasks(config),
        "axes": config.axes,
        "data": {"corpora": {name: {"weight": weight} for name, weight in config.corpus_weights().items()}},
    }


STEPS: dict[str, _Definition] = {
    "prepare": _Definition(
        _prepare_settings,
        lambda c, at: _sources(c),
        lambda c, at: [at.cuts(split) for split in SPLITS],
    ),
    "tokenize": _Definition(_tokenize_settings, lambda c, at: [at.cuts("train"), *_given(c)], lambda c, at: [at.tokenizer]),
    "train": _Definition(
        _train_settings,
        lambda c, at: [at.cuts("train"), at.cuts("dev"), at.tokenizer, *_given(c)],
        lambda c, at: [at.final],
    ),
    "decode": _Definition(
        lambda c: {"decode": c.decode.model_dump()},
        lambda c, at: [at.cuts("test"), at.final],
        lambda c, at: [at.hypotheses("test", task, lang) for task, lang in c.targets()],
    ),
    "score": _Definition(
        lambda c: {"name": c.name, "tasks": _tasks(c), "text": {task: c.text_policy(task).signature for task in c.tasks}},
        lambda c, at: [at.hypotheses("test", task, lang) for task, lang in c.targets()],
        lambda c, at: [at.scores / "scores.json", at.scores / "report.html"],
    ),
    "route-audit": _Definition(
        lambda c: {"decode": c.decode.model_dump()},
        lambda c, at: [at.cuts("test"), at.final],
        lambda c, at: [at.audit / "audit.json", at.audit / "audit.html"],
    ),
}
"""Steps in the order of the data."""


def plan_step(config: Config, name: str) -> Step:
    """Whether a step would run, and why.

    Raises:
        ConfigError: If there is no such step.
    """
    if name not in STEPS:
        raise ConfigError(f"no step `{name}`; known: {', '.join(STEPS)}", "correct the name")
    step, layout = STEPS[name], Layout.of(config)
    reads, writes = step.reads(config, layout), step.writes(config, layout)
    reason = _stale(config, name, reads, writes)
    return Step(name=name, state="would run" if reason else "up to date", reason=reason, reads=reads, writes=writes)


def altered(config: Config, name: str) -> Path | None:
    """A result of a step that is not as it left it; None: there is none, or no account of the step."""
    layout = Layout.of(config)
    left = (_before(layout, name) or {}).get("results", {})
    return _other_than(left, _digests(STEPS[name].writes(config, layout), layout), layout) if left else None


def mark(config: Config, name: str, whole: bool = True) -> None:
    """Remember what a finished step was made from and what it left; one that did a part of its work counts as not finished.

    Raises:
        DataError: If the folder cannot be written.
    """
    stamp = Layout.of(config).stamp(name)
    if whole:
        write_text_atomically(stamp, json.dumps(_account(config, name), indent=2) + "\n")
        return
    try:
        stamp.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot remove `{stamp}`: {error.strerror}", "check the folder's rights, or name another `exp_dir`") from error


def _stale(config: Config, name: str, reads: list[Path], writes: list[Path]) -> str:
    """Why a step's results are not those of a finished run with the same settings and inputs; empty: they are."""
    layout, now = Layout.of(config), _account(config, name)
    before = _before(layout, name)
    if before is None:
        missing = [path for path in writes if not path.exists()]
        return (
            f"`{missing[0]}` does not exist" if missing else "it was stopped, refused, or asked for a part of its work only, the last time"
        )
    if before.get("version") != now["version"] or not isinstance(before.get("settings"), dict):
        return f"an earlier smoe ({before.get('version')}) made it"
    if before["settings"] != now["settings"]:
        return f"{SETTINGS_CHANGED}: {differences(before['settings'], now['settings'])[0]}"
    # Results too: a run that was stopped while it replaced them leaves the account of the one before. Only audio that
    # `prepare` makes would take too long to compare; it takes its account back before it begins.
    for key, matter in (("reads", "changed"), ("results", "is not as this step left it")):
        if path := _other_than(before.get(key, {}), now[key], layout):
            return f"`{path}` {matter if path.exists() else 'does not exist'}"
    return ""


def _other_than(before: dict[str, Any], now: dict[str, Any], layout: Layout) -> Path | None:
    """The first file that is not as it was, is gone or new; what somebody else put into a folder is none of it."""
    for name in before | now:
        old, new = before.get(name, MISSING), now.get(name, MISSING)
        if isinstance(old, dict) and isinstance(new, dict):
            if changed := [file for file in old if old[file] != new.get(file)]:
                return layout.root / name / changed[0]
        elif old != new:
            return layout.root / name
    return None


def _before(layout: Layout, name: str) -> dict[str, Any] | None:
    """The account of a step that is finished; None: it is not."""
    try:
        found = json.loads(layout.stamp(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _account(config: Config, name: str) -> dict[str, Any]:
    """Everything that a step's being up to date hangs on."""
    step, layout = STEPS[name], Layout.of(config)

    return {
        "version": __version__,
        "settings": json.loads(json.dumps(step.settings(config), default=str)),
        "reads": _digests(step.reads(config, layout), layout),
        "results": _digests(step.writes(config, layout), layout),
    }


def _name(path: Path, layout: Layout) -> str:
    """Short inside the experiment; whole outside it, the same from every working folder."""
    return str(path.relative_to(layout.root)) if path.is_relative_to(layout.root) else os.path.abspath(path)


def _digests(paths: list[Path], layout: Layout) -> dict[str, Any]:
    """Name -> digest of a file, or of each file of a folder; `MISSING` if there is none."""
    return {_name(path, layout): _fingerprint(path) for path in paths}


def _fingerprint(path: Path) -> str | dict[str, str]:
    if path.is_dir():
        return {file.name: file_digest(file) for file in sorted(path.iterdir()) if file.is_file()}
    return file_digest(path) if path.is_file() else MISSING
