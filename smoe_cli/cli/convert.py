"""`smoe convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, say


def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", file_okay=False, help="Model as transformers' `save_pretrained` wrote it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.", show_default=False)],
    task: Annotated[Literal["transcribe", "translate"], typer.Option("--task", help="What the model does.")] = "transcribe",
    lang: Annotated[
        list[str] | None,
        typer.Option("--lang", metavar="LANG", help="Language that it writes; repeatable.", show_default="English-only Whisper: en"),
    ] = None,
    source_lang: Annotated[
        str | None,
        typer.Option("--source-lang", metavar="LANG", help="Language that is spoken, for Whisper's translation.", show_default=False),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Convert a model of another library: Whisper or Speech2Text (fairseq S2T), as a folder of transformers.

    The result computes the same, brings its own front end and tokenizer, and is a checkpoint like any other: `smoe decode
    --checkpoint` takes it, and `smoe train --init-from` trains it on, with as many experts as the recipe asks for.

    Checks that the folder is whole, that every weight has its place, and that nothing but an earlier conversion is replaced. Pickled
    weights are refused.

    Example: smoe convert whisper-tiny.en --out models/whisper-tiny.en
    """
    from smoe_cli import pipeline

    report = pipeline.convert(folder, out=out, task=task, langs=lang or (), source_lang=source_lang)
    if as_json:
        print_json(report)
        return
    limit = "" if report.window_s is None else f", audio of up to {report.window_s:g} s"
    say(f"{report.family}, {report.parameters:,} parameters, routes {', '.join(report.routes)}{limit}")
    say(report.checkpoint)
