"""A checkpoint is a folder: weights, configuration, routing plan, tokenizer, and for training the exact position.

    model.safetensors   config.json   plan.json   bpe.model   tokenizer.json
    training.safetensors   training.json          (only in checkpoints that training can continue from)
    origin.json                                   (only if the weights come from another model)

Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smoe_cli.config import (
    CHECKPOINT_CONFIG,
    FEATURE_HANDLING,
    FRAMES_PER_S,
    ROUTING_KEYS,
    Config,
    FeatureSettings,
    ModelSettings,
    differences,
)
from smoe_cli.errors import CheckpointError, ConfigError, DataError, SmoeError
from smoe_cli.layout import DIGESTS, EXPORT_CARD, WEIGHTS, Layout, model_digest
from smoe_cli.model.experts import SHARED
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText
from smoe_cli.records import Origin, file_digest, whole_folder, write_text_atomically
from smoe_cli.routing import RoutingPlan, make_plan
from smoe_cli.tags import Route
from smoe_cli.tokenizer import Tokenizer, open_tokenizer

CONFIG, PLAN, ORIGIN = CHECKPOINT_CONFIG, "plan.json", "origin.json"
TRAINING_TENSORS, TRAINING_STATE = "training.safetensors", "training.json"
ELSEWHERE = {"preset", "dropout", *(name for name in ModelSettings.model_fields if name.endswith(ROUTING_KEYS))}
"""Settings of a model that its plan or other settings say too, or that only training knows."""


def build_model(settings: ModelSettings, features: FeatureSettings, plan: RoutingPlan, vocab_size: int) -> SpeechToText:
    """The only place where configuration meets the model."""
    for name in (*plan.encoder.experts, *plan.decoder.experts):
        if name == SHARED or hasattr(torch.nn.ModuleDict(), name):
            user = "the expert that every route shares" if name == SHARED else "torch"
            raise ConfigError(
                f"an expert cannot be named `{name}`: {user} uses that word itself",
                f"name it otherwise in `model.encoder_expert_groups` or `decoder_expert_groups`, for example {{{name}-expert: [{name}]}}",
            )
    return SpeechToText(
        Dimensions(
            vocab_size=vocab_size,
            mel_bins=features.mel_bins,
            dim=settings.d_model,
            heads=settings.heads,
            encoder_layers=settings.encoder_layers,
            decoder_layers=settings.decoder_layers,
            encoder_hidden_dim=settings.ffn_dim,
            decoder_hidden_dim=settings.ffn_dim,
            encoder_experts=plan.encoder.experts,
            decoder_experts=plan.decoder.experts,
            subsampling=settings.subsampling,
            subsampling_channels=settings.subsampling_channels,
            family=settings.family,
            encoder_positions=math.ceil(round((features.window_s or 0.0) * FRAMES_PER_S) / settings.subsampling),
            decoder_positions=settings.max_tokens or 0,
            encoder=settings.encoder,
            encoder_routed_layers=plan.encoder.layers,
            decoder_routed_layers=plan.decoder.layers,
            encoder_shared_hidden_dim=settings.encoder_shared_ffn_dim,
            decoder_shared_hidden_dim=settings.ffn_dim * (settings.decoder_ffn_scale - 1) or settings.decoder_shared_ffn_dim,
            conv_kernel=settings.conv_kernel,
            dropout=settings.dropout,
            tie_embeddings=settings.tie_embeddings,
            ctc=settings.ctc,
        )
    )


def on_meta(config: Config, plan: RoutingPlan, vocab_size: int) -> SpeechToText:
    """The model on the meta device: every shape, nothing allocated."""
    with torch.device("meta"):
        return build_model(config.model, config.features, plan, vocab_size)


@dataclass
class System:
    """A model with everything needed to use it."""

    model: SpeechToText
    config: Config
    plan: RoutingPlan
    tokenizer: Tokenizer
    folder: Path | None = None
    digest: str = ""
    """Which model it is, as `layout.model_digest` says; empty for one that was not loaded."""
    origin: Origin | None = None


@dataclass
class Parts:
    """A checkpoint without its weights."""

    config: Config
    plan: RoutingPlan
    tokenizer: Tokenizer
    origin: Origin | None


@dataclass
class Position:
    """Where training stands: tensors of the optimiser, and plain state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, system: System, position: Position | None = None) -> None:
    """Write a checkpoint whole or not at all: into a sibling folder, flushed to disk, then renamed.

    Raises:
        DataError: If the folder cannot be written or the disk is full; what was there before stays.
    """
    try:
        with whole_folder(folder) as temporary:
            weights = system.model.state_dict()
            if system.config.model.tie_embeddings:
                del weights["decoder.output.weight"]
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
            write_text_atomically(temporary / CONFIG, portable(system.config).model_dump_json(indent=2) + "\n")
            write_text_atomically(temporary / PLAN, system.plan.model_dump_json(indent=2) + "\n")
            system.tokenizer.save(temporary)
            if system.origin is not None:
                write_text_atomically(temporary / ORIGIN, system.origin.model_dump_json(indent=2) + "\n")
            if position is not None:
                save_file({name: tensor.contiguous() for name, tensor in position.tensors.items()}, temporary / TRAINING_TENSORS)
                write_text_atomically(temporary / TRAINING_STATE, json.dumps(position.state, indent=2) + "\n")
            for tensors in (WEIGHTS, TRAINING_TENSORS):
                if (temporary / tensors).exists():
                    # safetensors writes for the owner alone, whatever the umask.
                    shutil.copymode(temporary / CONFIG, temporary / tensors)
            digests = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
            write_text_atomically(temporary / DIGESTS, json.dumps(digests, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write checkpoint `{folder}`: {error}", "check the folder's rights and the free disk space") from error


def is_free(out: Path) -> bool:
    """Whether nothing would be lost if a folder were written there."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def check_free(out: Path, how: Literal["slim", "convert"]) -> None:
    """Refuse to replace anything but what the same command wrote earlier.

    Raises:
        ConfigError: If something else lies there, or in there.
    """
    if is_free(out):
        return
    try:
        earlier = read_parts(out).origin
    except SmoeError as error:
        raise ConfigError(f"`{out}` is there already, and `smoe {how}` did not write it", "name a new folder with --out") from error
    if earlier is None or earlier.how != how:
        raise ConfigError(f"`{out}` is a model that `smoe {how}` did not write", "name a new folder with --out")
    check_all_own(out, {DIGESTS, *json.loads((out / DIGESTS).read_text(encoding="utf-8"))}, how)


def check_all_own(out: Path, own: Collection[str], how: str) -> None:
    """Refuse to replace a folder into which somebody has put files.

    Args:
        own: Names of those that the command writes.

    Raises:
        ConfigError: If there is another.
    """
    others = sorted(path.name for path in out.iterdir() if path.name not in own)
    if others:
        raise ConfigError(
            f"`{out}` holds `{others[0]}`, which `smoe {how}` did not write and would remove with the folder",
            "move it elsewhere, or name a new folder with --out",
        )


def portable(config: Config) -> Config:
    """The configuration as it is handed on: it names no folder of the machine that trained the model."""
    data = config.data.model_copy(update={"root": None})
    # `origin.json` says what the model started from.
    augment = config.train.augment
    places = {name: Path(folder.name) for name in ("rooms", "noise") if (folder := getattr(augment, name)) is not None}
    start: dict[str, Any] = {"init_from": None, "init_noise": 0.0, "init_experts": {}}
    train = config.train.model_copy(update=start | {"augment": augment.model_copy(update=places)})
    return config.model_copy(update={"exp_dir": Path("exp"), "data": data, "train": train})


def load(folder: Path) -> System:
    """Read a checkpoint.

    Raises:
        CheckpointError: If it is missing, incomplete or damaged, or its parts do not belong together.
    """
    parts = read_parts(folder, tensors=True)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    model = on_meta(parts.config, parts.plan, parts.tokenizer.vocab_size)
    load_weights(model, weights, parts.config.model.tie_embeddings, str(folder))
    return System(model.eval(), parts.config, parts.plan, parts.tokenizer, folder, model_digest(folder), parts.origin)


def load_trained(config: Config) -> System:
    """Read the model that a recipe has trained.

    Raises:
        CheckpointError: As `load`; or if the recipe has changed since, so that it would train another model.
    """
    layout = Layout.of(config)
    system = load(layout.checkpoint())
    if changed := _unlike(system, config, layout.tokenizer):
        raise CheckpointError(
            f"`{system.folder}` is no model of this recipe as it stands: {'; '.join(changed)}",
            "set these back, train anew, or take the model with its own settings: --checkpoint and --out",
        )
    return system


def _unlike(system: System, config: Config, tokenizer: Path) -> list[str]:
    """What a recipe says otherwise than the model that it trained, as far as it changes the model.

    In which order it names things does not, nor routes that had no training data. Dimensions and features are not the recipe's own where
    the model began as another one, which only `smoe train --init-from` was told.
    """
    routes = [Route.parse(name) for name in system.plan.routes]
    lost = [str(route) for route in routes if route not in config.routes()]
    if lost:
        return [f"its routes {', '.join(lost)}: the recipe has none of them"]
    found = _moved(system, make_plan(config, routes), routes)
    if config.train.init_from is not None or system.origin is None:
        sections = (
            ("model", system.config.model, config.model, ELSEWHERE),
            ("features", system.config.features, config.features, FEATURE_HANDLING),
        )
        for section, before, now, free in sections:
            found += differences(before.model_dump(exclude=free), now.model_dump(exclude=free), section)
    # The model has its own; one that cannot be opened is no other.
    with suppress(CheckpointError):
        if other := system.tokenizer.difference(open_tokenizer(tokenizer)):
            found.append(f"`{tokenizer}`: {other}")
    return found


def _moved(system: System, plan: RoutingPlan, routes: Sequence[Route]) -> list[str]:
    """Where another plan has other experts for a model's routes, or other layers that choose."""
    found, sizes = [], system.config.model
    stacks = (
        ("encoder", system.plan.encoder, plan.encoder, sizes.encoder_layers),
        ("decoder", system.plan.decoder, plan.decoder, sizes.decoder_layers),
    )
    for stack, before, now, depth in stacks:
        moved = [route for route in routes if before.expert(route) != now.expert(route)]
        if moved:
            found.append(f"expert of the {stack} for {moved[0]}: {before.expert(moved[0])} -> {now.expert(moved[0])}")
        old, new = (sorted(range(depth) if one.layers is None else one.layers) for one in (before, now))
        if old != new and not moved:
            found.append(f"layers of the {stack} that choose: {old} -> {new}")
    return found


def read_start(folder: Path) -> Parts:
    """The checkpoint that a recipe starts from, without its tensors.

    Raises:
        CheckpointError: If it is missing, incomplete or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"`train.init_from` names `{folder}`, which {'is no folder' if folder.exists() else 'does not exist'}",
            "make it first (of a model of another library: `smoe convert`), or name another checkpoint",
        )
    try:
        return read_parts(folder)
    except CheckpointError as error:
        raise CheckpointError(f"`train.init_from`: {error.message}", error.hint) from error


def read_parts(folder: Path, tensors: bool = False) -> Parts:
    """Read everything of a checkpoint but its tensors.

    Args:
        folder: The checkpoint.
        tensors: Whether to check the bytes of its tensors too.

    Raises:
        CheckpointError: If it is missing, incomplete or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint `{folder}`", "run `smoe train` first, or name the folder of another checkpoint")
    _verify(folder, tensors)
    try:
        return Parts(
            config=Config.model_validate_json((folder / CONFIG).read_text(encoding="utf-8")),
            plan=RoutingPlan.model_validate_json((folder / PLAN).read_text(encoding="utf-8")),
            tokenizer=open_tokenizer(folder),
            origin=Origin.model_validate_json((folder / ORIGIN).read_text(encoding="utf-8")) if (folder / ORIGIN).exists() else None,
        )
    except (OSError, ValidationError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    found = error.errors() if isinstance(error, ValidationError) else []
    why = "; ".join(": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"]))) for item in found) or error
    return CheckpointError(f"checkpoint `{folder}` is damaged: {why}", "use another checkpoint, or train again")


