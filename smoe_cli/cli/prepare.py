"""`smoe prepare`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.validate import show_findings, show_rows
from smoe_cli.cli.watcher import open_watcher


class BandwidthSource(StrEnum):
    """What `data.bandwidth` can be."""

    RATE = "rate"
    AUTO = "auto"


class Source(StrEnum):
    """What `allow_sources` of a corpus can name."""

    COMMAND = "command"
    URL = "url"


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
    allow_sources: Annotated[
        list[Source] | None,
        typer.Option(
            "--allow-sources",
            metavar="[command|url]",
            help="Take audio from shell commands, or from addresses, that manifests name: each is run or fetched once, with your rights, "
            "and kept as FLAC. Only for corpora that you trust; repeatable.",
            show_default="the recipe's; else both are refused",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=0, help="Recordings read, or made, at once; 0: one per CPU core.")
    ] = 0,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Dask scheduler whose workers read the recordings, e.g. `tcp://host:8786`; needs `pip install 'smoe\\[dask]'`.",
            show_default="threads here",
        ),
    ] = None,
    dry_run: options.DryRunOfCorpora = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn corpora into cut manifests that carry a task, a language and a bandwidth on every cut.

    Checks that each recording can be read to its end, has the length it claims, that ids are unique, and that every task and
    language is served. All that is wrong is said at once, and nothing is written then; what serves no task is counted in a note. The
    manifests are validated at the end, as by `smoe validate`: errors that it finds exit with 1.

    `--corpus synth` makes synthetic speech, whatever the recipe holds.

    Example: smoe prepare --nb-downsample
    """
    flags = [] if nb_downsample is None else [f"data.nb_downsample={str(nb_downsample).lower()}"]
    flags += [] if bandwidth is None else [f"data.bandwidth={bandwidth}"]
    recipe = options.load_recipe(config, overrides, flags)
    added = [*options.corpus_flags(corpus or (), recipe), *options.source_flags(allow_sources or (), corpus or (), recipe)]
    if added:
        recipe = options.load_recipe(config, overrides, [*flags, *added])
    from smoe_cli import pipeline

    if dry_run:
        pipeline.check_prepare(recipe, corpora=corpus)
        show_plan(recipe, "prepare", as_json)
        return
    with open_watcher() as watcher:
        report = pipeline.prepare(recipe, corpora=corpus, watcher=watcher, jobs=jobs, cluster=cluster)
    if as_json:
        print_json(report)
    else:
        show_rows(report.rows)
        if report.bandwidths:
            bands = [(row.corpus, row.known_by, row.known, row.estimated, row.tagged, row.utterances) for row in report.bandwidths]
            print_table(("corpus", "known by", "band", "spectrum", "tag", "utterances"), bands)
        if report.lines:
            print_table(("simulated line", "utterances"), list(report.lines.items()))
        for note in report.notes:
            say(f"note: {note}")
        show_findings(report.findings)
        say(report.cuts_dir)
    if any(finding.severity == "error" for finding in report.findings):
        raise typer.Exit(1)
