"""`smoe features`."""

from __future__ import annotations

from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher


def features(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", metavar="NAME", help="Compute this split's; repeatable.", show_default="train and dev")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=0, help="Processes at once; 0: one per CPU core.")] = 0,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Compute the features of the prepared manifests ahead, for trainings with `features.stored: true`.

    Checks that all audio can be read and is at the model's rate. What is there already is not computed again: an interrupted call goes on
    where it was, and other settings, files or simulated lines have features of their own.

    Example: smoe features --set features.stored=true
    """
    from smoe_cli.config import SPLITS
    from smoe_cli.errors import ConfigError

    recipe = options.load_recipe(config, overrides)
    splits = tuple(dict.fromkeys(split or ("train", "dev")))
    for name in splits:
        if name not in SPLITS:
            raise ConfigError(f"unknown split `{name}`; known: {', '.join(SPLITS)}", "correct --split")
    from smoe_cli.layout import Layout

    at = Layout.of(recipe)
    if dry_run:
        show_plan(None, "features", as_json, [at.cuts(name) for name in splits], [at.features])
        return
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.features(recipe, splits=splits, jobs=jobs, watcher=watcher)
    if as_json:
        print_json(report)
        return
    say(f"{report.cuts:,} cuts, {report.stored:,} stored, {report.computed:,} of them now: {report.bytes / 1e6:,.1f} MB")
    say(report.folder)
