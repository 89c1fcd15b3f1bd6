"""Beam search and CTC prefix scores against brute force."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from smoe_cli.config import DecodeSettings
from smoe_cli.decoding.beam import beam_search
from smoe_cli.decoding.ctc_prefix import CTCPrefixScorer
from smoe_cli.tokenizer import END_ID, PAD_ID, UNKNOWN_ID
from tests.conftest import tiny_model

VOCABULARY = 6  # pad/blank, unknown, end, and three letters
LETTERS = (3, 4, 5)


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != PAD_ID)


def every_output(log_probs_SV):
    """Probability of every CTC output, by summing over every alignment."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product((PAD_ID, *LETTERS), repeat=len(log_probs_SV)):
        found[collapse(path)] = found.get(collapse(path), 0.0) + math.exp(
            sum(float(log_probs_SV[t, token]) for t, token in enumerate(path))
        )
    return found


@pytest.mark.parametrize("prefix", [(), (3,), (3, 3), (4, 5), (3, 4, 3), (5, 5, 5)])
def test_ctc_prefix_scores_equal_the_sum_over_all_alignments(prefix):
    frames, beams = 5, 2
    log_probs = F.log_softmax(torch.randn(2, 7, VOCABULARY).masked_fill(torch.tensor([False, True, True, False, False, False]), -50.0), -1)
    scorer = CTCPrefixScorer(log_probs.clone(), torch.tensor([7, frames]), beams, PAD_ID, END_ID)
    for token in prefix:
        scorer.advance(torch.arange(4), torch.full((4,), token))
    candidates = torch.tensor([*LETTERS, END_ID]).repeat(4, 1)
    found = scorer.extend(candidates) + scorer.prefix[:, None]
    outputs = every_output(log_probs[1, :frames])
    for column, token in enumerate((*LETTERS, END_ID)):
        if token == END_ID:
            wanted = outputs.get(prefix, 0.0)
        else:
            longer = (*prefix, token)
            wanted = sum(p for output, p in outputs.items() if output[: len(longer)] == longer)
        assert math.exp(float(found[2, column])) == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_ctc_end_score_equals_torch_ctc_loss():
    log_probs = F.log_softmax(torch.randn(1, 40, 12), -1)
    target = [5, 5, 7, 3, 11, 3]
    scorer = CTCPrefixScorer(log_probs.clone(), torch.tensor([40]), 1, PAD_ID, END_ID)
    for token in target:
        scorer.advance(torch.tensor([0]), torch.tensor([token]))
    found = float(scorer.extend(torch.tensor([[END_ID]])) + scorer.prefix)
    wanted = -float(F.ctc_loss(log_probs.transpose(0, 1), torch.tensor([target]), torch.tensor([40]), torch.tensor([6]), reduction="sum"))
    assert found == pytest.approx(wanted, rel=1e-4)


def search(model, memory, experts, beam, limit, ctc_weight=0.0, penalty=0.0):
    settings = DecodeSettings(beam=beam, length_penalty=penalty)
    prefix = torch.tensor([[3, 4]] * len(experts))
    pieces = SimpleNamespace(end_id=END_ID, blank_id=PAD_ID, silent_ids=(PAD_ID, UNKNOWN_ID))
    return beam_search(model, memory, prefix, experts, [limit] * len(experts), settings, ctc_weight, pieces)


def best_by_brute_force(model, memory, expert, limit):
    """(tokens, log probability) of the likeliest output of at most ``limit`` tokens."""
    best = ((), -math.inf)
    for length in range(limit + 1):
        for text in itertools.product(LETTERS, repeat=length):
            tokens = torch.tensor([[3, 4, *text]])
            log_probs = model.decoder.output(model.decoder(tokens, memory, expert))[0]
            log_probs[:, [PAD_ID, UNKNOWN_ID]] = log_probs[:, [PAD_ID, UNKNOWN_ID]]
            log_probs = F.log_softmax(log_probs, -1)
            score = sum(float(log_probs[1 + i, token]) for i, token in enumerate((*text, END_ID)))
            if score > best[1]:
                best = (text, score)
    return best


def test_a_wide_beam_finds_the_likeliest_output():
    model = tiny_model(vocab_size=VOCABULARY)
    with torch.no_grad():
        model.decoder.output.weight *= 3
    experts = torch.tensor([0, 1])
    with torch.inference_mode():
        memory = model.encoder(torch.randn(2, 24, 8), torch.tensor([24, 16]), experts)
        found = search(model, memory, experts, beam=40, limit=3)
        for row in range(2):
            one = model.encoder(torch.randn(1, 24, 8), torch.tensor([24]), experts[row : row + 1])
            one.states, one.lengths, one.mask = memory.states[row : row + 1], memory.lengths[row : row + 1], memory.mask[row : row + 1]
            text, score = best_by_brute_force(model, one, experts[row : row + 1], 3)
            assert tuple(found[row][0].tokens) == text
            assert found[row][0].score == pytest.approx(score, rel=1e-3)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_a_batch_decodes_as_its_utterances_alone(ctc_weight):
    model, experts = tiny_model(), torch.tensor([0, 1, 1])
    features, lengths = torch.randn(3, 40, 8), torch.tensor([40, 25, 33])
    together = search(model, model.encoder(features, lengths, experts), experts, 4, 8, ctc_weight, penalty=1.0)
    for row in range(3):
        length = int(lengths[row])
        memory = model.encoder(features[row : row + 1, :length], lengths[row : row + 1], experts[row : row + 1])
        alone = search(model, memory, experts[row : row + 1], 4, 8, ctc_weight, penalty=1.0)[0]
        assert [beam.tokens for beam in together[row]] == [beam.tokens for beam in alone]
        assert together[row][0].score == pytest.approx(alone[0].score, rel=1e-4)


def test_greedy_equals_taking_the_best_token_each_time():
    model, experts = tiny_model(), torch.tensor([1])
    memory = model.encoder(torch.randn(1, 40, 8), torch.tensor([40]), experts)
    tokens = [3, 4]
    for _ in range(6):
        logits = model.decoder.output(model.decoder(torch.tensor([tokens]), memory, experts))[0, -1]
        logits[[PAD_ID, UNKNOWN_ID]] = -math.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == END_ID:
            break
    found = search(model, memory, experts, beam=1, limit=6)[0][0]
    assert found.tokens == [token for token in tokens[2:] if token != END_ID]
    assert found.ended == (tokens[-1] == END_ID)


def test_the_limit_ends_every_hypothesis_and_says_so():
    model, experts = tiny_model(), torch.tensor([0])
    with torch.no_grad():
        model.decoder.output.weight[END_ID] = -10 * model.decoder.output.weight.abs().sum(0)
    memory = model.encoder(torch.randn(1, 40, 8), torch.tensor([40]), experts)
    for beam in search(model, memory, experts, beam=3, limit=4)[0]:
        assert len(beam.tokens) <= 4
        assert beam.ended == (len(beam.tokens) < 4)
