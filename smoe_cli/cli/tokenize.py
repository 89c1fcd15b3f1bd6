"""`smoe tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher


def tokenize(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Checkpoint whose tokenizer is taken, with the recipe's guiding tokens that it lacks, instead of learning one.",
            show_default="the recipe's `train.init_from`",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the byte-level BPE tokenizer on the training texts of the prepared manifests.

    Checks that every text survives encoding and decoding. Guiding tokens are control symbols, which no text can produce.

    Example: smoe tokenize --set tokenizer.vocab_size=4000
    """
    recipe = options.load_recipe(config, overrides, options.init_flags(init_from))
    if dry_run:
        show_plan(recipe, "tokenize", as_json)
        return
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.tokenize(recipe, watcher=watcher)
    if as_json:
        print_json(report)
        return
    guiding = f", guiding tokens {' '.join(report.guiding_tokens)}" if report.guiding_tokens else ""
    print(f"{report.kind}, {report.vocab_size:,} pieces{guiding}")
    print_table(("lang", "tokens per word"), sorted(report.fertility.items()))
    print(report.path)
