"""`smoe train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say
from smoe_cli.cli.plan import show_plan
from smoe_cli.cli.watcher import open_watcher, speaks
from smoe_cli.errors import Interrupted


def train(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option("--resume", help="`auto`: go on exactly where an earlier run stopped; `never`: start anew."),
    ] = "auto",
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Checkpoint whose weights the model starts with; its feed-forward networks are copied into every new expert.",
            show_default="the recipe's `train.init_from`",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="SECONDS",
            help="Seconds of audio in one batch, padding included; `auto`: as many as memory takes.",
            show_default="the recipe's `train.batch_s`",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the model on the prepared manifests.

    Checks that every cut has a route of the recipe and every route an expert, that a checkpoint to start from has the recipe's
    dimensions and tokenizer (`smoe tokenize --from FOLDER`), and that a run to resume has the same configuration, plan, tokenizer
    and start. Ctrl-C and SIGTERM end it with a checkpoint; the same command goes on from there.

    Many processes, one per GPU: `torchrun --nproc_per_node 8 -m smoe_cli train`.

    Example: smoe train --set train.max_steps=500
    """
    recipe = options.load_recipe(config, overrides, [*options.init_flags(init_from), *([f"train.batch_s={batch}"] if batch else [])])
    if dry_run:
        from smoe_cli import pipeline

        with open_watcher() as watcher:
            pipeline.check_train(recipe, resume=resume, watcher=watcher)
        show_plan(recipe, "train", as_json)
        return
    from smoe_cli import pipeline
    from smoe_cli.config import FRAMES_PER_S

    try:
        with open_watcher() as watcher:
            report = pipeline.train(recipe, resume=resume, watcher=watcher)
    except Interrupted as error:
        if speaks():
            raise
        raise typer.Exit(error.exit_code) from None
    if not speaks():
        return
    if as_json:
        print_json(report)
        return
    resumed = "" if report.resumed_from is None else f", resumed from step {report.resumed_from:,}"
    say(f"finished: {report.steps:,} steps in {report.minutes:.1f} min{resumed}")
    print_table(("parameters", "count"), report.parameters.items())
    print_table(("route", "validation loss"), report.validation.items())
    if report.experts:
        print_table(
            ("expert", "updates", "share", "audio, h", "tokens"),
            [
                (
                    f"{name} (frozen)" if given.frozen else name,
                    given.updates,
                    f"{given.share:.1%}",
                    f"{given.frames / FRAMES_PER_S / 3600:.2f}",
                    given.tokens,
                )
                for name, given in report.experts.items()
            ],
        )
    for name in report.starved:
        say(f"warning: expert `{name}` starved: it had less than a fifth of an even share of its stack's updates or frames")
    if report.stopped_early:
        say("note: `train.patience` ended it, as the validation loss fell no more")
    if report.averaged:
        say(f"note: the model is the mean of the checkpoints of steps {', '.join(map(str, report.averaged))}")
    if report.left_out:
        left_out = ", ".join(map(str, report.left_out))
        rest = "" if report.averaged else "; none is left, so that the model has the last weights"
        say(f"warning: checkpoints that cannot be read are not in the average: those of steps {left_out}{rest}")
    if report.ctc_skipped:
        say(f"note: CTC skipped {report.ctc_skipped:,} utterances in all, as they have fewer encoder frames than tokens")
    say(report.checkpoint)
