"""Laws of the router and of the model around it."""

from __future__ import annotations

import pytest
import torch

from smoe_cli.model.experts import ExpertFFN, SupervisedMoE
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText, count_parameters
from tests.conftest import tiny_model

NAMES = ("transcribe", "translate", "identify")


def test_gradient_reaches_only_the_named_expert():
    moe = SupervisedMoE(NAMES, dim=4, hidden_dim=8)
    moe(torch.randn(3, 5, 4), torch.tensor([1, 1, 1])).sum().backward()
    assert all(p.grad is None for name in ("transcribe", "identify") for p in moe.experts[name].parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moe.experts["translate"].parameters())


def test_equal_experts_equal_the_dense_layer():
    moe, dense = SupervisedMoE(NAMES, dim=4, hidden_dim=8), ExpertFFN(4, 8)
    for expert in moe.experts.values():
        expert.load_state_dict(dense.state_dict())
    x = torch.randn(6, 5, 4)
    torch.testing.assert_close(moe(x, torch.tensor([2, 0, 1, 1, 0, 2])), dense(x))


@pytest.mark.parametrize("experts", [[0, 0, 1, 2], [2, 0, 1, 0], [2, 1, 0, 0], [1, 1, 1, 1]])
def test_mixed_batch_equals_the_utterances_one_by_one(experts):
    moe, x = SupervisedMoE(NAMES, dim=4, hidden_dim=8), torch.randn(4, 5, 4)
    together = moe(x, torch.tensor(experts))
    alone = torch.cat([moe(x[n : n + 1], torch.tensor([expert])) for n, expert in enumerate(experts)])
    torch.testing.assert_close(together, alone)


def test_swapping_a_tag_changes_the_output_of_that_utterance_only():
    moe, x = SupervisedMoE(NAMES, dim=4, hidden_dim=8), torch.randn(3, 5, 4)
    before, after = moe(x, torch.tensor([0, 1, 2])), moe(x, torch.tensor([0, 2, 2]))
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])


@pytest.mark.parametrize("bad", [[0, 1], [0, 1, 3], [0, 1, -1], [0, 1, 2, 0]])
def test_an_index_that_names_no_expert_is_refused(bad):
    with pytest.raises(ValueError, match="expert"):
        SupervisedMoE(NAMES, dim=4, hidden_dim=8)(torch.randn(3, 5, 4), torch.tensor(bad))


def test_adding_an_expert_keeps_the_others_weights():
    small, large = SupervisedMoE(NAMES[:2], 4, 8), SupervisedMoE(NAMES, 4, 8)
    report = large.load_state_dict(small.state_dict(), strict=False)
    assert all(key.startswith("experts.identify.") for key in report.missing_keys)
    assert not report.unexpected_keys


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({}, 107.05),
        ({"decoder_experts": ("transcribe", "translate")}, 119.65),
        ({"encoder_experts": ("nb", "wb"), "decoder_experts": ("transcribe", "translate")}, 144.84),
        ({"decoder_hidden_dim": 4096}, 119.64),
    ],
)
def test_paper_scale_has_the_papers_parameter_counts(changes, total):
    with torch.device("meta"):
        counts = count_parameters(SpeechToText(Dimensions(vocab_size=40_000, **changes)))
    assert round(counts["total"] / 1e6, 2) == total
    assert round(counts["active"] / 1e6, 2) == (119.64 if "decoder_hidden_dim" in changes else 107.05)


def test_padding_changes_nothing():
    model = tiny_model()
    long, short = torch.randn(37, 8), torch.randn(22, 8)
    padded = torch.stack((long, torch.cat((short, torch.full((15, 8), 9.0)))))
    experts, tokens = torch.tensor([0, 1]), torch.tensor([[3, 5, 7, 9], [4, 6, 8, 10]])
    states, memory = model(padded, torch.tensor([37, 22]), tokens, experts, experts)
    alone, alone_memory = model(short[None], torch.tensor([22]), tokens[1:], experts[1:], experts[1:])
    length = int(alone_memory.lengths[0])
    torch.testing.assert_close(memory.states[1, :length], alone_memory.states[0, :length], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_subsampling_divides_the_length(factor):
    model = tiny_model(subsampling=factor)
    memory = model.encoder(torch.randn(1, 41, 8), torch.tensor([41]), torch.tensor([0]))
    assert memory.states.shape[1] == int(memory.lengths[0]) == -(-41 // factor)


def test_cached_steps_equal_the_whole_sequence():
    model, beams = tiny_model(), 3
    lengths, experts = torch.tensor([30, 17]), torch.tensor([0, 1])
    memory = model.encoder(torch.randn(2, 30, 8), lengths, experts)
    tokens = torch.randint(0, 30, (2 * beams, 6))
    state = model.decoder.start(memory, beams)
    stepped = torch.stack([model.decoder.step(tokens[:, u], state, memory, experts) for u in range(6)], 1)
    for beam in range(beams):
        whole = model.decoder.output(model.decoder(tokens[beam::beams], memory, experts))
        torch.testing.assert_close(stepped[beam::beams], whole, rtol=1e-4, atol=1e-5)


def test_the_decoder_does_not_see_the_future():
    model, experts = tiny_model(), torch.tensor([0])
    memory = model.encoder(torch.randn(1, 20, 8), torch.tensor([20]), experts)
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 9, 9]])
    torch.testing.assert_close(model.decoder(one, memory, experts)[:, :2], model.decoder(other, memory, experts)[:, :2])
