"""The Conformer encoder: no leak from padding, and the same numbers as a Conformer that nobody here wrote."""

from __future__ import annotations

import pytest
import torch
import torchaudio
from torch import Tensor, nn

from smoe_cli.model.conformer import ConformerConvolution, ConformerLayer
from smoe_cli.model.experts import SupervisedMoE
from smoe_cli.model.rows import Padded
from tests.conftest import tiny_model

DIM, HEADS, HIDDEN, KERNEL = 16, 4, 24, 7


class FrameNorm(nn.LayerNorm):
    """A layer norm of each frame where torchaudio has channels before frames."""

    def forward(self, x_NDS: Tensor) -> Tensor:
        return super().forward(x_NDS.transpose(1, 2)).transpose(1, 2)


def make_layer() -> ConformerLayer:
    """Two experts of random weights; norms and biases too, so that none is forgotten."""
    layer = ConformerLayer(DIM, HEADS, lambda: SupervisedMoE(("nb", "wb"), DIM, HIDDEN, activation="silu"), 0.1, KERNEL).eval()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.3)
    return layer


def torchaudio_weights(layer: ConformerLayer, expert: str) -> dict[str, Tensor]:
    """A layer's weights under torchaudio's names, with one expert in both feed-forward networks."""

    def copy(ours: str, theirs: str) -> dict[str, Tensor]:
        found = layer.get_submodule(ours).state_dict()
        return {f"{theirs}{'.' if theirs[-1] != '_' else ''}{name}": weight for name, weight in found.items()}

    weights = copy("attention_norm", "self_attn_layer_norm") | copy("norm", "final_layer_norm")
    for ours, theirs in (("ffn_before", "ffn1"), ("ffn", "ffn2")):
        weights |= copy(f"{ours}_norm", f"{theirs}.sequential.0")
        weights |= copy(f"{ours}.experts.{expert}.0", f"{theirs}.sequential.1") | copy(
            f"{ours}.experts.{expert}.3", f"{theirs}.sequential.4"
        )
    weights |= copy("attention.in_proj", "self_attn.in_proj_") | copy("attention.out_proj", "self_attn.out_proj")
    weights |= copy("convolution.norm", "conv_module.layer_norm")
    for ours, theirs in (("in_proj", 0), ("depthwise", 2), ("depthwise_norm", 3), ("out_proj", 5)):
        weights |= copy(f"convolution.{ours}", f"conv_module.sequential.{theirs}")
    for place in (0, 5):
        weights[f"conv_module.sequential.{place}.weight"] = weights[f"conv_module.sequential.{place}.weight"][:, :, None]
    return weights


@pytest.mark.parametrize("expert", ["nb", "wb"])
def test_the_same_weights_give_the_output_of_torchaudio(expert):
    ours = [make_layer() for _ in range(2)]
    theirs = torchaudio.models.Conformer(DIM, HEADS, HIDDEN, len(ours), KERNEL).eval()
    for layer, other in zip(ours, theirs.conformer_layers, strict=True):
        # torchaudio offers a batch norm, or a group norm over all frames: the one point where ours differs on purpose.
        other.conv_module.sequential[3] = FrameNorm(DIM)
        other.load_state_dict(torchaudio_weights(layer, expert))
    x, experts = torch.randn(3, 19, DIM), torch.full((3,), ("nb", "wb").index(expert))
    with torch.no_grad():
        expected, _ = theirs(x, torch.tensor([19, 19, 19]))
        for layer in ours:
            x = layer(x, Padded(), experts)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_the_convolution_sees_its_neighbours_but_no_padding():
    convolution, x = ConformerConvolution(DIM, KERNEL), torch.randn(1, 12, DIM)
    rows = Padded((torch.arange(12) < 8)[None, None, None])
    other = x.clone()
    other[:, 8:] = 100.0
    assert not torch.allclose(convolution(x, Padded())[:, :8], convolution(other, Padded())[:, :8])
    torch.testing.assert_close(convolution(x, rows)[:, :8], convolution(other, rows)[:, :8])
    torch.testing.assert_close(convolution(x, rows)[:, :8], convolution(x[:, :8], Padded()))


@pytest.mark.parametrize("training", [False, True])
def test_states_do_not_depend_on_what_an_utterance_is_batched_with(training):
    model = tiny_model(encoder="conformer", conv_kernel=KERNEL, dropout=0.0).train(training)
    one, experts = torch.randn(21, 8), torch.tensor([0, 1])
    alone = model.encoder(one[None], torch.tensor([21]), experts[:1]).states[0]
    for length in (21, 33, 60):
        batch = torch.randn(2, length, 8) * 50
        batch[0, :21] = one
        together = model.encoder(batch, torch.tensor([21, length]), experts)
        torch.testing.assert_close(together.states[0, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_each_half_step_has_its_own_experts_and_each_is_chosen_by_the_tag():
    layer, x, experts = make_layer(), torch.randn(2, 9, DIM), torch.tensor([0, 1])
    before = layer(x, Padded(), experts)
    for part in (layer.ffn_before, layer.ffn):
        nn.init.normal_(part.experts["wb"][3].weight)
        after = layer(x, Padded(), experts)
        assert torch.equal(after[0], before[0])
        assert not torch.allclose(after[1], before[1])
        before = after
