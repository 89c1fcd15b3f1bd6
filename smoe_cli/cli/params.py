"""`smoe params`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table, say


def params(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    preset: options.Preset = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FOLDER", exists=True, help="A trained model.", show_default="the recipe's model"),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Count parameters, in all, active for one utterance, and of each expert, and multiply-adds per second of audio.

    Of the recipe's model, of a preset at paper scale (vocabulary of 40,000, two tasks, two bands), or of a checkpoint. No weights are
    allocated.

    Checks that the model can be built; needs no data. To count the recipe's model as another preset, `--set model.preset=NAME`.

    Multiply-adds are those of encoder and decoder for an utterance of 10 s (extended with silence where the model extends all, as Whisper
    does) and 4 tokens per second of audio, decoded greedily; the auxiliary CTC head is not part of them, nor of the total.

    Example: smoe params --preset encdec-smoe
    """
    from smoe_cli.errors import ConfigError
    from smoe_cli.recipe import preset_config

    named = [flag for flag, value in (("--config", config), ("--preset", preset), ("--checkpoint", checkpoint)) if value is not None]
    if len(named) > 1:
        raise ConfigError(
            f"{' and '.join(named)} name different models", "name one; for a recipe's model as another preset, --set model.preset=NAME"
        )
    if checkpoint is not None and overrides:
        raise ConfigError(f"`--set {overrides[0]}` cannot change a trained model", "leave it out")
    recipe = None
    if preset is not None:
        recipe = preset_config(preset, overrides or ())
    elif checkpoint is None:
        recipe = options.load_recipe(config, overrides)
    from smoe_cli import pipeline

    report = pipeline.params(recipe, checkpoint=checkpoint)
    if as_json:
        print_json(report)
        return
    rows = [("total", report.total), ("active for one utterance", report.active)]
    rows += [(f"expert {name}", count) for name, count in report.experts.items()]
    rows += [("CTC head, not in the total", report.ctc_head)]
    print_table(("parameters", "count"), rows, title=f"{checkpoint or report.preset}, vocabulary {report.vocab_size:,}")
    say(f"multiply-adds per second of audio: {report.macs_per_second / 1e6:,.0f} million")