def load_weights(model: SpeechToText, weights: dict[str, Tensor], tied: bool, where: str) -> None:
    """Put weights into a model of exactly that shape.

    Raises:
        CheckpointError: Naming a weight that is missing, unknown, or of another shape or type.
    """
    if tied:
        weights = {**weights, "decoder.output.weight": weights["decoder.embedding.weight"]}
    wanted = model.state_dict()
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    shapes = [name for name in wanted if name in weights and _kind(wanted[name]) != _kind(weights[name])]
    if missing or unknown or shapes:
        first = (
            f"weight `{missing[0]}` is missing"
            if missing
            else f"weight `{unknown[0]}` is unknown"
            if unknown
            else f"weight `{shapes[0]}` is {_kind(weights[shapes[0]])}, expected {_kind(wanted[shapes[0]])}"
        )
        raise CheckpointError(
            f"weights of `{where}` do not fit its configuration, plan and tokenizer: {first} "
            f"({len(missing) + len(unknown) + len(shapes)} in all)",
            "use a checkpoint whose parts were saved together",
        )
    model.load_state_dict(weights, assign=True)
    if tied:
        model.decoder.output.weight = model.decoder.embedding.weight


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def load_position(folder: Path) -> Position:
    """Read where training stood. The folder has been verified by `load`.

    Raises:
        CheckpointError: If the checkpoint was not made to continue training from.
    """
    try:
        state = json.loads((folder / TRAINING_STATE).read_text(encoding="utf-8"))
        return Position(load_file(folder / TRAINING_TENSORS), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint `{folder}` holds no training position: {error}", "continue from a checkpoint in `checkpoints/`"
        ) from error


