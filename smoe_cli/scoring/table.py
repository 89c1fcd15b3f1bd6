"""A score report as plain rows of text, for the terminal."""

from __future__ import annotations

from smoe_cli.records import ScoreReport
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.scoring.slices import MAIN_SUBSET
from smoe_cli.tags import shown_tags


def score_rows(report: ScoreReport) -> tuple[list[str], list[list[str]]]:
    """Lay a report out: one row per slice, one column per metric that any slice has.

    Returns:
        Header and rows, all of one length; a metric that a slice does not have is an empty cell. Values have one decimal.

    Raises:
        ConfigError: If the report has a metric that is not in the metrics table.
    """
    # Per metric the unit, in order of first appearance.
    units = {score.metric: score.unit for part in report.slices for score in part.scores}
    metrics = [find_metric(name).label + (f" {unit}" if unit == "%" else "") for name, unit in units.items()]
    # Where all speech is synthetic, the title says so.
    mixed = 0 < report.synthetic < report.measured
    tagged = any(part.tags for part in report.slices)
    rows = []
    for part in report.slices:
        values = {score.metric: f"{score.value:.1f}" for score in part.scores}
        tags = [part.subset or MAIN_SUBSET, part.task, part.lang, part.bandwidth, *([shown_tags(part.tags)] if tagged else [])]
        counts = [
            f"{part.utterances:,}",
            *([f"{part.synthetic:,}"] if mixed else []),
            f"{part.hours:.2f}" if part.hours else "",
            f"{part.truncated:,}",
        ]
        rows.append(tags + [values.get(name, "") for name in units] + counts)
    header = ["subset", "task", "lang", "band", *(["tags"] if tagged else []), *metrics, "utterances", *(["synthetic"] if mixed else [])]
    return [*header, "hours", "cut off"], rows


def signatures(report: ScoreReport) -> list[str]:
    """What must be quoted with the values: each metric's distinct signatures, as `metric: signature`."""
    scores = [score for part in report.slices for score in part.scores]
    return list(dict.fromkeys(f"{find_metric(score.metric).label}: {score.signature}" for score in scores))
