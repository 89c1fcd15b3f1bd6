"""`smoe prepare`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.tags import shown_tags


class BandwidthSource(StrEnum):
    """What `data.bandwidth` can be."""

    RATE = "rate"
    AUTO = "auto"


def prepare(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="NAME", help="Prepare this corpus only; repeatable.", show_default="all of the recipe"),
    ] = None,
    nb_downsample: Annotated[
        bool | None,
        typer.Option(
            "--nb-downsample/--no-nb-downsample",
            help="Add a narrowband twin of every wideband utterance, made as `data.nb_simulation` says.",
            show_default="the recipe's",
        ),
    ] = None,
    bandwidth: Annotated[
        BandwidthSource | None,
        typer.Option(
            "--bandwidth",
            help="Take the band of recordings from their sampling rate, or estimate it from their spectrum and report contradictions.",
            show_default="the recipe's",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=0, help="Processes at once; 0: one per CPU core.")] = 0,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn corpora into cut manifests that carry a task, a language and a bandwidth on every cut.

    Checks that each recording can be read to its end, has the length it claims, that ids are unique, and that every task and
    language is served. An utterance with a problem is an error; what serves no task is counted in a note.

    `--corpus synth` makes synthetic speech, whatever the recipe holds.

    Example: smoe prepare --nb-downsample
    """
    flags = [] if nb_downsample is None else [f"data.nb_downsample={str(nb_downsample).lower()}"]
    flags += [] if bandwidth is None else [f"data.bandwidth={bandwidth}"]
    recipe = options.load_recipe(config, overrides, flags)
    added = options.corpus_flags(corpus or (), recipe)
    if added:
        recipe = options.load_recipe(config, overrides, [*flags, *added])
    if dry_run:
        from smoe_cli.preparation import chosen_corpora

        chosen_corpora(recipe, corpus)
        show_plan(recipe, "prepare", as_json)
        return
    from smoe_cli import pipeline

    with open_watcher() as watcher:
        report = pipeline.prepare(recipe, corpora=corpus, watcher=watcher, jobs=jobs)
    if as_json:
        print_json(report)
        return
    tagged = any(row.tags for row in report.rows)
    rows = [
        (row.split, row.task, row.lang, row.bandwidth, *([shown_tags(row.tags)] if tagged else []), row.subset, row.cuts, row.hours)
        for row in report.rows
    ]
    print_table(("split", "task", "lang", "band", *(["tags"] if tagged else []), "subset", "cuts", "hours"), rows)
    if report.bandwidths:
        bands = [(row.corpus, row.known_by, row.known, row.estimated, row.tagged, row.utterances) for row in report.bandwidths]
        print_table(("corpus", "known by", "band", "spectrum", "tag", "utterances"), bands)
    if report.lines:
        print_table(("simulated line", "utterances"), list(report.lines.items()))
    for note in report.notes:
        print(f"note: {note}")
    print(report.cuts_dir)
