"""A model starts from the weights of another: a dense feed-forward network becomes every expert, and experts can be added.

Source: sparse upcycling, arXiv:2212.05055, here without a gate to learn: which expert an utterance takes is known. So the
model that comes out computes at step 0 what the one that went in computes, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from smoe_cli import checkpoint
from smoe_cli.checkpoint import Parts, System
from smoe_cli.config import FEATURE_HANDLING, ROUTING_KEYS, Config, ModelSettings
from smoe_cli.errors import CheckpointError, ConfigError
from smoe_cli.layout import model_digest
from smoe_cli.records import Origin
from smoe_cli.routing import RoutingPlan, StackPlan
from smoe_cli.tags import Route
from smoe_cli.tokenizer import Tokenizer
from smoe_cli.train_settings import TrainSettings
from smoe_cli.watch import Watcher

EXPERTS = ".experts."
"""In the name of a weight, between the layer that holds experts by name and the name of one."""
FREE = {"preset", "dropout", "ctc"} | {name for name in ModelSettings.model_fields if name.endswith(ROUTING_KEYS)}
"""Settings of a model that may differ from the checkpoint's; every other one says what the shared weights are."""
VOCABULARY_WEIGHTS = ("decoder.embedding.weight", "decoder.output.weight", "ctc.weight", "ctc.bias")
"""Weights with one row for each piece of the vocabulary."""


def start_from(folder: Path, system: System, watcher: Watcher) -> None:
    """Give a new system the weights of a checkpoint, as its `train.init_*` settings say; it then remembers its origin.

    - Shared weights, those of shared experts too, are taken as they are.
    - An expert that the checkpoint has too is taken as it is; a new one starts as a copy of the nearest of that network: the
      first of those that share the most tags with it. `train.init_experts` names another, `train.init_noise` adds noise.
    - A layer that does not choose is a network with one expert, `dense`, and nothing else.
    - A guiding token that was added to the tokenizer starts as a copy of the first one of its kind.
    - A CTC head that the checkpoint lacks keeps its fresh weights.

    Raises:
        CheckpointError: If the folder is no checkpoint, or its shared weights or its tokenizer are those of another model.
        ConfigError: If `train.init_experts` names an expert that is not there.
    """
    parts = checkpoint.read_start(folder)
    check_fits(folder, parts, system.config, system.tokenizer)
    donor = checkpoint.load(folder)
    given, fresh = donor.model.state_dict(), system.model.state_dict()
    settings = system.config.train
    sources = _sources(fresh, given, settings.init_experts, _shared(system.plan, donor.plan))
    weights = {name: value for name, value in given.items() if EXPERTS not in name and not name.startswith("ctc.")}
    for name in (name for name in fresh if name.startswith("ctc.")):
        weights[name] = given.get(name, fresh[name].cpu())
    rows = _vocabulary_rows(donor, system.config, system.tokenizer)
    for name in VOCABULARY_WEIGHTS:
        if name in weights and len(rows) > len(weights[name]):
            weights[name] = weights[name][torch.tensor(rows)]
    for name in (name for name in fresh if EXPERTS in name):
        layer, expert, rest = _split(name)
        source = sources[layer][expert]
        weights[name] = given[f"{layer}{EXPERTS}{source}.{rest}"].clone()
        if source != expert and settings.init_noise:
            weights[name] += _noise(name, weights[name], settings)
    checkpoint.load_weights(system.model, weights, system.config.model.tie_embeddings, str(folder))
    system.origin = Origin(how="init", model=donor.digest, noise=settings.init_noise, asked=settings.init_experts, copies=_copies(sources))
    for line in _log(folder, donor, sources, settings):
        watcher.log(line)
    if len(rows) > donor.tokenizer.vocab_size:
        watcher.log(f"new guiding tokens: {' '.join(system.tokenizer.guiding_tokens[len(donor.tokenizer.guiding_tokens) :])}")
    if system.model.ctc is not None and donor.model.ctc is None:
        watcher.log("the checkpoint has no CTC head: it starts fresh")


