"""What one step computes: the loss of a batch, or of a part of one."""

from __future__ import annotations

import torch

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.loss import Counts, Losses, Weights, chunked_loss, combined_loss, count
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.precision import Precision


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
        if not settings.loss_chunk:
            logits = model.decoder.output(states)
            ctc_logits = model.ctc(memory.states) if model.ctc is not None else None
    if settings.loss_chunk:
        return chunked_loss(
            states,
            model.decoder.output,
            batch.targets,
            memory.states,
            model.ctc,
            memory.lengths,
            batch.ctc_targets,
            batch.ctc_lengths,
            weights,
            settings.loss_chunk,
            torch.bfloat16 if precision.dtype == "bf16" else torch.float32,
        )
    return combined_loss(logits, batch.targets, ctc_logits, memory.lengths, batch.ctc_targets, batch.ctc_lengths, weights)


def count_of(model: SpeechToText, batch: Batch) -> Counts:
    """What the losses of a batch are averaged over; nothing is computed but lengths."""
    return count(batch.targets, model.encoder.subsampler.lengths(batch.feature_lengths), batch.ctc_targets, batch.ctc_lengths, IGNORE_ID)
