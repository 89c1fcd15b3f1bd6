"""What one second of audio costs: multiply-adds, counted from shapes alone, so that a model on the meta device will do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from smoe_cli.model.experts import SupervisedMoE
from smoe_cli.model.layers import CrossAttention, SelfAttention
from smoe_cli.model.speech_to_text import SpeechToText

UTTERANCE_S = 10
FRAMES_PER_S = 100
TOKENS_PER_S = 4
"""English at a vocabulary of 40,000 comes to about this many: 2.5 to 3 words a second, a little more than a token each."""


def multiply_adds_per_second(model: SpeechToText, heard_s: float = UTTERANCE_S) -> int:
    """Multiply-adds per second of audio, of one utterance of 10 s whose text is 40 tokens, decoded greedily with caches.

    Counted are the products of all matrices, convolutions and attentions of encoder and decoder, the output projection
    included; of routed layers one expert, the one that runs, and the shared one. Left out: additions, norms and activations,
    which are less than 1 %; the features; and the auxiliary CTC head, as in the number of parameters. A beam of B costs the
    decoder's share B times.

    Args:
        heard_s: What the encoder hears of an utterance of 10 s, if not just that: a model that pads all audio hears more.
    """
    frames = round(heard_s * FRAMES_PER_S)
    tokens = UTTERANCE_S * TOKENS_PER_S
    total = 0
    for conv, stride in zip(model.encoder.subsampler.convs, model.encoder.subsampler.strides, strict=True):
        frames = math.ceil(frames / stride)
        total += frames * _weights(conv)
    total += frames * sum(map(_weights, _that_run(model.encoder.layers)))
    total += tokens * sum(map(_weights, _that_run(model.decoder.layers)))
    total += tokens * _weights(model.decoder.output)
    dim = model.dims.dim
    for attention in _that_run(model.encoder.layers):
        if isinstance(attention, SelfAttention):
            total += 2 * dim * frames * frames
    for attention in _that_run(model.decoder.layers):
        if isinstance(attention, SelfAttention):
            total += 2 * dim * tokens * (tokens + 1) // 2
        elif isinstance(attention, CrossAttention):
            # Keys and values are made once for every frame, not for every token.
            total += 2 * dim * tokens * frames + (frames - tokens) * _weights(attention.kv_proj)
    return round(total / UTTERANCE_S)


def _that_run(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all below it, but only one expert of each routed layer; experts of a layer are of one size."""
    yield module
    children = list(module.children())
    if isinstance(module, SupervisedMoE):
        children = [child for child in children if child is not module.experts] + [next(iter(module.experts.values()))]
    for child in children:
        yield from _that_run(child)


def _weights(module: nn.Module) -> int:
    """Multiply-adds of a module itself at one position: each weight of a matrix or convolution is used once."""
    return module.weight.numel() if isinstance(module, nn.Linear | nn.Conv1d) else 0