def _what_else(folder: Path) -> str:
    """What to do about a folder that is no checkpoint."""
    if (folder / EXPORT_CARD).is_file():
        return "it is an exported model, which `smoe_cli.decoding.onnx.OnnxModel` runs; name the checkpoint that it was made from"
    if (folder / CONFIG).is_file() and not (folder / PLAN).exists():
        return f"if it is a model of transformers: `smoe convert {folder} --out MODEL`"
    inside = next((path for path in (folder / "final", folder / "model" / "final") if path.is_dir()), None)
    return f"name `{inside}`" if inside else "name a folder that `smoe train` wrote, for example exp/model/final"


def _verify(folder: Path, tensors: bool) -> None:
    """Every file is as it was written: a torn or flipped byte is found before anything is computed."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = f"it has no `{DIGESTS}`" if isinstance(error, FileNotFoundError) else str(error)
        raise CheckpointError(f"`{folder}` is no checkpoint or an incomplete one: {why}", _what_else(folder)) from error
    unnamed = [name for name in (WEIGHTS, CONFIG, PLAN) if not isinstance(digests, dict) or name not in digests]
    if unnamed:
        raise CheckpointError(f"`{folder}` is no checkpoint: `{DIGESTS}` does not name `{unnamed[0]}`", _what_else(folder))
    for name, digest in digests.items():
        path = folder / name
        if name in (WEIGHTS, TRAINING_TENSORS) and not tensors:
            continue
        if not path.is_file() or file_digest(path) != digest:
            matter = "is not as it was written" if path.exists() else "is missing"
            raise CheckpointError(f"checkpoint `{folder}` is damaged: `{name}` {matter}", "use another checkpoint, or train again")
