"""`smoe validate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import harmless, print_json, print_table, say
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.tags import shown_tags

if TYPE_CHECKING:
    from smoe_cli.records import Finding
    from smoe_cli.validation.report import Lasting, Row, ValidationReport

SHOWN = 10
"""Findings of one check and severity; the others are counted, and are in the report."""
BAR = 40
"""Characters of the longest bar."""


def validate(
    cuts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CUTS", exists=True, dir_okay=False, help="Cut manifests.", show_default="the recipe's"),
    ] = None,
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Move cuts with errors to `rejected.SPLIT.jsonl.gz` beside their manifest, with the reasons.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let notes fail the check too.")] = False,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Read every recording to its end.")] = True,
    within: Annotated[
        Path | None,
        typer.Option(
            "--within",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="For manifests of somebody else: all audio must lie in this folder, symbolic links followed.",
            show_default="anywhere",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=0, help="Recordings read at once; 0: one per CPU core.")] = 0,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Say whether cut manifests are fit to train on, and count what they hold.

    Checks every cut: tags, text, its script and its length beside the audio, and the audio to its end; then all cuts together:
    ids, and speakers and utterances in several splits. Errors make a cut unfit and exit with 1; notes are to be looked at.

    In a recipe folder its tasks and limits hold, and the report is `validation.json` beside its manifests.

    Example: smoe validate --strict
    """
    recipe = options.load_recipe_if_any(config, overrides, (), instead=bool(cuts))
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.validate(recipe, cuts=cuts or (), fix=fix, audio=audio, within=within, jobs=jobs, out=out, watcher=watcher)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report.errors or (strict and report.notes):
        raise typer.Exit(1)


def _show(report: ValidationReport) -> None:
    show_rows(report.rows)
    _show_durations(report.durations)
    show_findings(report.mended, "rejected")
    for reject in report.rejects:
        say(f"{reject.cuts:,} cuts moved from {reject.manifest} to {reject.rejected}")
    show_findings(report.findings)
    heard = f"{report.recordings_read:,} recordings read" if report.recordings_read else "no audio read"
    found = ", ".join(f"{number:,} {what}{'s' * (number != 1)}" for number, what in ((report.errors, "error"), (report.notes, "note")))
    say(f"{'FAILED' if report.errors else 'passed'}: {found} in {report.cuts:,} cuts, {heard}")


def show_rows(rows: Sequence[Row]) -> None:
    """Print cuts and hours by everything that a route is made of."""
    tagged = any(row.tags for row in rows)
    print_table(
        ("split", "task", "lang", "band", *(["tags"] if tagged else []), "subset", "cuts", "hours"),
        [
            (row.split, row.task, row.lang, row.bandwidth, *([shown_tags(row.tags)] if tagged else []), row.subset, row.cuts, row.hours)
            for row in rows
        ],
    )


def _show_durations(durations: Sequence[Lasting]) -> None:
    most = max((bar.cuts for bar in durations), default=0)
    print_table(
        ("seconds", "cuts", ""),
        [
            (
                f"{bar.from_s:g} to {bar.to_s:g}" if bar.to_s is not None else f"{bar.from_s:g} or more",
                bar.cuts,
                "█" * max(round(BAR * bar.cuts / most), bar.cuts > 0),
            )
            for bar in durations
        ],
    )


def show_findings(findings: Sequence[Finding], called: str = "") -> None:
    """Print one line a finding, but only the first of each check; the others are counted.

    Args:
        findings: Errors first.
        called: What to call them instead of `error` and `note`.
    """
    seen: Counter[tuple[str, str]] = Counter()
    hints: dict[str, None] = {}
    for finding in findings:
        kind = called or finding.severity, finding.check
        seen[kind] += 1
        if seen[kind] <= SHOWN:
            others = f" ({finding.cuts:,} cuts)" if finding.cuts > 1 else ""
            # One line each, whatever an id holds.
            say(harmless(f"{kind[0]}: {finding.check}: {finding.where}: {finding.message}{others}", breaks=False))
            hints.setdefault(f"{finding.check}: {finding.hint}")
    for (name, check), count in seen.items():
        if count > SHOWN:
            say(f"{name}: {check}: ... and {count - SHOWN:,} more, all of them in the report")
    for hint in hints if not called else ():
        say(f"hint: {hint}")
