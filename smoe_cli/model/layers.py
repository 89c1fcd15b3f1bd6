"""The shared parts: attention, convolution, and the two kinds of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smoe_cli.model.experts import SupervisedMoE

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

    def project(self, x_NSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N,H,S,K)."""
        n, s, d = x_NSD.shape
        qkv = self.in_proj(x_NSD).view(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def forward(self, x_NSD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        q, k, v = self.project(x_NSD)
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)))


class CrossAttention(nn.Module):
    """Multi-head attention from decoder states to encoder states."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def keys_values(self, memory_NSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N,H,S,K) of the encoder's states: computed once per utterance."""
        n, s, d = memory_NSD.shape
        kv = self.kv_proj(memory_NSD).view(n, s, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return kv[0], kv[1]

    def forward(self, x_NUD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from U query rows; in beam search the rows are the beams, which share keys and values."""
        n, u, d = x_NUD.shape
        q = self.q_proj(x_NUD).view(n, u, self.heads, d // self.heads).transpose(1, 2)
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)))


def merge_heads(x_NHSK: Tensor) -> Tensor:
    """(N,H,S,K) -> (N,S,D)."""
    return x_NHSK.transpose(1, 2).flatten(2)


def padding_of(mask: Tensor | None) -> Tensor | None:
    """Attention mask (N,1,1,S), true at real frames -> (N,S,1), true at padding."""
    return None if mask is None else ~mask[:, 0, 0, :, None]


def run_layer(layer: nn.Module, recompute: bool, *inputs: Tensor | None) -> Tensor:
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

    def forward(self, x_NSD: Tensor, padded_NS1: Tensor | None) -> Tensor:
        """Same shape as ``x_NSD``; padding does not leak into real frames."""
        x_NSD = self.norm(x_NSD)
        if padded_NS1 is not None:
            x_NSD = x_NSD.masked_fill(padded_NS1, 0.0)
        return self.out_proj(F.silu(self.depthwise(x_NSD.transpose(1, 2)).transpose(1, 2)))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and, if asked for, convolution (both shared), and a routed feed-forward network."""

    def __init__(self, dim: int, heads: int, make_ffn: MakeFFN, dropout: float, conv_kernel: int | None) -> None:
        super().__init__()
        self.convolution = Convolution(dim, conv_kernel) if conv_kernel else None
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = make_ffn()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NSD: Tensor, mask: Tensor | None, expert_N: Tensor) -> Tensor:
        x_NSD = x_NSD + self.dropout(self.attention(self.attention_norm(x_NSD), mask))
        if self.convolution is not None:
            x_NSD = x_NSD + self.dropout(self.convolution(x_NSD, padding_of(mask)))
        return x_NSD + self.dropout(self.ffn(self.ffn_norm(x_NSD), expert_N))


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
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NUD: Tensor, memory_NSD: Tensor, memory_mask: Tensor | None, expert_N: Tensor) -> Tensor:
        """All U positions at once, each seeing only those before it (training)."""
        x_NUD = x_NUD + self.dropout(self.attention(self.attention_norm(x_NUD), causal=True))
        keys, values = self.memory_attention.keys_values(memory_NSD)
        x_NUD = x_NUD + self.dropout(self.memory_attention(self.memory_norm(x_NUD), keys, values, memory_mask))
        return x_NUD + self.dropout(self.ffn(self.ffn_norm(x_NUD), expert_N))

    def step(self, x_M1D: Tensor, cache: LayerCache, memory_mask: Tensor | None, expert_N: Tensor) -> Tensor:
        """One new position for M = N*B hypotheses; extends the cache."""
        n, b = cache.memory_keys.shape[0], x_M1D.shape[0] // cache.memory_keys.shape[0]
        q, k, v = self.attention.project(self.attention_norm(x_M1D))
        cache.keys, cache.values = torch.cat((cache.keys, k), 2), torch.cat((cache.values, v), 2)
        attended = F.scaled_dot_product_attention(q, cache.keys, cache.values)
        x_NBD = (x_M1D + self.attention.out_proj(merge_heads(attended))).view(n, b, -1)
        x_NBD = x_NBD + self.memory_attention(self.memory_norm(x_NBD), cache.memory_keys, cache.memory_values, memory_mask)
        x_NBD = x_NBD + self.ffn(self.ffn_norm(x_NBD), expert_N)
        return x_NBD.view(n * b, 1, -1)
