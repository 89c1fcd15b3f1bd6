"""How large a model is and what it costs, of a recipe, a preset or a checkpoint, without allocating its weights."""

from __future__ import annotations

from pathlib import Path

from smoe_cli.checkpoint import on_meta, read_parts, read_start
from smoe_cli.config import Config
from smoe_cli.model.cost import multiply_adds_per_second
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.records import ParameterReport
from smoe_cli.routing import RoutingPlan, make_plan


def of_recipe(config: Config) -> ParameterReport:
    """Of the model that a recipe would train, with an expert for every tag that the recipe allows.

    Raises:
        ConfigError: If the model cannot be built.
        CheckpointError: If `train.init_from` is no checkpoint.
    """
    return _count(config, make_plan(config), _vocab_size(config))


def _vocab_size(config: Config) -> int:
    """Of the tokenizer that the recipe will have: a checkpoint's, with the guiding tokens that it lacks, or one that it learns."""
    source = config.train.init_from
    if source is None:
        return config.tokenizer.vocab_size
    given = read_start(source).tokenizer
    needed = {token for route in config.routes() for token in given.tokens_of(route)}
    return given.vocab_size + len(needed - set(given.guiding_tokens))


def of_checkpoint(folder: Path) -> ParameterReport:
    """Of a trained model; its tensors are not read.

    Raises:
        CheckpointError: If it is missing, incomplete or damaged.
    """
    parts = read_parts(folder)
    return _count(parts.config, parts.plan, parts.tokenizer.vocab_size)


def _padded(config: Config) -> list[float]:
    """How long the audio is to which a model extends all audio, if it does."""
    return [config.features.window_s] if config.features.pad_to_window and config.features.window_s is not None else []


def _count(config: Config, plan: RoutingPlan, vocab_size: int) -> ParameterReport:
    model = on_meta(config, plan, vocab_size)
    counts = count_parameters(model)
    return ParameterReport(
        preset=config.model.preset,
        vocab_size=vocab_size,
        total=counts.pop("total"),
        active=counts.pop("active"),
        ctc_head=counts.pop("ctc_head"),
        experts=counts,
        macs_per_second=multiply_adds_per_second(model, *_padded(config)),
    )
