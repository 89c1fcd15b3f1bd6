"""The Conformer's encoder layer, with both of its half-step feed-forward networks routed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from smoe_cli.model.layers import MakeFFN, SelfAttention, padding_of

# N utterances, S frames, D model width


class ConformerConvolution(nn.Module):
    """What lies near in time, mixed per channel: norm, gated projection, depthwise convolution, norm, SiLU, projection.

    Source: Conformer, arXiv:2005.08100, section 2.2, whose inner norm is a batch norm. That one mixes utterances and
    padding, and its running statistics would average over routes whose experts feed it differently; a layer norm of each
    frame does none of this.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x_NSD: Tensor, padded_NS1: Tensor | None) -> Tensor:
        """Same shape as ``x_NSD``; padding does not leak into real frames."""
        x_NSD = F.glu(self.in_proj(self.norm(x_NSD)), dim=2)
        # Here and not before: biases have filled the padding again, and only the depthwise convolution looks to the side.
        if padded_NS1 is not None:
            x_NSD = x_NSD.masked_fill(padded_NS1, 0.0)
        x_NSD = self.depthwise(x_NSD.transpose(1, 2)).transpose(1, 2)
        return self.out_proj(F.silu(self.depthwise_norm(x_NSD)))


class ConformerLayer(nn.Module):
    """Half a step of feed-forward, self-attention, convolution, half a step of feed-forward, norm.

    Source: Conformer, arXiv:2005.08100, section 2.4; both feed-forward networks have experts of their own, under the
    same names. Positions are the sinusoids added to the encoder's input, not the paper's relative ones.
    """

    def __init__(self, dim: int, heads: int, make_ffn: MakeFFN, dropout: float, kernel: int) -> None:
        super().__init__()
        self.ffn_before_norm = nn.LayerNorm(dim)
        self.ffn_before = make_ffn()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.convolution = ConformerConvolution(dim, kernel)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = make_ffn()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NSD: Tensor, mask: Tensor | None, expert_N: Tensor) -> Tensor:
        """Same shape as ``x_NSD``; arguments as those of the Transformer's `EncoderLayer`."""
        x_NSD = x_NSD + 0.5 * self.dropout(self.ffn_before(self.ffn_before_norm(x_NSD), expert_N))
        x_NSD = x_NSD + self.dropout(self.attention(self.attention_norm(x_NSD), mask))
        x_NSD = x_NSD + self.dropout(self.convolution(x_NSD, padding_of(mask)))
        x_NSD = x_NSD + 0.5 * self.dropout(self.ffn(self.ffn_norm(x_NSD), expert_N))
        return self.norm(x_NSD)
