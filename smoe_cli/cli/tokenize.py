"""`smoe tokenize`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from unicodedata import combining

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher

if TYPE_CHECKING:
    from smoe_cli.records import Coverage


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

    Prints the tokens per word of each language's training texts, and how the dev split, or without one the train split, is covered.
    Broken characters take several pieces each: more pieces, or more text in that script, help. More tokens per word than in training:
    the training texts lack words. Characters that are not in train cannot be learned. Merged pieces that no training text has cost
    parameters: a smaller vocabulary has fewer of them.

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
    say(f"{report.kind}, {report.vocab_size:,} pieces{guiding}")
    held_out = report.measured_on != "train"
    on = f"{report.measured_on}: " if held_out else ""
    header = ["lang", "tokens per word", f"{on}tokens per word", f"{on}whole characters, %", f"{on}broken", f"{on}not in train"]
    rows = [
        (one.lang, report.fertility.get(one.lang), one.tokens_per_word, one.whole_characters, _shown(one.broken), _unseen(one))
        for one in report.coverage
    ]
    columns = range(len(header)) if held_out else (0, 1, 3, 4)  # the others would say the same twice
    print_table([header[i] for i in columns], [[row[i] for i in columns] for row in rows])
    say(f"{report.merged_pieces_used:,} of {report.merged_pieces:,} merged pieces occur in the training texts")
    say(report.path)


def _unseen(one: Coverage) -> str:
    """Characters that training texts lack."""
    more = one.unseen_characters - len(one.unseen)
    return _shown(one.unseen) + (f" and {more:,} more" if more else "")


def _shown(characters: Iterable[str]) -> str:
    """Characters beside each other; by their number where a terminal would do something else than show them."""
    return " ".join(one if one.isprintable() and not combining(one) else f"U+{ord(one):04X}" for one in characters)
