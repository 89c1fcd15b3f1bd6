"""What training minimises: label-smoothed cross-entropy and an auxiliary CTC loss on the transcript."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from smoe_cli.model.softmax import chosen_log_probs

# N utterances, S encoder frames, P those of all utterances, U tokens, L transcript tokens, D model width, C columns


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

    def __add__(self, other: Losses) -> Losses:
        """Losses of two parts of a whole, each averaged over the tokens of the whole."""
        terms = (self.total + other.total, self.attention + other.attention, self.ctc + other.ctc)
        return Losses(*terms, self.tokens + other.tokens, self.too_short + other.too_short)


@dataclass(frozen=True)
class Counts:
    """What the terms of a loss are averaged over.

    Attributes:
        tokens: Target tokens.
        ctc_tokens: Tokens of the transcripts that fit into their encoder frames.
        transcripts: Utterances with a transcript, whether it fits or not: whether there is a CTC term at all.
    """

    tokens: int
    ctc_tokens: int
    transcripts: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.ctc_tokens + other.ctc_tokens, self.transcripts + other.transcripts)


@dataclass(frozen=True)
class Weights:
    """How the terms are formed and joined.

    Attributes:
        label_smoothing: Share of probability spread over the vocabulary.
        ctc: Share of the CTC loss in the total.
        ignore_id: Target where there is no loss.
        blank_id: CTC's blank.
        whole: What the terms are averaged over, if the batch is a part of something larger; None: its own tokens.
    """

    label_smoothing: float
    ctc: float
    ignore_id: int
    blank_id: int
    whole: Counts | None = None


def count(targets_NU: Tensor, memory_lengths_N: Tensor, ctc_targets_NL: Tensor, ctc_lengths_N: Tensor, ignore_id: int) -> Counts:
    """What the losses of a batch are averaged over."""
    fits = _fits(memory_lengths_N, ctc_targets_NL, ctc_lengths_N)
    return Counts(int((targets_NU != ignore_id).sum()), int((ctc_lengths_N * fits).sum()), int((ctc_lengths_N > 0).sum()))


def combined_loss(
    states_NUD: Tensor,
    output: nn.Linear,
    targets_NU: Tensor,
    memory_PD: Tensor,
    ctc_head: nn.Linear | None,
    memory_lengths_N: Tensor,
    ctc_targets_NL: Tensor,
    ctc_lengths_N: Tensor,
    weights: Weights,
    rows: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Losses:
    """``(1 - w) * attention + w * ctc``, each averaged over its target tokens.

    Source: hybrid CTC/attention, arXiv:1609.06773; as an auxiliary loss on the transcript in speech translation,
    arXiv:2004.10234. The CTC targets are the transcript whatever the task, since a translation does not follow the audio; an
    utterance without a transcript (length 0) has no CTC term at all: silence is not what was said in it.

    Scores over the vocabulary are made where there is a loss, and nowhere else. CTC needs of every frame only the
    log-probabilities of the blank and of the transcript's tokens.

    Args:
        states_NUD: Of the decoder, from which ``output`` makes scores.
        memory_PD: The encoder's real frames, one utterance after the other, from which ``ctc_head`` makes scores.
        memory_lengths_N: Real frames of each utterance.
        rows: Tokens or frames whose scores are held at a time; 0: all.
        dtype: In which the scores are computed.
    """
    real = targets_NU != weights.ignore_id
    tokens = int(real.sum())
    of_target, of_all = chosen_log_probs(states_NUD[real], output.weight, output.bias, targets_NU[real][:, None], rows, dtype)
    smoothing = weights.label_smoothing
    attention = -((1.0 - smoothing) * of_target.sum() + smoothing * of_all.sum()) / tokens
    if ctc_head is None or weights.ctc == 0.0:
        return _join(attention, tokens, None, weights, ctc_share=0.0)
    said = ctc_lengths_N > 0
    if not bool(said.any()):
        return _join(attention, tokens, None, weights, weights.ctc)
    if not bool(said.all()):
        memory_PD, memory_lengths_N = memory_PD[said.repeat_interleave(memory_lengths_N)], memory_lengths_N[said]
        ctc_targets_NL, ctc_lengths_N = ctc_targets_NL[said], ctc_lengths_N[said]
    fits = _fits(memory_lengths_N, ctc_targets_NL, ctc_lengths_N)
    # Column 0 is the blank, column l the token at l; a token that occurs again has the column of its first place.
    columns_NC = F.pad(ctc_targets_NL, (1, 0), value=weights.blank_id)
    first_NL = (ctc_targets_NL[:, :, None] == ctc_targets_NL[:, None, :]).int().argmax(-1) + 1
    columns_PC = columns_NC.repeat_interleave(memory_lengths_N, 0)
    log_probs_PC, _ = chosen_log_probs(memory_PD, ctc_head.weight, ctc_head.bias, columns_PC, rows, dtype)
    ctc = _ctc(log_probs_PC, first_NL, memory_lengths_N, ctc_lengths_N, fits)
    return _join(attention, tokens, (ctc, fits, ctc_lengths_N), weights, weights.ctc)


def _fits(memory_lengths_N: Tensor, ctc_targets_NL: Tensor, ctc_lengths_N: Tensor) -> Tensor:
    """Which utterances (N,) have the frames that CTC needs: one for every token, and one for a blank between repeats."""
    inside = torch.arange(ctc_targets_NL.shape[1], device=ctc_targets_NL.device)[None, 1:] < ctc_lengths_N[:, None]
    repeats = ((ctc_targets_NL[:, 1:] == ctc_targets_NL[:, :-1]) & inside).sum(1)
    return memory_lengths_N >= ctc_lengths_N + repeats


def _ctc(log_probs_PC: Tensor, targets_NL: Tensor, memory_lengths_N: Tensor, ctc_lengths_N: Tensor, fits_N: Tensor) -> Tensor:
    """CTC loss per token of the transcripts that fit; ``targets_NL`` are columns, of which 0 is the blank."""
    log_probs_SNC = pad_sequence(list(log_probs_PC.split(memory_lengths_N.tolist())))
    per_utterance = F.ctc_loss(log_probs_SNC, targets_NL, memory_lengths_N, ctc_lengths_N, reduction="none", zero_infinity=True)
    # Torch's gradient is that of the scores before a softmax over all columns: too large by each column's probability, which adds
    # up to nothing only where all columns are there. This takes it away, and is 0 itself.
    owner_P = torch.arange(len(fits_N), device=fits_N.device).repeat_interleave(memory_lengths_N)
    mass_N = log_probs_PC.new_zeros(len(fits_N)).index_add(0, owner_P, log_probs_PC.exp().sum(1))
    per_utterance = per_utterance - torch.where(fits_N, mass_N - mass_N.detach(), 0.0)
    return per_utterance.sum() / (ctc_lengths_N * fits_N).sum().clamp_min(1)


def _join(attention: Tensor, tokens: int, ctc: tuple[Tensor, Tensor, Tensor] | None, weights: Weights, ctc_share: float) -> Losses:
    """The terms, weighted; those of a part count as much as its share of the whole.

    Args:
        ctc: CTC loss, which utterances (N,) fit, and the lengths (N,) of their transcripts; None: no utterance has a transcript.
        ctc_share: Of the total; 0 where there is no CTC at all.
    """
    whole = weights.whole
    if whole is not None:
        attention = attention * (tokens / max(1, whole.tokens))
    if ctc is None:
        total = attention if ctc_share == 0.0 else (1.0 - ctc_share) * attention
        return Losses(total, attention.detach(), torch.zeros(()), tokens, 0)
    term, fits_N, ctc_lengths_N = ctc
    if whole is not None:
        term = term * (int((ctc_lengths_N * fits_N).sum()) / max(1, whole.ctc_tokens))
    total = (1.0 - ctc_share) * attention + ctc_share * term
    return Losses(total, attention.detach(), term.detach(), tokens, int((~fits_N).sum()))
