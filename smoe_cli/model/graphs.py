"""The dense model of one route as two ONNX graphs: the encoder, and one step of the decoder with its caches."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoe_cli.model.experts import SupervisedMoE
from smoe_cli.model.layers import LayerCache
from smoe_cli.model.speech_to_text import DecoderState, Memory, SpeechToText

# N utterances, T frames, F mel bins, S encoder frames, B beams, U tokens so far, H heads, K head width, V vocabulary
MEMORY_MASK = "memory_mask"


def memory_names(layers: int) -> list[str]:
    """Cross-attention of each decoder layer: what the encoder hands to every step of the decoder."""
    return [f"memory_{what}.{layer}" for layer in range(layers) for what in ("keys", "values")]


def cache_names(layers: int) -> list[str]:
    """Self-attention of each decoder layer: what a step hands to the next one, there named `next_keys.0` and so on."""
    return [f"{what}.{layer}" for layer in range(layers) for what in ("keys", "values")]


class _OnlyExpert(nn.Module):
    """A routed network that has nothing to choose, without the reading of indices that a graph cannot hold."""

    def __init__(self, moe: SupervisedMoE) -> None:
        super().__init__()
        (self.expert,) = moe.experts.values()
        self.shared = moe.shared

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        out: Tensor = self.expert(x)
        return out if self.shared is None else out + self.shared(x)


class EncoderGraph(nn.Module):
    """Features (N,T,F) and lengths (N,) -> mask (N,S), keys and values (N,H,S,K) per decoder layer, CTC log probabilities."""

    def __init__(self, model: SpeechToText) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        memory = model.encoder(features_NTF, lengths_N, torch.zeros_like(lengths_N))
        if memory.mask is None:
            raise ValueError("nothing is padded: the graph of a batch without mask would not fit one with it")
        layers = model.decoder.start(memory, 1).layers
        found = [memory.mask[:, 0, 0], *(part for layer in layers for part in (layer.memory_keys, layer.memory_values))]
        return (*found, F.log_softmax(model.ctc(memory.states), -1)) if model.ctc is not None else tuple(found)


class StepGraph(nn.Module):
    """One token for each of N x B hypotheses -> logits (N,B,V), and the caches (N,B,H,U,K) one token longer.

    How many tokens there are already is the length of the caches; beams of an utterance share its memory.
    """

    def __init__(self, model: SpeechToText) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, tokens_NB: Tensor, mask_NS: Tensor, memory: Sequence[Tensor], caches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        beams = tokens_NB.shape
        flat = [cache.flatten(0, 1) for cache in caches]
        layers = [LayerCache(*parts) for parts in zip(flat[::2], flat[1::2], memory[::2], memory[1::2], strict=True)]
        # Of the memory, a step reads nothing but the mask.
        rest = Memory(states=mask_NS, lengths=mask_NS, mask=mask_NS[:, None, None])
        state = DecoderState(layers, caches[0].shape[3])
        logits = self.decoder.step(tokens_NB.flatten(), state, rest, torch.zeros(0))
        extended = (part.unflatten(0, beams) for layer in state.layers for part in (layer.keys, layer.values))
        return (logits.unflatten(0, beams), *extended)


def one_expert_only(model: SpeechToText) -> SpeechToText:
    """A copy of a model without choice, whose every feed-forward network is its only expert; tensors are shared."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, memo).eval()
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, SupervisedMoE):
                setattr(module, name, _OnlyExpert(child))
    return plain


def export_encoder(model: SpeechToText, path: Path) -> None:
    """Write the graph of `EncoderGraph`; sizes N and T are free. The model is one of `one_expert_only`."""
    dims = model.dims
    frames = min(64, dims.encoder_positions * dims.subsampling or 64)
    examples = (torch.randn(2, frames, dims.mel_bins), torch.tensor([frames, frames * 2 // 3]))
    outputs = [MEMORY_MASK, *memory_names(len(model.decoder.layers)), *(["ctc_log_probs"] if model.ctc is not None else [])]
    shapes = ({0: "N", 1: "T"}, {0: "N"})
    _export(EncoderGraph(model), examples, shapes, ["features", "lengths"], outputs, path)


def export_step(model: SpeechToText, path: Path) -> None:
    """Write the graph of `StepGraph`; sizes N, B, S and U are free, and U may be 0. The model is one of `one_expert_only`."""
    dims, layers = model.dims, len(model.decoder.layers)
    n, b, s, u, heads, width = 2, 3, 5, 4, dims.heads, dims.dim // dims.heads
    tokens, mask = torch.zeros(n, b, dtype=torch.int64), torch.ones(n, s, dtype=torch.bool)
    memory = [torch.randn(n, heads, s, width) for _ in memory_names(layers)]
    caches = [torch.randn(n, b, heads, u, width) for _ in cache_names(layers)]
    shapes = ({0: "N", 1: "B"}, {0: "N", 1: "S"}, [{0: "N", 2: "S"}] * len(memory), [{0: "N", 1: "B", 3: "U"}] * len(caches))
    inputs = ["tokens", MEMORY_MASK, *memory_names(layers), *cache_names(layers)]
    # An output may not have the name of an input.
    outputs = ["logits", *(f"next_{name}" for name in cache_names(layers))]
    _export(StepGraph(model), (tokens, mask, memory, caches), shapes, inputs, outputs, path)


def _export(
    graph: nn.Module, examples: tuple[Any, ...], shapes: tuple[Any, ...], inputs: list[str], outputs: list[str], path: Path
) -> None:
    """Write a graph in one file.

    With torch.export underneath: the older exporter writes down what one example did, and with torch 2.11 its graphs of these
    modules compute something else for a batch of another size.
    """
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            examples,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        program.save(path, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters and quantisers say to developers off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
