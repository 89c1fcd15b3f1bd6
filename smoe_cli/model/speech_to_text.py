"""Encoder, decoder and auxiliary CTC head, joined; built from plain dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from smoe_cli.model.conformer import ConformerLayer
from smoe_cli.model.dropout import Dropout
from smoe_cli.model.experts import SHARED, SupervisedMoE, UnroutedFFN, order_of_experts
from smoe_cli.model.front import FAMILIES
from smoe_cli.model.layers import DecoderLayer, EncoderLayer, LayerCache, MakeFFN, run_layer
from smoe_cli.model.rows import Packed, Padded, Rows

# N utterances, T frames, F mel bins, S encoder frames, U tokens, D model width, V vocabulary, P real frames of a batch, B beams, M = N*B


@dataclass(frozen=True)
class Dimensions:
    """Everything the architecture needs to know.

    Attributes:
        family: Where the model's shape comes from, one of `FAMILIES`.
        encoder_positions, decoder_positions: Rows of the tables of positions, in a family that has such.
        encoder: Kind of encoder layer, one of `ENCODERS`.
        encoder_routed_layers, decoder_routed_layers: Layers that choose among the experts, from 0; None: all.
        encoder_shared_hidden_dim, decoder_shared_hidden_dim: Width of the shared expert of every layer; None: there is none.
        conv_kernel: Width of the depthwise convolutions; None: a Transformer has none, a Conformer must.
    """

    vocab_size: int
    mel_bins: int = 80
    dim: int = 512
    heads: int = 8
    encoder_layers: int = 12
    decoder_layers: int = 6
    encoder_hidden_dim: int = 2048
    decoder_hidden_dim: int = 2048
    encoder_experts: Sequence[str] = ("dense",)
    decoder_experts: Sequence[str] = ("dense",)
    subsampling: int = 4
    subsampling_channels: int = 1024
    family: str = "smoe"
    encoder_positions: int = 0
    decoder_positions: int = 0
    encoder: str = "transformer"
    encoder_routed_layers: Sequence[int] | None = None
    decoder_routed_layers: Sequence[int] | None = None
    encoder_shared_hidden_dim: int | None = None
    decoder_shared_hidden_dim: int | None = None
    conv_kernel: int | None = None
    dropout: float = 0.1
    tie_embeddings: bool = False
    ctc: bool = True


def _transformer_layer(dims: Dimensions, make_ffn: MakeFFN) -> nn.Module:
    return EncoderLayer(dims.dim, dims.heads, make_ffn, dims.dropout, dims.conv_kernel)


def _conformer_layer(dims: Dimensions, make_ffn: MakeFFN) -> nn.Module:
    if dims.conv_kernel is None:
        raise ValueError("a Conformer needs conv_kernel")
    return ConformerLayer(dims.dim, dims.heads, make_ffn, dims.dropout, dims.conv_kernel)


@dataclass(frozen=True)
class EncoderKind:
    """How encoders differ.

    Attributes:
        make_layer: Makes one layer.
        activation: Of its feed-forward networks.
        norm_follows: Whether the stack ends with a norm, because its layers do not.
    """

    make_layer: Callable[[Dimensions, MakeFFN], nn.Module]
    activation: str
    norm_follows: bool


ENCODERS = {
    "transformer": EncoderKind(_transformer_layer, "relu", norm_follows=True),
    "conformer": EncoderKind(_conformer_layer, "silu", norm_follows=False),
}


def _ffn_maker(dims: Dimensions, stack: str, layer: int) -> MakeFFN:
    """What makes the feed-forward networks of one layer: routed or not, as wide as its stack's."""
    own = FAMILIES[dims.family].activation
    if stack == "encoder":
        names, routed, hidden = dims.encoder_experts, dims.encoder_routed_layers, dims.encoder_hidden_dim
        shared, activation = dims.encoder_shared_hidden_dim, own or ENCODERS[dims.encoder].activation
    else:
        names, routed, hidden = dims.decoder_experts, dims.decoder_routed_layers, dims.decoder_hidden_dim
        shared, activation = dims.decoder_shared_hidden_dim, own or "relu"
    if routed is None or layer in routed:
        return partial(SupervisedMoE, names, dims.dim, hidden, dims.dropout, shared, activation)
    return partial(UnroutedFFN, dims.dim, hidden, dims.dropout, shared, activation)


@dataclass
class Memory:
    """What the encoder hands to the decoder.

    Attributes:
        states: (N,S,D).
        lengths: (N,) real encoder frames.
        mask: (N,1,1,S), true where attention may look; None when nothing is padded.
        packed: (P,D), the real frames one utterance after the other, if the encoder worked on these alone.
    """

    states: Tensor
    lengths: Tensor
    mask: Tensor | None
    packed: Tensor | None = None

    def real(self) -> Tensor:
        """(P,D), the real frames one utterance after the other."""
        if self.packed is not None:
            return self.packed
        return self.states.flatten(0, 1) if self.mask is None else self.states[self.mask[:, 0, 0]]

    def laid_out(self) -> tuple[Tensor, Rows]:
        """The states without padding if they are there, else with it; and how they lie."""
        return (self.states, Padded(self.mask)) if self.packed is None else (self.packed, Packed(self.lengths.tolist()))

    def reordered(self, order_N: Tensor) -> Memory:
        """With utterance ``order_N[n]`` in place n."""
        packed = self.packed
        if packed is not None:
            parts = packed.split(self.lengths.tolist())
            packed = torch.cat([parts[n] for n in order_N.tolist()])
        order_N = order_N.to(self.states.device)
        return Memory(self.states[order_N], self.lengths[order_N], None if self.mask is None else self.mask[order_N], packed)


