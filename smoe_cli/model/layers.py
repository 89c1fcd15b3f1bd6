"""The shared parts: attention, convolution, and the two kinds of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smoe_cli.model.dropout import Dropout
from smoe_cli.model.experts import SupervisedMoE
from smoe_cli.model.rows import Padded, Rows, attend

MakeFFN = Callable[[], SupervisedMoE]
"""Makes one feed-forward network of a layer: what is routed, and how wide it is, is the business of the stack."""
# N utterances, S positions, U tokens, D model width, H heads, K head width, B beams


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of positions (...,D), each (...,H,K)."""
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, v

    def forward(self, x: Tensor, rows: Rows, causal: bool = False) -> Tensor:
        """Same shape as ``x``, whose positions lie as ``rows`` says."""
        return self.out_proj(attend(*self.project(x), rows, rows, causal))


class CrossAttention(nn.Module):
    """Multi-head attention from decoder states to encoder states."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (...,H,K) of the encoder's states (...,D): computed once per utterance."""
        keys, values = self.kv_proj(memory).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return keys, values

    def forward(self, x_NUD: Tensor, memory: Tensor, rows: Rows) -> Tensor:
        """Attend from U positions of each utterance to the encoder's states, which lie as ``rows`` says."""
        return self.attend(x_NUD, *self.keys_values(memory), rows)

    def attend(self, x_NUD: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """As `forward`, of keys and values that are there; in beam search the U rows are the beams, which share them."""
        q_NUHK = self.q_proj(x_NUD).unflatten(-1, (self.heads, -1))
        return self.out_proj(attend(q_NUHK, keys, values, Padded(), rows))


def run_layer(layer: nn.Module, recompute: bool, *inputs: Tensor | Rows) -> Tensor:
    """What a layer makes of its inputs.

    Args:
        recompute: Keep only the inputs, and compute the rest again where gradients need it; dropout then draws what it drew before.
    """
    out: Tensor = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
    return out


class Convolution(nn.Module):
    """What lies near in time, mixed per channel: norm, depthwise convolution, SiLU, projection.

    A lean form of the Conformer's module (arXiv:2005.08100, section 2.2), without its gated expansion.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """Same shape as ``x``; padding does not leak into real frames."""
        x_NSD = self.depthwise(rows.along_time(self.norm(x)).transpose(1, 2)).transpose(1, 2)
        return self.out_proj(F.silu(rows.back(x_NSD)))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and, if asked for, convolution (both shared), and a routed feed-forward network."""

    def __init__(self, dim: int, heads: int, make_ffn: MakeFFN, dropout: float, conv_kernel: int | None) -> None:
        super().__init__()
        self.convolution = Convolution(dim, conv_kernel) if conv_kernel else None
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = make_ffn()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rows: Rows, expert: Tensor) -> Tensor:
        """Same shape as ``x``, whose positions lie as ``rows`` says; ``expert`` is that of each row of its first dimension."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rows))
        if self.convolution is not None:
            x = x + self.dropout(self.convolution(x, rows))
        return x + self.dropout(self.ffn(self.ffn_norm(x), expert))


@dataclass
class LayerCache:
    """What one decoder layer remembers while decoding.

    Attributes:
        keys, values: Self-attention of the tokens so far, (N*B,H,U,K).
        memory_keys, memory_values: Cross-attention, (N,H,S,K), shared by an utterance's beams.
    """

    keys: Tensor
    values: Tensor
    memory_keys: Tensor
    memory_values: Tensor


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention and cross-attention (shared) and a routed feed-forward network."""

    def __init__(self, dim: int, heads: int, make_ffn: MakeFFN, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.memory_norm = nn.LayerNorm(dim)
        self.memory_attention = CrossAttention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = make_ffn()
        self.dropout = Dropout(dropout)

    def forward(self, x_NUD: Tensor, memory: Tensor, rows: Rows, expert_N: Tensor) -> Tensor:
        """All U positions at once, each seeing only those before it (training); the encoder's states lie as ``rows`` says."""
        x_NUD = x_NUD + self.dropout(self.attention(self.attention_norm(x_NUD), Padded(), causal=True))
        x_NUD = x_NUD + self.dropout(self.memory_attention(self.memory_norm(x_NUD), memory, rows))
        return x_NUD + self.dropout(self.ffn(self.ffn_norm(x_NUD), expert_N))

    def step(self, x_M1D: Tensor, cache: LayerCache, memory_mask: Tensor | None, expert_N: Tensor) -> Tensor:
        """One new position for M = N*B hypotheses; extends the cache."""
        n, b = cache.memory_keys.shape[0], x_M1D.shape[0] // cache.memory_keys.shape[0]
        q, k, v = (x.transpose(1, 2) for x in self.attention.project(self.attention_norm(x_M1D)))
        cache.keys, cache.values = torch.cat((cache.keys, k), 2), torch.cat((cache.values, v), 2)
        attended = F.scaled_dot_product_attention(q, cache.keys, cache.values).transpose(1, 2).flatten(2)
        x_NBD = (x_M1D + self.attention.out_proj(attended)).view(n, b, -1)
        keys, values = cache.memory_keys.transpose(1, 2), cache.memory_values.transpose(1, 2)
        x_NBD = x_NBD + self.memory_attention.attend(self.memory_norm(x_NBD), keys, values, Padded(memory_mask))
        x_NBD = x_NBD + self.ffn(self.ffn_norm(x_NBD), expert_N)
        return x_NBD.view(n * b, 1, -1)
