"""Parts of a model by name: what `train.freeze` holds still, and what `train.lr_factors` moves faster or slower."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

from smoe_cli.errors import ConfigError
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.routing import DENSE, RoutingPlan
from smoe_cli.tags import Route
from smoe_cli.train_settings import TrainSettings

PREFIXES = {
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
    "subsampler": ("encoder.subsampler.",),
    "embeddings": ("decoder.embedding.", "decoder.output.", "decoder.positions."),
    "ctc": ("ctc.",),
}
"""Part -> how the names of its weights begin."""
EXPERTS, SHARED = "experts", "shared"
"""All networks that a tag chooses; and everything else, which serves every route."""


def parts_of(model: SpeechToText) -> dict[str, set[str]]:
    """Every part that can be named -> the names of its weights.

    An expert has the name of its stack and its own, `decoder.translate`, and its own alone, which is then that of both stacks. Names
    that stand for something else, such as `encoder`, mean that, whatever experts are called.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: dict[str, set[str]] = defaultdict(set)
    for stack, number, network, moe in model.routed_networks():
        for expert in moe.names if moe.names != (DENSE,) else ():
            begin = f"{stack}.layers.{number}.{network}.experts.{expert}."
            own = {name for name in names if name.startswith(begin)}
            chosen[f"{stack}.{expert}"] |= own
            chosen[expert] |= own
    experts = set().union(*chosen.values())
    parts = {part: {name for name in names if name.startswith(begins)} for part, begins in PREFIXES.items()}
    parts |= {EXPERTS: experts, SHARED: set(names) - experts}
    return {part: found for part, found in (chosen | parts).items() if found}


def weights_named(model: SpeechToText, name: str, setting: str) -> set[str]:
    """Names of the weights that one name of a setting means: a part, or a pattern of weights such as `encoder.layers.0.*`.

    Raises:
        ConfigError: If it means none, with the list of the parts.
    """
    parts = parts_of(model)
    found = parts.get(name) or {weight for weight, _ in model.named_parameters() if fnmatchcase(weight, name)}
    if not found:
        raise ConfigError(
            f"`{setting}` names `{name}`, which is no part of the model; parts: {', '.join(parts)}",
            "correct the name, or write a pattern of weights, for example `encoder.layers.0.*`",
        )
    return found


def freeze(model: SpeechToText, names: Iterable[str]) -> None:
    """Let the weights of parts be as they are: they get neither gradients nor state of the optimiser.

    Raises:
        ConfigError: If a part does not exist.
    """
    still: set[str] = set().union(*(weights_named(model, name, "train.freeze") for name in names))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in still)


def frozen_experts(model: SpeechToText) -> set[str]:
    """Experts, as in `decoder.translate`, that are held still, every weight of them."""
    moving = {name for name, weight in model.named_parameters() if weight.requires_grad}
    stacks = {stack for stack, *_ in model.routed_networks()}
    return {part for part, found in parts_of(model).items() if part.partition(".")[0] in stacks and "." in part and not moving & found}


def check_all_learn(model: SpeechToText, plan: RoutingPlan, settings: TrainSettings) -> None:
    """Refuse to hold so much still that a route would teach the model nothing.

    Raises:
        ConfigError: Naming the route.
    """
    parts = parts_of(model)
    moving = {name for name, weight in model.named_parameters() if weight.requires_grad} - parts.get("ctc", set())
    for text in plan.routes:
        route = Route.parse(text)
        own = {f"encoder.{plan.encoder.expert(route)}", f"decoder.{plan.decoder.expert(route)}"}
        if not moving & parts[SHARED].union(*(parts.get(expert, set()) for expert in own)):
            raise ConfigError(
                f"`train.freeze` ({', '.join(settings.freeze)}) holds every weight of route `{text}` still: nothing would learn from it",
                "freeze less, or take the task, language or band out of the recipe",
            )


def factors_of(model: SpeechToText, settings: TrainSettings) -> dict[str, float]:
    """Weight -> factor on its learning rate; a weight that several names of `train.lr_factors` mean has their product.

    Raises:
        ConfigError: If a part does not exist.
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for part, factor in settings.lr_factors.items():
        for name in weights_named(model, part, "train.lr_factors"):
            factors[name] *= factor
    return factors
