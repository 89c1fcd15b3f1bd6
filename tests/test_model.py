"""Laws of the router and of the model around it."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from smoe_cli.loss import Weights, combined_loss
from smoe_cli.model.experts import ExpertFFN, SupervisedMoE
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText, count_parameters
from tests.conftest import tiny_model

NAMES = ("transcribe", "translate", "identify")
CONFORMER = {"encoder": "conformer", "conv_kernel": 5}
SHARED = {"encoder_shared_hidden_dim": 24, "decoder_shared_hidden_dim": 8}
SOME_LAYERS = {"encoder_routed_layers": (1,), "decoder_routed_layers": (0,)}
WHISPER = {"family": "whisper", "encoder_positions": 16, "decoder_positions": 8}
CONVERTED = [WHISPER, WHISPER | SHARED | SOME_LAYERS, {"family": "speech2text"}]
FAMILY = [{}, {"conv_kernel": 5}, CONFORMER, SHARED, SOME_LAYERS, CONFORMER | SHARED | SOME_LAYERS, *CONVERTED]
"""Kinds of model for which the laws hold alike."""


def run(model, lengths, encoder_experts, decoder_experts):
    """States and memory for random audio and tokens that depend on nothing but the lengths; padding is filled with nonsense."""
    generator = torch.Generator().manual_seed(1)
    audio = [torch.randn(length, 8, generator=generator) for length in lengths]
    tokens = torch.randint(3, 30, (len(lengths), 5), generator=generator)
    batch = torch.full((len(lengths), max(lengths), 8), 9.0)
    for row, item in zip(batch, audio, strict=True):
        row[: len(item)] = item
    return model(batch, torch.tensor(lengths), tokens, torch.tensor(encoder_experts), torch.tensor(decoder_experts)), audio, tokens


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


def test_one_route_is_neither_gathered_nor_copied_and_each_run_of_several_is_one_view(monkeypatch):
    moe, x = SupervisedMoE(("a", "b", "c"), dim=4, hidden_dim=8), torch.randn(5, 3, 4)
    handed: list[tuple[int, torch.Tensor]] = []
    run = moe.run_expert
    monkeypatch.setattr(moe, "run_expert", lambda index, x_NSD: (handed.append((index, x_NSD)), run(index, x_NSD))[1])
    moe(x, torch.tensor([1, 1, 1, 1, 1]))
    assert [index for index, _ in handed] == [1] and handed[0][1] is x
    handed.clear()
    moe(x, torch.tensor([0, 0, 1, 2, 2]))
    assert [(index, len(part)) for index, part in handed] == [(0, 2), (1, 1), (2, 2)]
    assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for _, part in handed)


@pytest.mark.parametrize("changes", FAMILY)
def test_each_expert_of_a_mixed_batch_runs_once_in_every_layer(changes, monkeypatch):
    model, ran = tiny_model(**changes), Counter[tuple[int, int]]()
    honest = SupervisedMoE.run_expert
    monkeypatch.setattr(SupervisedMoE, "run_expert", lambda moe, index, x: (ran.update([(id(moe), index)]), honest(moe, index, x))[1])
    run(model, [30, 17, 22, 9], [1, 0, 1, 0], [0, 1, 0, 1])
    assert len(ran) >= 2 * len(list(model.routed_layers())) and set(ran.values()) == {1}


def test_swapping_a_tag_changes_the_output_of_that_utterance_only():
    moe, x = SupervisedMoE(NAMES, dim=4, hidden_dim=8), torch.randn(3, 5, 4)
    before, after = moe(x, torch.tensor([0, 1, 2])), moe(x, torch.tensor([0, 2, 2]))
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])


@pytest.mark.parametrize("bad", [[0, 1], [0, 1, 3], [0, 1, -1], [0, 1, 2, 0]])
def test_an_index_that_names_no_expert_is_refused(bad):
    with pytest.raises(ValueError, match="expert"):
        SupervisedMoE(NAMES, dim=4, hidden_dim=8)(torch.randn(3, 5, 4), torch.tensor(bad))


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


@pytest.mark.parametrize("changes", FAMILY)
def test_a_mixed_and_padded_batch_equals_its_utterances_one_by_one(changes):
    model, lengths = tiny_model(**changes), [37, 22, 9, 30]
    encoder_experts, decoder_experts = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1, 0, 0])
    (states, memory), audio, tokens = run(model, lengths, encoder_experts.tolist(), decoder_experts.tolist())
    for n, item in enumerate(audio):
        one = slice(n, n + 1)
        alone, alone_memory = model(item[None], torch.tensor([lengths[n]]), tokens[one], encoder_experts[one], decoder_experts[one])
        length = int(alone_memory.lengths[0])
        assert length == int(memory.lengths[n])
        torch.testing.assert_close(memory.states[n, :length], alone_memory.states[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[n], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ctc", [0.0, 0.3])
@pytest.mark.parametrize("changes", FAMILY)
def test_packed_utterances_give_the_states_the_loss_and_the_gradients_of_padded_ones(changes, ctc):
    packed, padded = (tiny_model(**changes) for _ in range(2))
    padded.load_state_dict(packed.state_dict())
    padded.encoder.packs = False
    targets, lengths = torch.randint(1, 30, (4, 5)), torch.tensor([3, 2, 0, 1])
    totals = []
    for model in (packed, padded):
        (states, memory), _, _ = run(model, [37, 22, 9, 30], [1, 0, 1, 0], [1, 1, 0, 0])
        assert (memory.packed is None) == (model is padded)
        heard = (model.ctc, memory.lengths, targets, lengths)
        found = combined_loss(states, model.decoder.output, targets, memory.real(), *heard, Weights(0.1, ctc, -100, 0))
        found.total.backward()
        totals.append((states, memory.real(), found.total))
    torch.testing.assert_close(*totals, rtol=1e-4, atol=1e-5)
    for one, other in zip(packed.parameters(), padded.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_packed_layers_never_see_padding(monkeypatch):
    model, seen = tiny_model(), set()
    honest = SupervisedMoE.run_expert
    monkeypatch.setattr(SupervisedMoE, "run_expert", lambda moe, index, x: (seen.add(tuple(x.shape[:-1])), honest(moe, index, x))[1])
    features = torch.randn(3, 40, 8)
    memory = model.encoder(features, torch.tensor([40, 17, 8]), torch.tensor([0, 0, 0]))
    assert seen == {(10 + 5 + 2,)} and memory.lengths.tolist() == [10, 5, 2]
    assert not memory.states[1, 5:].any() and not memory.states[2, 2:].any()


@pytest.mark.parametrize("changes", FAMILY)
def test_a_model_of_equal_experts_equals_the_dense_model(changes):
    routed, dense = tiny_model(**changes), tiny_model(**changes, encoder_experts=("dense",), decoder_experts=("dense",))
    weights = dense.state_dict()
    routed.load_state_dict({name: weights[re.sub(r"experts\.\w+", "experts.dense", name)] for name in routed.state_dict()})
    (states, memory), _, _ = run(routed, [30, 17], [0, 1], [1, 0])
    (dense_states, dense_memory), _, _ = run(dense, [30, 17], [0, 0], [0, 0])
    torch.testing.assert_close(memory.states, dense_memory.states)
    torch.testing.assert_close(states, dense_states)


@pytest.mark.parametrize("changes", FAMILY)
def test_a_step_moves_what_ran_and_leaves_idle_experts_bit_identical(changes):
    model = tiny_model(**changes).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def step(encoder_expert, decoder_expert):
        (states, memory), _, _ = run(model, [30, 17], [encoder_expert] * 2, [decoder_expert] * 2)
        (model.decoder.output(states).logsumexp(-1).sum() + model.ctc(memory.states).square().sum()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    # A first step with the experts that are idle afterwards: momentum must not move them either.
    step(1, 0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step(0, 1)
    idle = re.compile(r"encoder.*experts\.wb\.|decoder.*experts\.transcribe\.")
    assert sum(bool(idle.search(name)) for name in before) >= 8
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == bool(idle.search(name)), name


def test_the_shared_expert_learns_from_every_route_and_is_added():
    moe, x = SupervisedMoE(NAMES, dim=4, hidden_dim=8, shared_hidden_dim=6), torch.randn(3, 5, 4)
    for index, name in enumerate(NAMES):
        moe.zero_grad(set_to_none=True)
        out = moe(x, torch.full((3,), index))
        torch.testing.assert_close(out, moe.experts[name](x) + moe.shared(x))
        out.sum().backward()
        assert all(p.grad is not None for p in moe.shared.parameters())
        assert [p.grad is not None for p in moe.experts.parameters()] == [other == name for other in NAMES for _ in range(4)]


def test_only_the_chosen_layers_have_experts():
    model = tiny_model(**CONFORMER, **SOME_LAYERS)
    assert [(stack, layer, part) for stack, layer, part, _ in model.routed_networks()] == [
        ("encoder", 1, "ffn_before"),
        ("encoder", 1, "ffn"),
        ("decoder", 0, "ffn"),
    ]
    assert [(stack, layer) for stack, layer, _ in model.routed_layers()] == [("encoder", 1), ("encoder", 1), ("decoder", 0)]
    names = model.state_dict()
    assert "encoder.layers.0.ffn_before.experts.dense.0.weight" in names
    assert "encoder.layers.1.ffn_before.experts.nb.0.weight" in names


@pytest.mark.parametrize("changes", FAMILY)
def test_active_parameters_are_those_of_the_dense_model(changes):
    routed = count_parameters(tiny_model(**changes))
    dense = count_parameters(tiny_model(**changes, encoder_experts=("dense",), decoder_experts=("dense",)))
    assert routed["active"] == dense["active"] == dense["total"]
    assert routed["total"] == routed["active"] + routed["encoder.nb"] + routed["decoder.translate"]
    networks, choosing, width = 4 if changes.get("encoder") else 2, 2 if "encoder_routed_layers" in changes else 1, 16
    one = 2 * 32 * width + 32 + width
    assert routed["encoder.wb"] == networks // choosing * one
    assert routed.get("encoder.dense", 0) == networks * one - routed["encoder.wb"]
    if "encoder_shared_hidden_dim" in changes:
        assert routed["encoder.shared"] == networks * (2 * 24 * width + 24 + width)


@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_subsampling_divides_the_length(factor, encoder):
    model = tiny_model(subsampling=factor, encoder=encoder, conv_kernel=5)
    memory = model.encoder(torch.randn(1, 41, 8), torch.tensor([41]), torch.tensor([0]))
    assert memory.states.shape[1] == int(memory.lengths[0]) == -(-41 // factor)


@pytest.mark.parametrize("changes", FAMILY)
def test_cached_steps_equal_the_whole_sequence(changes):
    model, beams = tiny_model(**changes), 3
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
