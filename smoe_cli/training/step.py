"""What one step computes: the loss of a batch, or of a part of one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.loss import Counts, Losses, Weights, combined_loss, count
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.precision import Precision
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.shard import agree_on_ctc, is_divided

MOST_SCORES = 2**27
"""Scores over the vocabulary that are computed at once where the recipe says nothing: 512 MiB in float32, of which a step holds up to three
such for each head. It does not depend on the memory that is free, or to go on elsewhere would change the last digits."""

PARTS_APART = 982_451_653
"""Between the seeds of the batches of one step: far from those of other steps, also in 32 bits, which is all that torch uses on CPUs."""


def losses_of(
    model: SpeechToText,
    batch: Batch,
    features: torch.Tensor,
    settings: TrainSettings,
    precision: Precision,
    blank_id: int,
    label_smoothing: float | None = None,
    whole: Counts | None = None,
) -> Losses:
    """Loss terms of a batch under given features (N,T,F), as training computes them.

    Args:
        blank_id: CTC's blank.
        label_smoothing: If not as the settings say.
        whole: What they are averaged over, if the batch is a part of something larger.
    """
    smoothing = settings.label_smoothing if label_smoothing is None else label_smoothing
    weights = Weights(smoothing, settings.ctc_weight, IGNORE_ID, blank_id, whole)
    with torch.autocast(features.device.type, torch.bfloat16, enabled=precision.dtype == "bf16"):
        states, memory = model(features, batch.feature_lengths, batch.tokens_in, batch.encoder_expert, batch.decoder_expert)
    return combined_loss(
        states,
        model.decoder.output,
        batch.targets,
        memory.real(),
        model.ctc,
        memory.lengths,
        batch.ctc_targets,
        batch.ctc_lengths,
        weights,
        MOST_SCORES // model.decoder.output.out_features if settings.loss_chunk == "auto" else settings.loss_chunk,
        torch.bfloat16 if precision.dtype == "bf16" else torch.float32,
    )


def count_of(model: SpeechToText, batches: Sequence[Batch]) -> Counts:
    """What the losses of batches are averaged over; nothing is computed but lengths."""
    lengths = model.encoder.subsampler.lengths
    return reduce(
        add,
        (count(batch.targets, lengths(batch.feature_lengths), batch.ctc_targets, batch.ctc_lengths, IGNORE_ID) for batch in batches),
    )


def add_gradients(
    model: SpeechToText, batch: Batch, seed: int, whole: Counts | None, settings: TrainSettings, precision: Precision, blank_id: int
) -> Losses:
    """Add the gradients of a batch, which may be a part of the whole, to those that are there.

    Args:
        seed: Of its dropout.
        whole: What its loss is averaged over; None: its own tokens.
        blank_id: CTC's blank.
    """
    torch.manual_seed(seed)
    # FSDP's hooks must come to the end of what is computed again.
    with set_checkpoint_early_stop(not is_divided(model)):
        losses = losses_of(model, batch, batch.features, settings, precision, blank_id, whole=whole)
    if whole is not None and settings.ctc_weight:
        losses.total = agree_on_ctc(model, losses.total, whole.transcripts)
    losses.total.backward()
    losses.total = losses.total.detach()
    return losses


def gradients_of(
    model: SpeechToText,
    batches: Sequence[Batch],
    step: int,
    ranks: Ranks,
    whole: Counts | None,
    settings: TrainSettings,
    precision: Precision,
    blank_id: int,
) -> Losses:
    """Add the gradients of a process's part of a step, which has one batch or several, to those that are there.

    Args:
        whole: What the losses are averaged over; None: the own tokens.
        blank_id: CTC's blank.
    """
    if whole is None and len(batches) > 1:
        whole = count_of(model, batches)
    device = next(model.parameters()).device
    # Numbered as if one process had the batches of all.
    seeds = (settings.seed * 1_000_003 + step + (ranks.rank + number * ranks.size) * PARTS_APART for number in range(len(batches)))
    parts = zip(batches, seeds, strict=True)
    return reduce(add, (add_gradients(model, batch.to(device), seed, whole, settings, precision, blank_id) for batch, seed in parts))


def counts_of_all(ranks: Ranks, model: SpeechToText, batches: Sequence[Batch]) -> Counts | None:
    """What the losses of a step are averaged over: the batches of all processes; None if there are no others.

    Raises:
        SmoeError: If a process has gone.
        RuntimeError: If processes have batches of different routes.
    """
    if ranks.size == 1:
        return None
    own, route = count_of(model, batches), " + ".join(batches[0].routes_served)
    found = ranks.gather(zlib.crc32(route.encode()), own.tokens, own.ctc_tokens, own.transcripts)
    if len({of_one[0] for of_one in found}) > 1:
        raise RuntimeError(f"the processes have batches of different routes at the same step; process {ranks.rank} has {route}")
    return Counts(*(int(sum(numbers)) for numbers in list(zip(*found, strict=True))[1:]))
