"""What one step computes: the loss of a batch."""

from __future__ import annotations

import torch

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.loss import Losses, combined_loss
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
) -> Losses:
    """Loss terms of a batch under given features (N,T,F), as training computes them.

    Args:
        blank_id: CTC's blank.
        label_smoothing: If not as the settings say.
    """
    with torch.autocast(features.device.type, torch.bfloat16, enabled=precision.dtype == "bf16"):
        states, memory = model(features, batch.feature_lengths, batch.tokens_in, batch.encoder_expert, batch.decoder_expert)
        logits = model.decoder.output(states)
        ctc_logits = model.ctc(memory.states) if model.ctc is not None else None
    return combined_loss(
        logits,
        batch.targets,
        ctc_logits,
        memory.lengths,
        batch.ctc_targets,
        batch.ctc_lengths,
        settings.label_smoothing if label_smoothing is None else label_smoothing,
        settings.ctc_weight,
        IGNORE_ID,
        blank_id,
    )
