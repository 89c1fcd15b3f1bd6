"""`smoe slim`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json
from smoe_cli.tags import Bandwidth, parse_tags


def slim(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", exists=True, file_okay=False, help="The trained model.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.", show_default=False)],
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="What it will produce.", show_default="the only one")] = None,
    lang: Annotated[
        str | None, typer.Option("--lang", metavar="LANG", help="Language it will write.", show_default="the only one of the task")
    ] = None,
    bandwidth: Annotated[
        Bandwidth | None, typer.Option("--bandwidth", help="Band it will hear.", show_default="the only one of the task")
    ] = None,
    tag: options.RouteTags = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the model of one route of a trained model: a dense checkpoint with the same output, as small as a model without experts.

    Checks that the model has the route, and that nothing but an earlier slim model is replaced. `smoe decode --checkpoint` takes the
    result; it refuses every other route.

    Example: smoe slim exp/model/final --task translate --lang de --bandwidth nb --out phone
    """
    from smoe_cli import pipeline

    report = pipeline.slim(checkpoint, out=out, task=task, lang=lang, bandwidth=bandwidth, tags=parse_tags(tag or ()))
    if as_json:
        print_json(report)
        return
    print(f"route {report.route}: {report.parameters:,} of {report.parameters_before:,} parameters, {report.bytes / 1e6:,.1f} MB")
    print(report.checkpoint)