class Encoder(nn.Module):
    """Log-mel features -> states. Source: arXiv:2508.10009, figure 1; pre-norm as in arXiv:2010.05171.

    Attributes:
        recompute: Whether training keeps only the inputs of layers, and computes the rest again where gradients need it.
        packs: Whether, on a CPU, layers see the real frames alone; elsewhere a batch is one tensor, padding and all.
    """

    recompute = False
    packs = True

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.subsampler = FAMILIES[dims.family].make_subsampler(dims)
        self.positions = FAMILIES[dims.family].encoder_positions(dims)
        self.dropout = Dropout(dims.dropout)
        self.layers = nn.ModuleList(
            ENCODERS[dims.encoder].make_layer(dims, _ffn_maker(dims, "encoder", layer)) for layer in range(dims.encoder_layers)
        )
        self.norm = nn.LayerNorm(dims.dim) if ENCODERS[dims.encoder].norm_follows else nn.Identity()

    def forward(self, features_NTF: Tensor, lengths_N: Tensor, expert_N: Tensor) -> Memory:
        """Encode a batch.

        Args:
            features_NTF: Log-mel features, padded.
            lengths_N: Real frames per utterance.
            expert_N: Encoder expert per utterance, int64 on the CPU.
        """
        x, lengths_N = self.subsampler(features_NTF, lengths_N)
        x = self.dropout(self.positions(x))
        mask = None
        # A graph that is being exported cannot look at its inputs.
        if torch.compiler.is_exporting() or int(lengths_N.min()) < x.shape[1]:
            mask = (torch.arange(x.shape[1], device=x.device)[None, :] < lengths_N[:, None])[:, None, None, :]
        if torch.compiler.is_exporting():
            return Memory(self._layers(x, Padded(mask), expert_N), lengths_N, mask)
        order = order_of_experts(expert_N)
        memory = Memory(x, lengths_N, mask)
        if order is not None:
            memory, expert_N = memory.reordered(order), expert_N[order]
        if self.leaves_out_padding(memory.lengths):
            rows = Packed(memory.lengths.tolist())
            memory.packed = self._layers(rows.back(memory.states), rows, rows.experts(expert_N))
            memory.states = rows.along_time(memory.packed)
        else:
            memory.states = self._layers(memory.states, Padded(memory.mask), expert_N)
        return memory if order is None else memory.reordered(order.argsort())

    def leaves_out_padding(self, lengths_N: Tensor) -> bool:
        """Whether the layers work on the real frames alone in a batch whose utterances have so many after subsampling."""
        return self.packs and lengths_N.device.type == "cpu" and bool(lengths_N.min() < lengths_N.max())

    def _layers(self, x: Tensor, rows: Rows, expert: Tensor) -> Tensor:
        for layer in self.layers:
            x = run_layer(layer, self.recompute and self.training, x, rows, expert)
        out: Tensor = self.norm(x)
        return out


