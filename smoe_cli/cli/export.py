"""`smoe export`."""

from __future__ import annotations

from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.tags import Choice


def export(
    checkpoint: options.TrainedModel,
    out: options.NewFolder,
    task: options.OneTask = None,
    lang: options.OneLanguage = None,
    bandwidth: options.OneBand = None,
    tag: options.RouteTag = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights of matrices and embeddings to 8 bits.")] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    r"""Write the model of one route of a trained model for devices without torch.

    The folder holds ONNX graphs of the encoder and of one step of the decoder, the tokenizer, and `export.json` with all that a
    program needs to know.

    Checks that the checkpoint is whole, that the model has the route, that nothing but an earlier export is replaced, and, before
    anything is kept, that onnxruntime computes what torch computes: every logit within 0.0001 or a hundred-thousandth of the
    largest one, or with `--int8` within half of their spread.

    Needs `pip install 'smoe\[onnx]'`.

    Example: smoe export exp/model/final --task translate --lang de --bandwidth nb --int8 --out phone
    """
    from smoe_cli import pipeline

    choice = Choice.of(task, lang, bandwidth, tag)
    if dry_run:
        route = pipeline.check_export(checkpoint, out=out, choice=choice)
        show_plan(None, "export", as_json, [checkpoint], [out], f"route {route}")
        return
    with open_watcher() as watcher:
        report = pipeline.export(checkpoint, out=out, choice=choice, int8=int8, watcher=watcher)
    if as_json:
        print_json(report)
        return
    size = f"{report.encoder.bytes / 1e6:,.1f} + {report.decoder.bytes / 1e6:,.1f} MB"
    say(f"route {report.route}: {size}" + (f", {report.bytes_float32 / 1e6:,.1f} MB before int8" if int8 else ""))
    found = report.check
    spread = f", {found.relative_difference:.1%} of their spread" if int8 else ""
    same = f"same token in {found.same_token:.1%} of {found.tokens:,} steps on noise"
    say(f"against torch: logits differ by {found.max_difference:.2g} at most{spread}; {same}")
    say(out)
