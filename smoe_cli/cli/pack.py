"""`smoe pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher


def pack(
    out: options.NewFolder,
    cuts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CUTS", exists=True, dir_okay=False, help="Cut manifests, one per split.", show_default="the recipe's"),
    ] = None,
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    shard_size: Annotated[int, typer.Option("--shard-size", metavar="N", min=1, help="Cuts in one shard.")] = 1000,
    audio: Annotated[
        Literal["flac", "opus"],
        typer.Option("--audio", help="`flac` keeps 16-bit samples bit for bit; `opus` takes a fraction of the space, and loses some."),
    ] = "flac",
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=0, help="Shards written at once; 0: one per CPU core.")] = 0,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write prepared manifests as Lhotse Shar: a few large files a split, for clusters and object stores.

    Every cut goes in with all its tags, and its audio as the model hears it. A corpus of type `shar` takes the folder as its `path`, and
    gives the same cuts again.

    Checks that every cut can be read, that its id can name a file, and that nothing but an earlier pack is replaced. Each split
    is written whole or not at all; called again, those are left as they are that were packed from the same manifest in the same way.

    Example: smoe pack --shard-size 2000 --out pack
    """
    recipe = options.load_recipe_if_any(config, overrides, (), instead=bool(cuts))
    from smoe_cli import pipeline

    if dry_run:
        reads = pipeline.check_pack(recipe, cuts=cuts or (), out=out)
        show_plan(None, "pack", as_json, reads, [out], f"{audio}, {shard_size:,} cuts a shard")
        return
    with open_watcher() as watcher:
        report = pipeline.pack(recipe, cuts=cuts or (), out=out, shard_size=shard_size, audio=audio, jobs=jobs, watcher=watcher)
    if as_json:
        print_json(report)
        return
    rows = [(part.split, part.cuts, part.hours, part.shards, part.bytes / 1e6, "as it was" if part.kept else "") for part in report.splits]
    print_table(("split", "cuts", "hours", "shards", "MB", ""), rows)
    say(report.folder)
