"""What training minimises: label-smoothed cross-entropy and an auxiliary CTC loss on the transcript."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# N utterances, S encoder frames, U tokens, L transcript tokens, V vocabulary


@dataclass
class Losses:
    """Loss terms of one batch, per token.

    Attributes:
        total: What is minimised.
        attention: Cross-entropy of the decoder, label-smoothed.
        ctc: CTC loss of the encoder; 0 without a CTC head, or where no utterance has a transcript.
        tokens: Target tokens.
        too_short: Utterances whose transcript does not fit into their encoder frames; CTC skips them.
    """

    total: Tensor
    attention: Tensor
    ctc: Tensor
    tokens: int
    too_short: int


def combined_loss(
    logits_NUV: Tensor,
    targets_NU: Tensor,
    ctc_logits_NSV: Tensor | None,
    memory_lengths_N: Tensor,
    ctc_targets_NL: Tensor,
    ctc_lengths_N: Tensor,
    label_smoothing: float,
    ctc_weight: float,
    ignore_id: int,
    blank_id: int,
) -> Losses:
    """``(1 - w) * attention + w * ctc``, each averaged over its target tokens.

    Source: hybrid CTC/attention, arXiv:1609.06773; as an auxiliary loss on the transcript in speech translation,
    arXiv:2004.10234. The CTC targets are the transcript whatever the task, since a translation does not follow the audio; an
    utterance without a transcript (length 0) has no CTC term at all: silence is not what was said in it.
    """
    tokens = int((targets_NU != ignore_id).sum())
    attention = F.cross_entropy(
        logits_NUV.flatten(0, 1).float(), targets_NU.flatten(), ignore_index=ignore_id, label_smoothing=label_smoothing
    )
    if ctc_logits_NSV is None or ctc_weight == 0.0:
        return Losses(attention, attention.detach(), torch.zeros(()), tokens, 0)
    said = ctc_lengths_N > 0
    if not bool(said.any()):
        return Losses((1.0 - ctc_weight) * attention, attention.detach(), torch.zeros(()), tokens, 0)
    if not bool(said.all()):
        ctc_logits_NSV, memory_lengths_N = ctc_logits_NSV[said], memory_lengths_N[said]
        ctc_targets_NL, ctc_lengths_N = ctc_targets_NL[said], ctc_lengths_N[said]
    # CTC needs a frame per token and a blank between repeats.
    inside = torch.arange(ctc_targets_NL.shape[1], device=ctc_targets_NL.device)[None, 1:] < ctc_lengths_N[:, None]
    repeats = ((ctc_targets_NL[:, 1:] == ctc_targets_NL[:, :-1]) & inside).sum(1)
    fits = memory_lengths_N >= ctc_lengths_N + repeats
    per_utterance = F.ctc_loss(
        F.log_softmax(ctc_logits_NSV.float(), dim=-1).transpose(0, 1),
        ctc_targets_NL,
        memory_lengths_N,
        ctc_lengths_N,
        blank=blank_id,
        reduction="none",
        zero_infinity=True,
    )
    ctc = per_utterance.sum() / (ctc_lengths_N * fits).sum().clamp_min(1)
    total = (1.0 - ctc_weight) * attention + ctc_weight * ctc
    return Losses(total, attention.detach(), ctc.detach(), tokens, int((~fits).sum()))
