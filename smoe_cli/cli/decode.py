"""`smoe decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.tags import Choice


def decode(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUTS",
            exists=True,
            help="Audio files, or cut manifests (.jsonl, .jsonl.gz).",
            show_default="the recipe's manifests of --split",
        ),
    ] = None,
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    task: options.TaskName = None,
    lang: options.Language = None,
    bandwidth: options.Band = None,
    tag: options.RouteTags = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Which manifests to decode when no inputs are named: train, dev or test.")
    ] = "test",
    checkpoint: options.Checkpoint = None,
    beam: Annotated[
        int | None,
        typer.Option(
            "--beam",
            metavar="N",
            min=1,
            help="Beams per utterance; 1 is greedy search.",
            show_default="`decode.beam` of recipe or checkpoint",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File for the hypotheses (.jsonl).",
            show_default="in the recipe's `exp_dir`; for inputs: stdout",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write down or translate speech with the experts that the tags choose.

    Checks that the model has every route that is asked for; no tag is guessed. Prints the paths of the files of hypotheses; with
    `--json`, and for inputs without `--out`, the hypotheses themselves, one JSON object a line.

    Ctrl-C, SIGTERM and even `kill -9` lose no more than the batch under way: the same command goes on from there; for bare audio
    files only with `--out`.

    Example: smoe decode call.wav --task translate --lang de --bandwidth nb
    """
    flags = [] if beam is None else [f"decode.beam={beam}"]
    search = options.search_changes(overrides, flags)
    recipe = options.load_recipe_if_any(config, overrides, flags, instead=checkpoint is not None and bool(inputs), brings="decode")
    choice = Choice.of(task, lang, bandwidth, tag)
    if dry_run:
        from smoe_cli.decoding.inputs import check_recipe, check_request
        from smoe_cli.layout import Layout

        check_request(recipe, inputs or (), choice, split, checkpoint, out)
        if recipe and checkpoint is None:
            check_recipe(recipe, inputs or (), choice)
        at = Layout(recipe.exp_dir if recipe else Path())
        routes = [route for route in recipe.routes() if choice.has(route)] if recipe else []
        files = dict.fromkeys(at.hypotheses(split, route.task, route.lang) for route in routes)
        writes = [out] if out else [] if inputs else list(files)
        show_plan(recipe, "decode", as_json, [*(inputs or [at.cuts(split)]), checkpoint or at.final], writes)
        return
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.decode(
            recipe,
            inputs=inputs or (),
            choice=choice,
            split=split,
            checkpoint=checkpoint,
            out=out,
            search=search,
            watcher=watcher,
        )
    if as_json or not report.paths:
        for hypothesis in report.hypotheses:
            print(hypothesis.model_dump_json())
    else:
        say(*report.paths)
