"""`smoe slim`."""

from __future__ import annotations

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.tags import Choice


def slim(
    checkpoint: options.TrainedModel,
    out: options.NewFolder,
    task: options.OneTask = None,
    lang: options.OneLanguage = None,
    bandwidth: options.OneBand = None,
    tag: options.RouteTag = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the model of one route of a trained model: a dense checkpoint with the same output, as small as a model without experts.

    Checks that the checkpoint is whole, that the model has the route, and that nothing but an earlier slim model is replaced.
    `smoe decode --checkpoint` takes the result; it refuses every other route.

    Example: smoe slim exp/model/final --task translate --lang de --bandwidth nb --out phone
    """
    from smoe_cli import pipeline

    choice = Choice.of(task, lang, bandwidth, tag)
    if dry_run:
        route = pipeline.check_slim(checkpoint, out=out, choice=choice)
        show_plan(None, "slim", as_json, [checkpoint], [out], f"route {route}")
        return
    report = pipeline.slim(checkpoint, out=out, choice=choice)
    if as_json:
        print_json(report)
        return
    head = f", and {report.ctc_head:,} of the CTC head" if report.ctc_head else ""
    say(f"route {report.route}: {report.parameters:,} of {report.parameters_before:,} parameters{head}, {report.bytes / 1e6:,.1f} MB")
    say(report.checkpoint)
