"""`smoe run`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.errors import ConfigError


def run(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Do every step, also those whose results are up to date.")] = False,
    dry_run: options.DryRunOfCorpora = False,
    as_json: options.AsJson = False,
) -> None:
    """Do the whole recipe: prepare, tokenize, train, decode, score, route-audit.

    Checks what each of them checks; a step whose inputs and settings have not changed since it was done is skipped.
    Exits with 1 when the audit has findings. One process only: torchrun is for `smoe train`.

    Example: smoe run --dry-run
    """
    recipe = options.load_recipe(config, overrides)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("`smoe run` is one process, and WORLD_SIZE says that there are more", "start `smoe train` alone with torchrun")
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.run(recipe, force=force, dry_run=dry_run, watcher=watcher)
    if as_json:
        print_json(report)
    else:
        print_table(("step", "state", "seconds", "why"), [(step.name, step.state, step.seconds, step.reason) for step in report.steps])
        if not dry_run:
            say(f"report: {report.report}")
            say(f"audit: {report.audit}, {report.findings} {'finding' if report.findings == 1 else 'findings'}")
    if report.findings:
        raise typer.Exit(1)
