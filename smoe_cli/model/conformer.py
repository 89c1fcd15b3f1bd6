"""The Conformer's encoder layer, with both of its half-step feed-forward networks routed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from smoe_cli.model.dropout import Dropout
from smoe_cli.model.layers import MakeFFN, SelfAttention
from smoe_cli.model.rows import Rows

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

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """Same shape as ``x``; padding does not leak into real frames."""
        x = F.glu(self.in_proj(self.norm(x)), dim=-1)
        # Here and not before: biases have filled the padding again, and only the depthwise convolution looks to the side.
        x = rows.back(self.depthwise(rows.along_time(x).transpose(1, 2)).transpose(1, 2))
        return self.out_proj(F.silu(self.depthwise_norm(x)))


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
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rows: Rows, expert: Tensor) -> Tensor:
        """Same shape as ``x``; arguments as those of the Transformer's `EncoderLayer`."""
        x = x + 0.5 * self.dropout(self.ffn_before(self.ffn_before_norm(x), expert))
        x = x + self.dropout(self.attention(self.attention_norm(x), rows))
        x = x + self.dropout(self.convolution(x, rows))
        x = x + 0.5 * self.dropout(self.ffn(self.ffn_norm(x), expert))
        return self.norm(x)
