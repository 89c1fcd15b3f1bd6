"""`smoe route-audit`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoe_cli.audit import AUDITED_UTTERANCES
from smoe_cli.cli import options
from smoe_cli.cli.console import harmless, print_json, print_table, say
from smoe_cli.cli.plan import show_page, show_plan
from smoe_cli.cli.watcher import open_watcher

if TYPE_CHECKING:
    from smoe_cli.records import AuditReport


def route_audit(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    checkpoint: options.Checkpoint = None,
    cuts: Annotated[
        Path | None,
        typer.Option("--cuts", metavar="PATH", exists=True, help="Cut manifest to audit with.", show_default="the recipe's test manifests"),
    ] = None,
    utterances: Annotated[
        int, typer.Option("--utterances", "-n", metavar="N", min=1, help="Cuts per route in the swap test.")
    ] = AUDITED_UTTERANCES,
    swap: Annotated[bool, typer.Option("--swap/--no-swap", help="Also decode with every wrong expert, to see what it costs.")] = True,
    out: options.Out = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Observe which expert really serves which cut, and what happens when a tag lies.

    Checks by hooks on every routed layer that each cut was served by the expert that the plan names for its tags, and by no other.
    Exits with 1 when there are findings. With another checkpoint or manifest than the recipe's own, `--out` must name a folder.

    Example: smoe route-audit --no-swap
    """
    search = options.search_changes(overrides)
    recipe = options.load_recipe_if_any(config, overrides, (), instead=checkpoint is not None and cuts is not None, brings="decode")
    from smoe_cli import pipeline
    from smoe_cli.layout import Layout

    if dry_run:
        pipeline.check_audit(recipe, checkpoint, cuts, out)
        at = Layout(recipe.exp_dir if recipe else Path())
        writes = [out / "audit.json", out / "audit.html"] if out else None
        show_plan(recipe, "route-audit", as_json, [cuts or at.cuts("test"), checkpoint or at.final], writes)
        return
    with open_watcher() as watcher:
        report = pipeline.route_audit(
            recipe, checkpoint=checkpoint, cuts=cuts, utterances=utterances, swap=swap, out=out, search=search, watcher=watcher
        )
    if as_json:
        print_json(report)
    else:
        _show(report)
        show_page(out, Layout.of(recipe).audit if recipe else None, "audit.html")
    if report.findings:
        raise typer.Exit(1)


def _show(report: AuditReport) -> None:
    run = sum(report.routes.values())
    say(f"{report.title}: tags of {report.cuts:,} cuts checked, {run:,} cuts run")
    say(f"{report.layers:,} layers, {report.observations:,} observations")
    counts = [("total", report.parameters["total"]), ("active for one utterance", report.parameters["active"])]
    print_table(("parameters", "count"), counts)
    served: Counter[tuple[str, str, str, str]] = Counter()
    for row in report.served:
        served[row.stack, row.route, row.expert, "yes" if row.planned else "NO"] += row.utterances
    print_table(("stack", "route", "expert", "planned", "observations"), ((*key, count) for key, count in served.items()), title="Served")
    print_table(
        ("stack", "route", "right expert", "used instead", "metric", "right", "wrong"),
        [(row.stack, row.route, row.right, row.used, row.metric, row.right_value, row.value) for row in report.swaps],
        title=", ".join(["Swapped", *report.notes]),
    )
    for finding in report.findings:
        say(harmless(f"finding: {finding.check}: {finding.where}: {finding.message}", breaks=False), f"  hint: {finding.hint}")
    if report.findings:
        say(f"FAILED: {len(report.findings)} {'finding' if len(report.findings) == 1 else 'findings'}")
    else:
        say("passed: the tags are sound, and every cut that was run was served by the experts that its tags name")
