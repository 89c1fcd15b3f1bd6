"""The part of the front door that hands a trained model on: smaller, in other formats, or counted. `pipeline` has it too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smoe_cli.config import Config
from smoe_cli.errors import ConfigError
from smoe_cli.records import ConvertReport, Export, ParameterReport, SlimReport
from smoe_cli.tags import EVERY_ROUTE, Choice, Route
from smoe_cli.watch import Watcher


def slim(checkpoint: Path, *, out: Path, choice: Choice = EVERY_ROUTE) -> SlimReport:
    """Write the model of one route as a dense checkpoint with the same output. See `smoe_cli.slimming.slim`."""
    from smoe_cli import slimming

    return slimming.slim(checkpoint, out, choice)


def check_slim(checkpoint: Path, *, out: Path, choice: Choice = EVERY_ROUTE) -> Route:
    """The route that `slim` would write; arguments and errors as of `slim`, but nothing is written."""
    from smoe_cli import slimming

    return slimming.check(checkpoint, out, choice)


def export(
    checkpoint: Path,
    *,
    out: Path,
    choice: Choice = EVERY_ROUTE,
    int8: bool = False,
    watcher: Watcher | None = None,
) -> Export:
    """Write the model of one route as ONNX graphs that compute what torch computes. See `smoe_cli.exporting.export`."""
    from smoe_cli import exporting

    return exporting.export(checkpoint, out, choice, int8, watcher)


def check_export(checkpoint: Path, *, out: Path, choice: Choice = EVERY_ROUTE) -> Route:
    """The route that `export` would write; arguments and errors as of `export`, but nothing is exported or written."""
    from smoe_cli import exporting

    return exporting.check(checkpoint, out, choice)


def convert(
    folder: Path, *, out: Path, task: str = "transcribe", langs: Sequence[str] = (), source_lang: str | None = None
) -> ConvertReport:
    """Write the model of a transformers folder as a checkpoint with the same output. See `smoe_cli.conversion.convert`."""
    from smoe_cli.conversion import convert as conversion

    return conversion.convert(folder, out, task, langs, source_lang)


def params(config: Config | None, *, checkpoint: Path | None = None) -> ParameterReport:
    """Count a model's parameters and multiply-adds without allocating it. See `smoe_cli.counting`.

    Args:
        config: The recipe; None: there is a checkpoint.
        checkpoint: A trained model, which is counted instead.
    """
    from smoe_cli import counting

    if checkpoint is not None:
        return counting.of_checkpoint(checkpoint)
    if config is None:
        raise ConfigError("neither a recipe nor a checkpoint is named", "change into a recipe folder, or name a preset or a checkpoint")
    return counting.of_recipe(config)