@dataclass
class DecoderState:
    """Caches of every decoder layer, and how many tokens they hold."""

    layers: list[LayerCache]
    tokens: int = 0

    def reorder(self, index_M: Tensor) -> None:
        """Let hypothesis m continue what hypothesis ``index_M[m]`` was; beams stay within their utterance."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index_M], layer.values[index_M]


class Decoder(nn.Module):
    """Tokens so far and encoder states -> next-token logits; ``recompute`` as in `Encoder`."""

    recompute = False

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.scale = math.sqrt(dims.dim) if FAMILIES[dims.family].scale_embedding else 1.0
        self.embedding = nn.Embedding(dims.vocab_size, dims.dim)
        self.positions = FAMILIES[dims.family].decoder_positions(dims)
        self.dropout = Dropout(dims.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(dims.dim, dims.heads, _ffn_maker(dims, "decoder", layer), dims.dropout) for layer in range(dims.decoder_layers)
        )
        self.norm = nn.LayerNorm(dims.dim)
        self.output = nn.Linear(dims.dim, dims.vocab_size, bias=False)
        if dims.tie_embeddings:
            self.output.weight = self.embedding.weight

    def embed(self, tokens_NU: Tensor, start: int | Tensor) -> Tensor:
        """(N,U,D) of tokens before which there were ``start`` others."""
        return self.dropout(self.positions(self.scale * self.embedding(tokens_NU), start))

    def forward(self, tokens_NU: Tensor, memory: Memory, expert_N: Tensor) -> Tensor:
        """States (N,U,D) from which `output` makes logits; position u sees tokens 0..u."""
        x = self.embed(tokens_NU, 0)
        order = order_of_experts(expert_N)
        if order is not None:
            x, memory, expert_N = x[order.to(x.device)], memory.reordered(order), expert_N[order]
        heard, rows = memory.laid_out()
        for layer in self.layers:
            x = run_layer(layer, self.recompute and self.training, x, heard, rows, expert_N)
        states: Tensor = self.norm(x)
        return states if order is None else states[order.argsort().to(x.device)]

    def start(self, memory: Memory, beams: int) -> DecoderState:
        """Empty caches for N*B hypotheses, with the cross-attention keys computed once per utterance."""
        layers = []
        for layer in self.layers:
            made = cast(DecoderLayer, layer).memory_attention.keys_values(memory.states)
            keys, values = (x.transpose(1, 2) for x in made)
            empty = keys.new_empty(keys.shape[0] * beams, keys.shape[1], 0, keys.shape[3])
            layers.append(LayerCache(empty, empty, keys, values))
        return DecoderState(layers)

    def step(self, tokens_M: Tensor, state: DecoderState, memory: Memory, expert_N: Tensor) -> Tensor:
        """Logits (M,V) after one more token per hypothesis; extends the caches."""
        x = self.embed(tokens_M[:, None], state.tokens)
        for layer, cache in zip(self.layers, state.layers, strict=True):
            x = cast(DecoderLayer, layer).step(x, cache, memory.mask, expert_N)
        state.tokens += 1
        logits: Tensor = self.output(self.norm(x[:, 0]))
        return logits


class SpeechToText(nn.Module):
    """The whole model.

    Source: S-MoE, arXiv:2508.10009. Attention, convolution, embeddings and norms are shared by all routes; only the
    feed-forward experts differ.
    """

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
        self.ctc = nn.Linear(dims.dim, dims.vocab_size) if dims.ctc else None
        self.apply(_initialise)

    def forward(
        self, features_NTF: Tensor, lengths_N: Tensor, tokens_NU: Tensor, encoder_expert_N: Tensor, decoder_expert_N: Tensor
    ) -> tuple[Tensor, Memory]:
        """Decoder states (N,U,D) before the vocabulary projection, and the encoder's memory."""
        memory = self.encoder(features_NTF, lengths_N, encoder_expert_N)
        return self.decoder(tokens_NU, memory, decoder_expert_N), memory

    def routed_networks(self) -> Iterator[tuple[str, int, str, SupervisedMoE]]:
        """Every set of experts as (stack, layer number, name in the layer, experts), in the order in which data meets them.

        A Conformer layer has two, `ffn_before` and `ffn`; a layer that does not choose, in a stack that does, has none.
        """
        return (found for found in self._networks() if not isinstance(found[-1], UnroutedFFN))

    def expert_sets(self) -> Iterator[tuple[str, SupervisedMoE]]:
        """Every set of experts as (stack, experts), those of one in layers that do not choose too."""
        return ((stack, experts) for stack, _, _, experts in self._networks())

    def _networks(self) -> Iterator[tuple[str, int, str, SupervisedMoE]]:
        for stack, layers in (("encoder", self.encoder.layers), ("decoder", self.decoder.layers)):
            for number, layer in enumerate(layers):
                for name, part in layer.named_children():
                    if isinstance(part, SupervisedMoE):
                        yield stack, number, name, part

    def routed_layers(self) -> Iterator[tuple[str, int, SupervisedMoE]]:
        """Every set of experts as (stack, layer number, experts): `routed_networks` where names do not matter."""
        for stack, number, _, experts in self.routed_networks():
            yield stack, number, experts


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        # A gated linear unit passes about 0.27 of the variance; this gain keeps the signal's scale through the subsampler,
        # so that it does not drown in the positions that are added to it. No such unit follows a depthwise convolution.
        gain = 1.9 if module.groups == 1 else 1.0
        nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_channels // module.groups * module.kernel_size[0]))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


def count_parameters(model: SpeechToText) -> dict[str, int]:
    """Total and active parameters, and those of each expert summed over its stack's layers.

    Active: what one utterance's forward pass uses, i.e. one expert per layer, and the shared one. The auxiliary CTC head, which
    serves training, is counted apart (`ctc_head`) as published parameter counts leave it out.
    """
    head = sum(p.numel() for p in model.ctc.parameters()) if model.ctc is not None else 0
    total = sum(p.numel() for p in model.parameters()) - head
    counts: dict[str, int] = {}
    idle = 0
    for stack, moe in model.expert_sets():
        sizes = {name: sum(p.numel() for p in expert.parameters()) for name, expert in moe.experts.items()}
        idle += sum(sizes.values()) - max(sizes.values())
        for name, size in sizes.items():
            counts[f"{stack}.{name}"] = counts.get(f"{stack}.{name}", 0) + size
        if moe.shared is not None:
            shared = sum(p.numel() for p in moe.shared.parameters())
            counts[f"{stack}.{SHARED}"] = counts.get(f"{stack}.{SHARED}", 0) + shared
    return {"total": total, "active": total - idle, "ctc_head": head, **counts}
