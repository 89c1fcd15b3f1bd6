"""What a recipe says of training: one typed field, one sentence, one check."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from smoe_cli.corpus_settings import Settings

NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE]-?[0-9]+)?"
MOVING = re.compile(rf"({NUMBER}) to ({NUMBER}) over ([1-9][0-9]*) steps")
WATCHING = {"workers", "sample_utterances", "log_every", "tensorboard", "explosions"}
"""Settings of how a run is fed and watched: on them depends neither what a step computes, nor how, nor in how much memory."""
LENGTH = {"max_steps", "validate_every", "validation_utterances", "patience"}
"""Settings of when a run ends and when it is validated: neither how a step computes, nor its memory, depends on them."""
MEANS = {"threads", "shard", "loss_chunk", "activation_checkpointing", "compile", "memory_share"}
"""Settings of the means: time and memory of a step depend on them, and of what it computes the last digits at most (and with `compile`, on
CPUs, what dropout draws). Only before the first step does `memory_share` decide more, with `batch_s: auto`: how large batches are."""


def value_at(value: float | str, step: int) -> float:
    """A number, or at a step one that moves on a line: `1 to 5 over 20000 steps`, and then stays."""
    if not isinstance(value, str):
        return value
    start, end = (float(number) for number in _moving(value)[:2])
    return start + (end - start) * min(1.0, step / moves_until(value))


def moves_until(value: float | str) -> int:
    """The step from which on a value stays as it is; 0: it does not move."""
    return int(_moving(value)[2]) if isinstance(value, str) else 0


def _moving(value: str) -> tuple[str, ...]:
    found = MOVING.fullmatch(value)
    if found is None:
        raise ValueError(f"`{value}` is neither a number nor of the form `1 to 5 over 20000 steps`")
    return found.groups()


def _check_values(value: float | str, fits: Callable[[float], bool], bound: str) -> None:
    """Refuse a value that does not fit at its start or its end."""
    for number in (value_at(value, 0), value_at(value, moves_until(value))):
        if not fits(number):
            raise ValueError(
                f"`{value}` must be {bound}, at its start and its end" if isinstance(value, str) else f"{number:g} must be {bound}"
            )


class AugmentSettings(Settings):
    """What is done to the audio of training cuts, drawn anew for each batch; narrowband cuts stay narrowband. By default nothing."""

    speeds: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(
        [1.0], min_length=1, description="One is drawn for each cut, pitch and all; usual: `[0.9, 1.0, 1.1]`."
    )
    rooms: Path | None = Field(None, description="Folder with impulse responses of rooms, from the recipe's folder.")
    rooms_share: float = Field(0.0, ge=0, le=1, description="Share of the cuts that are heard in one of them.")
    noise: Path | None = Field(None, description="Folder with recordings of noise, from the recipe's folder.")
    noise_share: float = Field(0.0, ge=0, le=1, description="Share of the cuts that one of them is mixed into.")
    snr_db: tuple[float, float] = Field((5.0, 20.0), description="Speech beside noise: lowest and highest, drawn evenly.")

    @model_validator(mode="after")
    def _check(self) -> AugmentSettings:
        for name, folder, share in (("rooms", self.rooms, self.rooms_share), ("noise", self.noise, self.noise_share)):
            if (folder is None) != (share == 0.0):
                raise ValueError(f"`{name}` and `{name}_share` need each other: name a folder and a share above 0, or neither")
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"snr_db: the lowest, {self.snr_db[0]:g}, is above the highest, {self.snr_db[1]:g}")
        return self


class TrainSettings(Settings):
    """The training loop."""

    seed: int = Field(0, description="Seed of weights, batches, dropout and augmentation.")
    max_steps: int = Field(1000, gt=0, description="Optimiser steps.")
    batch_s: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        120.0,
        description="Seconds of audio in one batch, padding included; `auto`: as many as memory takes, found at the first start.",
    )
    memory_share: float = Field(0.7, gt=0, le=1, description="Of the memory that is free at the start, what `batch_s: auto` may use.")
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of layers and compute the rest again for the gradients: the same training bit for bit, in less "
        "memory, for one more forward pass of the layers.",
    )
    compile: bool = Field(
        False,
        description="Compile attention, convolutions and experts with torch.compile, once for batches of all shapes; needs a C++ compiler. "
        "On CPUs, padding is then computed too. The same training but for what dropout draws, and the last digits.",
    )
    shard: bool = Field(
        False,
        description="Leave to each of many processes its part of the weights, their gradients and the optimiser's state, and gather each "
        "expert and each layer when it runs; a single process holds all. The same training but for the last digits.",
    )
    max_utterances: int = Field(64, gt=0, description="Utterances in one batch at most.")
    accumulate: int = Field(
        1,
        gt=0,
        description="Batches of one route in each optimiser step; the loss is averaged over the tokens of all of them, so that the step is "
        "that of one batch as large as they are together, in the memory of one.",
    )
    turns_per_batch: int = Field(
        1,
        gt=0,
        description="Turns of routes that share a batch. 1: a batch has one route, and one expert of each stack works on all of it; more: "
        "equal parts of it are of consecutive turns, so that a step has several routes and moves several experts.",
    )
    loss_chunk: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Tokens or frames whose scores over the vocabulary are in memory at once; 0: those of the whole batch; `auto`: as many "
        "as have 512 MiB of them. The same loss but for the last digits; with a large vocabulary, 1024 saves most of the memory of a step.",
    )
    temperature: float | str = Field(
        1.0,
        description="1: routes drawn by their size; larger: more evenly. `1 to 5 over 20000 steps` moves on a line, and then stays.",
    )
    route_weights: dict[str, float | str] = Field(
        {},
        # As it was called when only tasks had weights: checkpoints have it in their configuration.
        validation_alias=AliasChoices("route_weights", "task_weights"),
        description="A tag of routes, or several joined by `/` -> factor on how often such routes are drawn, e.g. "
        "`{nb: 2, translate/de: 0.5}`; where several name a route, their product. May move, as `temperature`.",
    )
    corpus_temperature: float = Field(
        1.0, ge=1, description="1: a route's corpora drawn by their size; larger: more evenly; `weight` of each corpus is a factor on that."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(200, gt=0, description="Steps of linear warm-up.")
    schedule: Literal["inverse-sqrt", "cosine"] = Field(
        "cosine", description="Learning rate after the warm-up; cosine reaches 0 at max_steps."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    clip_norm: float = Field(5.0, gt=0, description="Gradients are scaled down to this norm.")
    freeze: list[str] = Field(
        [],
        description="Parts that stay as they are: `encoder`, `decoder`, `subsampler`, `embeddings`, `ctc`, `experts` (all that tags "
        "choose), `shared` (all else), an expert (`translate`, `decoder.translate`), or a pattern of weights (`encoder.layers.0.*`).",
    )
    lr_factors: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Part, as in `freeze` -> factor on its learning rate; where several name a weight, their product."
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of probability spread over the vocabulary.")
    ctc_weight: float = Field(0.3, ge=0, le=1, description="Share of the CTC loss in the total.")
    augment: AugmentSettings = AugmentSettings()
    time_warp_frames: int = Field(
        0,
        ge=0,
        description="SpecAugment: how far a place in the middle may move in time; usual: 80; 0: none. "
        "Utterances of up to twice as many frames stay as they are.",
    )
    time_masks: int = Field(2, ge=0, description="SpecAugment: masks along time.")
    time_mask_share: float = Field(0.1, ge=0, le=1, description="SpecAugment: longest time mask, as a share of the utterance.")
    frequency_masks: int = Field(2, ge=0, description="SpecAugment: masks along frequency.")
    frequency_mask_bins: int = Field(27, ge=0, description="SpecAugment: widest frequency mask. Masks have the mean of the utterance.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: the faster of fp32 and bf16, measured on this machine at start."
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share that each step leaves of a moving average of the weights, which is validated and becomes the model; 0: none. "
        "Usual: 0.999.",
    )
    average: str | None = Field(
        None,
        description="`last K` or `best K`: the model is the mean of the weights of K checkpoints, those of the last validations or those "
        "with the lowest mean validation loss; `best 1` is the best checkpoint; null: the last weights.",
    )
    explosions: int = Field(
        10,
        ge=0,
        description="Training stops after so many batches in a row of one route whose loss is more than ten times its recent mean; 0: they "
        "are only told.",
    )
    patience: int = Field(
        0, ge=0, description="Training ends after so many validations without a lower mean validation loss; 0: at `max_steps`."
    )
    validate_every: int = Field(200, gt=0, description="Steps between validations (and checkpoints).")
    validation_utterances: int = Field(200, gt=0, description="Utterances per route in each validation at most.")
    sample_utterances: int = Field(
        0, ge=0, description="Dev cuts per route that each validation decodes greedily, shows and scores; 0: none."
    )
    log_every: int = Field(
        50, ge=0, description="Steps between lines of `metrics.jsonl`, and points of TensorBoard, beside those of validations; 0: none."
    )
    tensorboard: bool = Field(False, description="Write scalars for TensorBoard beside the model; needs `smoe[tensorboard]`.")
    workers: int = Field(0, ge=0, description="Processes that load and compute features; 0: in the training process.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    init_from: Path | None = Field(
        None,
        description="Checkpoint whose weights the model starts with, from the recipe's folder; `tokenize` then takes its tokenizer, and "
        "`model` and `features` are as there, but for the experts and what the recipe sets itself.",
    )
    init_noise: float = Field(
        0.0, ge=0, description="Noise on experts that start as copies, relative to the standard deviation of each weight; 0: exact copies."
    )
    init_experts: dict[str, str] = Field(
        {},
        description="New expert -> expert of the checkpoint that it starts as a copy of; by default of the nearest by tags.",
    )

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float | str) -> float | str:
        _check_values(value, lambda number: number >= 1, "at least 1")
        return value

    @field_validator("route_weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float | str]) -> dict[str, float | str]:
        for name, value in weights.items():
            try:
                _check_values(value, lambda number: 0 < number < math.inf, "above 0")
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from None
        return weights

    @field_validator("average", mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, str) and re.fullmatch(r"(last|best) [1-9][0-9]*", value)):
            raise ValueError(f"`{value}` names no checkpoints; write for example `last 5` or `best 3`")
        return value

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.turns_per_batch > self.max_utterances:
            raise ValueError(f"turns_per_batch ({self.turns_per_batch}) is more than max_utterances ({self.max_utterances})")
        if self.init_from is None and (self.init_noise or self.init_experts):
            raise ValueError("init_noise and init_experts are about copies from a checkpoint, and init_from names none")
        if self.ema_decay and self.average:
            raise ValueError(f"ema_decay ({self.ema_decay:g}) and average (`{self.average}`) both average weights; set one of them")
        if self.shard and self.batch_s == "auto":
            raise ValueError(
                "shard goes with no `batch_s: auto`: to try until memory is used up, every process needs all weights; set a number"
            )
        if self.shard and self.compile:
            raise ValueError("shard goes with no compile: gathering weights inside of what is compiled is not tested; set one of them")
        return self
