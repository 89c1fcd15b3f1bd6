"""`smoe score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.plan import show_page, show_plan
from smoe_cli.cli.watcher import open_watcher


def score(
    hypotheses: Annotated[
        list[Path] | None,
        typer.Argument(metavar="HYPS", exists=True, help="Files of hypotheses (.jsonl).", show_default="what `decode` wrote"),
    ] = None,
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Score hypotheses by task, language, bandwidth and subset: WER and CER, BLEU and chrF.

    Checks that every hypothesis has a reference, that none is scored twice, and that one model wrote them all. Writes the scores
    as JSON and as an HTML report; of named files only where `--out` says.

    Example: smoe score exp/hypotheses/test/*.jsonl
    """
    recipe = options.load_recipe_if_any(config, overrides, (), instead=bool(hypotheses))
    if dry_run:
        writes = [out / "scores.json", out / "report.html"] if out else [] if hypotheses else None
        show_plan(recipe, "score", as_json, hypotheses or (), writes)
        return
    from smoe_cli import pipeline
    from smoe_cli.layout import Layout
    from smoe_cli.scoring.table import score_rows, signatures

    with open_watcher() as watcher:
        report = pipeline.score(recipe, hypotheses=hypotheses or (), out=out, watcher=watcher)
    if as_json:
        print_json(report)
        return
    print_table(*score_rows(report), title=report.title)
    for signature in signatures(report):
        say(signature)
    if hypotheses and out is None:
        say("nothing is written; `--out FOLDER` keeps these scores, and a page with the errors", stderr=True)
    show_page(out, Layout.of(recipe).scores if recipe and not hypotheses else None, "report.html")
