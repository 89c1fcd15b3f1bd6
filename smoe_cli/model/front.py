"""Before the first layer: convolutions that shorten the features, and positions; and what each family of models has of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from smoe_cli.model.speech_to_text import Dimensions

# N utterances, T frames, S positions after subsampling, F mel bins, D model width


class ConvSubsampler(nn.Module):
    """Convolutions along time, each with an activation; those with stride 2 halve the frame rate.

    Args:
        convs: In the order in which data meets them.
        activation: After each of them, on (N, channels, frames).
    """

    def __init__(self, convs: Sequence[nn.Conv1d], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.strides = [conv.stride[0] for conv in convs]
        self.activation = activation

    def lengths(self, lengths_N: Tensor) -> Tensor:
        """Lengths (N,) of the states that `forward` makes of features with these lengths."""
        for stride in self.strides:
            lengths_N = (lengths_N + stride - 1) // stride
        return lengths_N

    def forward(self, x_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N,T,F) features -> (N,S,D) states and their lengths, S = ceil(T / factor).

        Frames beyond an utterance's length are zeroed before every convolution, so that an
        utterance's states do not depend on what it was batched with.
        """
        x = x_NTF.transpose(1, 2)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            frames = torch.arange(x.shape[2], device=x.device)
            x = x.masked_fill((frames[None, :] >= lengths_N[:, None])[:, None, :], 0.0)
            x = self.activation(conv(x))
            lengths_N = (lengths_N + stride - 1) // stride
        return x.transpose(1, 2).contiguous(), lengths_N


def gated_subsampler(dims: Dimensions) -> ConvSubsampler:
    """Kernel 5, stride 2, gated linear units. Source: the fairseq S2T front end, arXiv:2010.05171."""
    count = dims.subsampling.bit_length() - 1
    inputs = [dims.mel_bins] + [dims.subsampling_channels // 2] * (count - 1)
    outputs = [dims.subsampling_channels] * (count - 1) + [2 * dims.dim]
    convs = [nn.Conv1d(i, o, kernel_size=5, stride=2, padding=2) for i, o in zip(inputs, outputs, strict=True)]
    return ConvSubsampler(convs, partial(F.glu, dim=1))


def whisper_subsampler(dims: Dimensions) -> ConvSubsampler:
    """Kernel 3, GELU; the first keeps the frame rate. Source: Whisper, arXiv:2212.04356, section 2.2."""
    strides = [1] + [2] * (dims.subsampling.bit_length() - 1)
    inputs = [dims.mel_bins] + [dims.dim] * (len(strides) - 1)
    convs = [nn.Conv1d(i, dims.dim, kernel_size=3, stride=stride, padding=1) for i, stride in zip(inputs, strides, strict=True)]
    return ConvSubsampler(convs, F.gelu)


def sinusoids(positions_S: Tensor, dim: int, steps: int) -> Tensor:
    """Sines, then cosines, of geometrically falling rates from 1 to 10,000 ** (-(dim / 2 - 1) / steps), shape (S, dim).

    Source: arXiv:1706.03762, section 3.5, where ``steps`` is dim / 2; fairseq's and Whisper's have one less.
    """
    rate = torch.exp(torch.arange(dim // 2, device=positions_S.device, dtype=torch.float32) * (-math.log(10000.0) / steps))
    angle = positions_S.to(torch.float32)[:, None] * rate[None, :]
    return torch.cat((angle.sin(), angle.cos()), dim=1)


class Sinusoids(nn.Module):
    """Adds sinusoidal positions.

    Args:
        dim: D.
        steps: As in `sinusoids`.
        first: Position of the first state.
    """

    def __init__(self, dim: int, steps: int, first: int = 0) -> None:
        super().__init__()
        self.dim, self.steps, self.first = dim, steps, first

    def forward(self, x_NSD: Tensor, start: int | Tensor = 0) -> Tensor:
        """Same shape; ``start`` is how many states came before."""
        positions = torch.arange(x_NSD.shape[1], device=x_NSD.device) + start + self.first
        return x_NSD + sinusoids(positions, self.dim, self.steps).to(x_NSD.dtype)


class PositionTable(nn.Module):
    """Adds positions from a table, which is also the limit of how many there can be.

    Args:
        rows: Positions.
        dim: D.
        trained: Whether training moves them; fixed ones start as sinusoids.
    """

    def __init__(self, rows: int, dim: int, trained: bool) -> None:
        super().__init__()
        weight = sinusoids(torch.arange(rows), dim, dim // 2 - 1)
        if trained:
            self.weight = nn.Parameter(torch.randn(rows, dim) * dim**-0.5)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x_NSD: Tensor, start: int | Tensor = 0) -> Tensor:
        """Same shape; ``start`` is how many states came before.

        Raises:
            ValueError: If there are more states than positions.
        """
        if isinstance(start, int) and start + x_NSD.shape[1] > len(self.weight):
            raise ValueError(f"{start + x_NSD.shape[1]} states, but the model has {len(self.weight)} positions")
        positions = torch.arange(x_NSD.shape[1], device=x_NSD.device) + start
        return x_NSD + self.weight[positions].to(x_NSD.dtype)


@dataclass(frozen=True)
class Family:
    """What models of one origin have in common.

    Attributes:
        make_subsampler: Makes the convolutions.
        encoder_positions, decoder_positions: Make what adds positions to the encoder's and decoder's input.
        scale_embedding: Whether token embeddings are multiplied by the root of the width.
        activation: Of the feed-forward networks; None: ReLU, and the encoder kind's own in the encoder.
    """

    make_subsampler: Callable[[Dimensions], ConvSubsampler]
    encoder_positions: Callable[[Dimensions], nn.Module]
    decoder_positions: Callable[[Dimensions], nn.Module]
    scale_embedding: bool = True
    activation: str | None = None


def _own(dims: Dimensions) -> nn.Module:
    return Sinusoids(dims.dim, dims.dim // 2)


def _fairseq(dims: Dimensions) -> nn.Module:
    # Position 0 belonged to padding's neighbour and 1 to padding itself: the first state is at 2.
    return Sinusoids(dims.dim, dims.dim // 2 - 1, first=2)


FAMILIES = {
    "smoe": Family(gated_subsampler, _own, _own),
    "speech2text": Family(gated_subsampler, _fairseq, _fairseq),
    "whisper": Family(
        whisper_subsampler,
        lambda dims: PositionTable(dims.encoder_positions, dims.dim, trained=False),
        lambda dims: PositionTable(dims.decoder_positions, dims.dim, trained=True),
        scale_embedding=False,
        activation="gelu",
    ),
}
