"""CTC prefix scores for beam search, vectorised over hypotheses, candidates and frames."""

from __future__ import annotations

import torch
from torch import Tensor

# N utterances, S encoder frames, V vocabulary, M = N*B hypotheses, C candidates per hypothesis


class CTCPrefixScorer:
    """Probability that CTC's output starts with a prefix, extended one token at a time.

    Source: arXiv:1706.02737, algorithm 2 (Hori, Watanabe, Hershey: joint CTC/attention decoding). Its recursion over frames,
    ``r[t] = (r[t-1] + phi[t]) * p[t]``, is a running sum once divided by the running product of p; in the log
    domain that is one `logcumsumexp` over all frames instead of a Python loop.

    Args:
        log_probs_NSV: CTC log probabilities.
        lengths_N: Real frames per utterance.
        beams: B.
        blank_id, end_id: Token ids.
    """

    def __init__(self, log_probs_NSV: Tensor, lengths_N: Tensor, beams: int, blank_id: int, end_id: int) -> None:
        self.end_id = end_id
        n, s, _ = log_probs_NSV.shape
        # Beyond its end an utterance emits blanks for certain: prefix probabilities then just stand still.
        past = torch.arange(s, device=lengths_N.device)[None, :] >= lengths_N[:, None]
        log_probs_NSV = log_probs_NSV.double().masked_fill(past[..., None], -1e4)
        log_probs_NSV[..., blank_id] = log_probs_NSV[..., blank_id].masked_fill(past, 0.0)
        self.log_probs = log_probs_NSV
        self.utterance = torch.arange(n, device=lengths_N.device).repeat_interleave(beams)
        self.blank = log_probs_NSV[..., blank_id][self.utterance]
        m = n * beams
        # Log probability of having written the prefix after frame t, ending in a token / in blank; index 0: before frame 0.
        self.token_end = self.blank.new_full((m, s + 1), -1e30)
        self.blank_end = torch.cat((self.blank.new_zeros(m, 1), self.blank.cumsum(1)), 1)
        self.last = torch.full((m,), -1, device=self.blank.device)
        self.prefix = self.blank.new_zeros(m)

    def extend(self, candidates_MC: Tensor) -> Tensor:
        """Log probability gained by each candidate, (M,C): ``log p(prefix + c ...) - log p(prefix ...)``.

        For the end token: of the output being exactly the prefix.
        """
        emit = self.log_probs[self.utterance[:, None], :, candidates_MC]  # (M,C,S)
        both = torch.logaddexp(self.token_end, self.blank_end)[:, None, :-1]
        repeated = (candidates_MC == self.last[:, None])[..., None]
        # A repeated token needs a blank between.
        before = torch.where(repeated, self.blank_end[:, None, :-1], both)
        first = torch.logsumexp(before + emit, dim=-1)
        ended = torch.logaddexp(self.token_end[:, -1], self.blank_end[:, -1])[:, None]
        return torch.where(candidates_MC == self.end_id, ended, first) - self.prefix[:, None]

    def advance(self, parents_M: Tensor, tokens_M: Tensor) -> None:
        """Let hypothesis m be ``parents_M[m]`` followed by ``tokens_M[m]``; parents are of the same utterance."""
        emit = self.log_probs[self.utterance, :, tokens_M]
        token_end, blank_end, last = self.token_end[parents_M], self.blank_end[parents_M], self.last[parents_M]
        both = torch.logaddexp(token_end, blank_end)[:, :-1]
        start = torch.where((tokens_M == last)[:, None], blank_end[:, :-1], both)
        self.token_end = _recursion(start, emit)
        self.blank_end = _recursion(self.token_end[:, :-1], self.blank)
        self.prefix = torch.logsumexp(start + emit, dim=-1)
        self.last = tokens_M


def _recursion(inflow_MS: Tensor, emit_MS: Tensor) -> Tensor:
    """``r[t] = logaddexp(r[t-1], inflow[t-1]) + emit[t-1]`` with ``r[0] = -inf``, all t at once: (M,S) -> (M,S+1)."""
    product = emit_MS.cumsum(1)
    before = product - emit_MS
    rest = torch.logcumsumexp(inflow_MS - before, dim=1) + product
    return torch.cat((rest.new_full((len(rest), 1), -1e30), rest), 1)
