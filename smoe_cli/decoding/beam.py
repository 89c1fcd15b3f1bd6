"""Batched beam search: cached steps, cross-attention keys shared by the beams, joint CTC scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smoe_cli.config import DecodeSettings
from smoe_cli.decoding.ctc_prefix import CTCPrefixScorer
from smoe_cli.model.speech_to_text import Memory, SpeechToText
from smoe_cli.tokenizer import Tokenizer

CANDIDATES_PER_BEAM = 2
"""Tokens per beam that CTC looks at, as a multiple of the beam: the attention decoder's best."""
# N utterances, B beams, M = N*B hypotheses, V vocabulary, C candidates


@dataclass
class Beam:
    """A finished hypothesis.

    Attributes:
        tokens: Token ids without guiding tokens and end.
        score: Log probability divided by length ** penalty.
        ended: Whether the model ended it, or the length limit did.
    """

    tokens: list[int]
    score: float
    ended: bool


@torch.inference_mode()
def beam_search(
    model: SpeechToText,
    memory: Memory,
    prefix_NP: Tensor,
    decoder_expert_N: Tensor,
    max_tokens_N: list[int],
    settings: DecodeSettings,
    ctc_weight: float,
    tokenizer: Tokenizer,
) -> list[list[Beam]]:
    """The best hypotheses of each utterance, best first.

    Args:
        memory: Encoder states of N utterances.
        prefix_NP: Guiding tokens, equally many for all.
        decoder_expert_N: Decoder expert per utterance, on the CPU.
        max_tokens_N: Length limit per utterance.
        settings: Beam and length penalty.
        ctc_weight: Share of CTC prefix scores; 0 leaves CTC out.
        tokenizer: Says which pieces end a text, and which are never written.
    """
    end_id = tokenizer.end_id
    n, b, device = len(prefix_NP), settings.beam, memory.states.device
    m = n * b
    scorer = None
    if ctc_weight > 0.0 and model.ctc is not None:
        log_probs = F.log_softmax(model.ctc(memory.states).float(), dim=-1)
        scorer = CTCPrefixScorer(log_probs, memory.lengths, b, tokenizer.blank_id, end_id)
    state = model.decoder.start(memory, b)
    prefix_MP = prefix_NP.to(device).repeat_interleave(b, 0)
    for position in range(prefix_MP.shape[1]):
        logits = model.decoder.step(prefix_MP[:, position], state, memory, decoder_expert_N)
    # All beams of an utterance start equal: only the first may branch.
    scores = torch.full((n, b), -math.inf, device=device, dtype=torch.float64)
    scores[:, 0] = 0.0
    silent = torch.tensor(tokenizer.silent_ids, device=device)
    tokens = torch.empty(m, 0, dtype=torch.int64, device=device)
    finished: list[list[Beam]] = [[] for _ in range(n)]
    limits = torch.tensor(max_tokens_N, device=device)
    base = torch.arange(n, device=device)[:, None] * b
    for length in range(1, max(max_tokens_N) + 2):
        log_probs = F.log_softmax(logits.float(), dim=-1)
        log_probs[:, silent] = -math.inf
        # At its limit an utterance can only end.
        must_end = (limits < length).repeat_interleave(b)
        if bool(must_end.any()):
            end_scores = log_probs[must_end, end_id]
            log_probs[must_end] = -math.inf
            log_probs[must_end, end_id] = end_scores
        kept = min(max(CANDIDATES_PER_BEAM * b, b + 1), log_probs.shape[1])
        gained, candidates = log_probs.double().topk(kept, dim=-1)
        if scorer is not None:
            # The end must always be weighed: it takes the place of the weakest candidate.
            has_end = (candidates == end_id).any(-1)
            candidates[~has_end, -1] = end_id
            gained[~has_end, -1] = log_probs[~has_end, end_id].double()
            gained = (1.0 - ctc_weight) * gained + ctc_weight * scorer.extend(candidates)
        total = (scores.view(m, 1) + gained).view(n, b * kept)
        best, where = total.topk(2 * b, dim=-1)
        # Small and branchy: plain lists beat tensor operations here.
        rows_scores, rows_parents = best.tolist(), (base + where // kept).tolist()
        rows_tokens = candidates.view(n, -1).gather(1, where).tolist()
        parents: list[int] = []
        chosen: list[int] = []
        live_scores: list[list[float]] = []
        for row in range(n):
            live: list[float] = []
            ranked = zip(rows_scores[row], rows_parents[row], rows_tokens[row], strict=True)
            for rank, (score, parent, token) in enumerate(ranked):
                if token == end_id:
                    # An end ranked below the beam would not have been kept by a search without early stopping.
                    if rank < b and score > -math.inf and len(finished[row]) < b:
                        beam = Beam(tokens[parent].tolist(), score / length**settings.length_penalty, length <= max_tokens_N[row])
                        finished[row].append(beam)
                elif len(live) < b:
                    parents.append(parent)
                    chosen.append(token)
                    live.append(score)
            # At the limit nothing lives on: dead beams hold the place.
            parents += [row * b] * (b - len(live))
            chosen += [end_id] * (b - len(live))
            live_scores.append(live + [-math.inf] * (b - len(live)))
        done = [len(finished[row]) >= b or (bool(finished[row]) and max(live_scores[row]) == -math.inf) for row in range(n)]
        if all(done):
            break
        scores = torch.tensor(live_scores, dtype=torch.float64, device=device)
        scores[torch.tensor(done, device=device)] = -math.inf
        parents_M, tokens_M = torch.tensor(parents, device=device), torch.tensor(chosen, device=device)
        tokens = torch.cat((tokens[parents_M], tokens_M[:, None]), 1)
        state.reorder(parents_M)
        if scorer is not None:
            scorer.advance(parents_M, tokens_M)
        logits = model.decoder.step(tokens_M, state, memory, decoder_expert_N)
    return [sorted(beams, key=lambda beam: -beam.score) for beams in finished]