def check_fits(folder: Path, parts: Parts, config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a checkpoint whose shared weights mean something else than the recipe's; no tensor is read.

    Raises:
        CheckpointError: Naming every difference.
    """
    old = {f"model.{key}": value for key, value in parts.config.model.model_dump(exclude=FREE).items()}
    new = {f"model.{key}": value for key, value in config.model.model_dump(exclude=FREE).items()}
    free = FEATURE_HANDLING | {"pad_to_window"}
    old |= {f"features.{key}": value for key, value in parts.config.features.model_dump(exclude=free).items()}
    new |= {f"features.{key}": value for key, value in config.features.model_dump(exclude=free).items()}
    changed = [key for key in new if old[key] != new[key]]
    if changed:
        cure = " ".join(f"--set {key}={'null' if old[key] is None else str(old[key]).lower()}" for key in changed)
        raise CheckpointError(
            f"the model cannot start from `{folder}`, which differs in "
            + "; ".join(f"{key}: {old[key]!r} there, {new[key]!r} here" for key in changed),
            f"put the checkpoint's settings into the recipe ({cure}), or name another checkpoint",
        )
    if not tokenizer.continues(parts.tokenizer):
        raise CheckpointError(
            f"the model cannot start from `{folder}`, which has another tokenizer ({parts.tokenizer.difference(tokenizer)}): "
            "the same ids would mean other text",
            f"use its tokenizer: `smoe tokenize --from {folder}`, then train again",
        )


def differences(origin: Origin | None, settings: TrainSettings) -> list[str]:
    """What a recipe says otherwise about the start than the run that it would continue; empty: nothing.

    The checkpoint that a run started from is not needed any more; where it lies still, it must be the same model.
    """
    folder = settings.init_from
    began = None if origin is None or origin.how != "init" else origin
    if began is None or folder is None:
        again = f"`{folder}`" if folder else "null (which it was given with `train.init_from` or --init-from)"
        return [] if began is None and folder is None else [f"train.init_from: {_told(began)} -> {again}"]
    found = []
    if folder.is_dir() and model_digest(folder) != began.model:
        found.append(f"train.init_from: {_told(began)} -> `{folder}`, which is model {model_digest(folder)}")
    if began.noise != settings.init_noise:
        found.append(f"train.init_noise: {began.noise!r} -> {settings.init_noise!r}")
    if began.asked != settings.init_experts:
        found.append(f"train.init_experts: {began.asked!r} -> {settings.init_experts!r}")
    return found


def _told(origin: Origin | None) -> str:
    return "null" if origin is None else f"model {origin.model}"


def _split(name: str) -> tuple[str, str, str]:
    """Name of an expert's weight -> layer, expert, and the weight's name inside the expert."""
    layer, _, inside = name.partition(EXPERTS)
    expert, _, rest = inside.partition(".")
    return layer, expert, rest


def _stack_of(layer: str) -> str:
    """`encoder` or `decoder`."""
    return layer.partition(".")[0]


def _experts_by_layer(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Layer -> its experts, in their order, of a model whose weights have these names."""
    found: dict[str, dict[str, None]] = {}
    for layer, expert, _ in (_split(name) for name in names if EXPERTS in name):
        found.setdefault(layer, {})[expert] = None
    return {layer: list(experts) for layer, experts in found.items()}


def _shared(plan: RoutingPlan, given: RoutingPlan) -> Callable[[str, str, str], int]:
    """(stack, expert of the new model, expert of the checkpoint) -> on how many axes they serve the same value."""

    @cache
    def tags(new: bool, stack: str, name: str) -> dict[str, set[str]]:
        of = plan if new else given
        chosen: StackPlan = getattr(of, stack)
        return chosen.tags(name, [Route.parse(route) for route in of.routes]) if name in chosen.experts else {}

    def count(stack: str, expert: str, source: str) -> int:
        theirs = tags(False, stack, source)
        return sum(not values.isdisjoint(theirs.get(axis, ())) for axis, values in tags(True, stack, expert).items())

    return count


def _sources(
    fresh: Mapping[str, object], given: Mapping[str, object], asked: Mapping[str, str], shared: Callable[[str, str, str], int]
) -> dict[str, dict[str, str]]:
    """Layer -> expert of the new model -> expert of the checkpoint that it takes its weights from.

    Args:
        shared: As `_shared` gives it.
    """
    wanted, there = _experts_by_layer(fresh), _experts_by_layer(given)
    new = list(dict.fromkeys(name for layer, names in wanted.items() for name in names if name not in there[layer]))
    known = list(dict.fromkeys(name for names in there.values() for name in names))
    for expert, source in asked.items():
        if expert not in new:
            raise ConfigError(
                f"`train.init_experts` names `{expert}`, which is no new expert; new are: {', '.join(new) or 'none'}",
                "an expert that the checkpoint has keeps its weights",
            )
        if source not in known:
            raise ConfigError(
                f"`train.init_experts` names `{source}`, which the checkpoint does not have; it has: {', '.join(known)}", "correct the name"
            )

    def choose(layer: str, expert: str) -> str:
        if expert in there[layer]:
            return expert
        if asked.get(expert) in there[layer]:
            return asked[expert]
        return max(there[layer], key=lambda source: shared(_stack_of(layer), expert, source))

    return {layer: {expert: choose(layer, expert) for expert in names} for layer, names in wanted.items()}


def _differ(sources: Mapping[str, Mapping[str, str]], stack: str) -> bool:
    """Whether not every layer of a stack takes the same experts from the same ones."""
    found = [origins for layer, origins in sources.items() if _stack_of(layer) == stack]
    return any(origins != found[0] for origins in found)


def _copies(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Experts that start as copies of another: by stack, and by network in a stack whose layers differ."""
    return {
        f"{layer if _differ(sources, _stack_of(layer)) else _stack_of(layer)}.{expert}": source
        for layer, origins in sources.items()
        for expert, source in origins.items()
        if source != expert
    }


def _noise(name: str, weight: Tensor, settings: TrainSettings) -> Tensor:
    """Noise for one weight, the same for the same seed and name whatever else the model has."""
    digest = hashlib.sha256(f"{settings.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return settings.init_noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)


def _vocabulary_rows(donor: System, config: Config, tokenizer: Tokenizer) -> list[int]:
    """For every piece of the tokenizer, the piece of the checkpoint whose rows it takes.

    A model never writes a guiding token, and has learned so; a fresh row could win against real text.
    """
    task, language = donor.tokenizer.like(Route.parse(donor.plan.routes[0]))
    tasks = {f"<{name}>" for name in config.tasks}
    added = tokenizer.guiding_tokens[len(donor.tokenizer.guiding_tokens) :]
    return [*range(donor.tokenizer.vocab_size), *(task if token in tasks else language for token in added)]


def _log(folder: Path, donor: System, sources: Mapping[str, Mapping[str, str]], settings: TrainSettings) -> Iterator[str]:
    """What was taken from where, for people."""
    yield f"starting from `{folder}` (model {donor.digest})"
    if settings.init_noise and not _copies(sources):
        yield "`train.init_noise` does nothing: no expert is new, and only copies have noise"
    given = _experts_by_layer(donor.model.state_dict())
    lines: dict[tuple[str, str], dict[str, None]] = {}
    for layer, origins in sources.items():
        said = [f"`{expert}` as it is" if expert == source else f"`{expert}` as a copy of `{source}`" for expert, source in origins.items()]
        if settings.init_noise and any(expert != source for expert, source in origins.items()):
            said.append(f"copies with noise of {settings.init_noise:g} of each weight's standard deviation")
        unused = [expert for expert in given[layer] if expert not in origins.values()]
        said += [f"not taken: {', '.join(f'`{expert}`' for expert in unused)}"] if unused else []
        lines.setdefault((_stack_of(layer), "; ".join(said)), {})[layer.split(".")[2]] = None
    for (stack, line), layers in lines.items():
        where = f", layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}" if _differ(sources, stack) else ""
        yield f"{stack} experts{where}: {line}"
