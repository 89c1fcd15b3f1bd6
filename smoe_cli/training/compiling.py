"""`torch.compile` for training: each attention, convolution and expert, for all shapes that batches have."""

from __future__ import annotations

from torch import nn

from smoe_cli.errors import ConfigError
from smoe_cli.model.conformer import ConformerConvolution
from smoe_cli.model.experts import ExpertFFN
from smoe_cli.model.front import ConvSubsampler
from smoe_cli.model.layers import Convolution, CrossAttention, SelfAttention
from smoe_cli.model.speech_to_text import Encoder

COMPILED = (SelfAttention, CrossAttention, Convolution, ConformerConvolution, ExpertFFN, ConvSubsampler)
"""Modules without choices inside: which expert runs is decided in Python, between them, so that no route makes a new graph."""
GRAPHS = 64
"""Most graphs of one kind of module: by shapes that are 1, masks that are there or not, training or validation, and precision."""


def compile_parts(model: nn.Module) -> int:
    """Let the parts of a model be compiled when they first run; returns how many there are.

    Lengths and numbers of utterances are free in what is compiled, so that buckets do not compile anew. On a CPU dropout draws otherwise
    than in what is not compiled; else results differ only by the order of sums.

    Raises:
        ConfigError: If this machine has no C++ compiler, which torch.compile needs.
    """
    import torch._dynamo.config
    import torch._inductor.config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "`train.compile` needs a C++ compiler, and this machine has none",
            "install one (for example `apt-get install g++`), name it in the variable CXX, or set `train.compile` to false",
        ) from error
    torch._dynamo.config.recompile_limit = GRAPHS
    torch._inductor.config.fallback_random = True
    for encoder in (part for part in model.modules() if isinstance(part, Encoder)):
        # Every batch has other lengths, and what goes through utterances one by one would be compiled for each.
        encoder.packs = False
    parts = [part for part in model.modules() if isinstance(part, COMPILED)]
    for part in parts:
        part.compile(dynamic=True)
    return len(parts)
