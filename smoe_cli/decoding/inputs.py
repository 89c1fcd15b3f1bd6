"""What a decoding is asked for: its arguments, checked before anything heavy is loaded, and the cuts that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smoe_cli.config import SPLITS, Config
from smoe_cli.errors import ConfigError, DataError, RouteError
from smoe_cli.tags import HOW_TO_CHOOSE, Choice, Route, check_routes, parse_bandwidth

if TYPE_CHECKING:
    from lhotse import MonoCut

    from smoe_cli.checkpoint import System

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")


def check_request(
    config: Config | None, inputs: Sequence[Path], choice: Choice, split: str, checkpoint: Path | None, out: Path | None
) -> None:
    """Refuse arguments that do not go together; they are those of `pipeline.decode`.

    Raises:
        ConfigError: If they do not.
        RouteError: If the bandwidth is unknown.
    """
    if config is None and checkpoint is None:
        raise ConfigError("neither a recipe nor a checkpoint is named", "change into a recipe folder, or use --checkpoint")
    if not inputs and config is None:
        raise ConfigError("nothing to decode: no input and no recipe", "name audio files or manifests, and --checkpoint")
    if checkpoint is not None and not inputs and out is None:
        raise ConfigError("another checkpoint's hypotheses would replace those of the recipe's own model", "name a file with --out")
    if out is not None and out.is_dir():
        raise ConfigError(f"`{out}` is a folder; hypotheses are one file", f"name a file, for example --out {out / 'hypotheses.jsonl'}")
    if split not in SPLITS:
        raise ConfigError(f"unknown split `{split}`; known: {', '.join(SPLITS)}", "correct --split")
    if choice.bandwidth is not None:
        parse_bandwidth(choice.bandwidth)


def check_recipe(config: Config, inputs: Sequence[Path], choice: Choice) -> None:
    """Refuse what a model of this recipe will refuse, as far as that can be said before there is one.

    Raises:
        RouteError: If the recipe has no such route, or the tags do not say what to write down of bare audio.
    """
    check_routes(choice, config.routes(), "the recipe")
    for path in inputs:
        if not _is_manifest(path):
            _route_tags(path, config.routes(), choice)


def cuts_of(path: Path, system: System, choice: Choice) -> list[MonoCut]:
    """The chosen cuts of a manifest, or the one cut of a bare audio file.

    Raises:
        DataError: If the file is missing or damaged.
        RouteError: If the tags do not say what to write down of bare audio, or the model has no route for it.
    """
    from smoe_cli.cuts import read_cuts, route_of
    from smoe_cli.decoding.decode import cut_of_file

    if _is_manifest(path):
        return [cut for cut in read_cuts(path) if choice.has(route_of(cut))]
    if path.is_dir():
        raise DataError(f"input `{path}` is a folder", f"name its files, for example {path / '*.flac'}")
    if not path.is_file():
        raise DataError(f"no input `{path}`", "name an audio file, or a cut manifest (.jsonl, .jsonl.gz)")
    task, lang, tags = _route_tags(path, [Route.parse(name) for name in system.plan.routes], choice)
    band = parse_bandwidth(choice.bandwidth) if choice.bandwidth is not None else None
    features, data = system.config.features, system.config.data
    cut = cut_of_file(path, task, lang, band, tags, features.sample_rate_hz, (data.min_duration_s, data.max_duration_s))
    try:
        system.plan.check(route_of(cut))
    except RouteError as error:
        raise RouteError(f"`{path}`: {error.message}", HOW_TO_CHOOSE) from None
    return [cut]


def _is_manifest(path: Path) -> bool:
    return path.name.endswith(MANIFEST_SUFFIXES)


def _route_tags(path: Path, routes: Sequence[Route], choice: Choice) -> tuple[str, str, dict[str, str]]:
    """(task, language, tags on the recipe's own axes) of bare audio, if there is only one possibility for each."""
    tasks = list(dict.fromkeys(route.task for route in routes))
    if choice.task is None and len(tasks) != 1:
        raise RouteError(f"`{path}` is bare audio, and the model has several tasks: {', '.join(tasks)}", "choose one with --task")
    task = choice.task or tasks[0]
    languages = list(dict.fromkeys(route.lang for route in routes if route.task == task))
    if choice.lang is None and len(languages) != 1:
        raise RouteError(
            f"`{path}` is bare audio, and task `{task}` has several languages: {', '.join(languages)}", "choose one with --lang"
        )
    lang = choice.lang or languages[0]
    tags = dict(choice.tags)
    for axis in (axis for axis, _ in routes[0].extra if axis not in tags):
        values = list(dict.fromkeys(route.tags[axis] for route in routes if (route.task, route.lang) == (task, lang)))
        if len(values) != 1:
            raise RouteError(
                f"`{path}` is bare audio, and axis `{axis}` has several values: {', '.join(values)}",
                f"choose one with --tag, for example --tag {axis}={values[0]}" if values else HOW_TO_CHOOSE,
            )
        tags[axis] = values[0]
    return task, lang, tags
