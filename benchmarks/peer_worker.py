"""The process of one variant of benchmarks/peers.py: it builds a model of one library, and does a training step when told to.

    python benchmarks/peer_worker.py '{"system": "espnet", "label": "espnet", "dtype": "fp32", "matmul": "highest"}' --scale tiny

It reads batches, one a line, such as `{"frames": [1000, 700], "tokens": [40, 28], "seed": 0}`, and answers each with a line. Every library
has its own code, loss and mask of padding; the models are as its recipes make them, but for the size.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoe_cli.batching import IGNORE_ID, Batch
from smoe_cli.model.front import gated_subsampler
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText
from smoe_cli.tokenizer import PAD_ID
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.allocator import keep_memory
from smoe_cli.training.memory import Memory
from smoe_cli.training.optimiser import clip, make_optimiser
from smoe_cli.training.precision import Precision
from smoe_cli.training.step import losses_of

# N utterances, T frames, F mel bins, U tokens

TINY = {"dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "encoder_hidden_dim": 64, "decoder_hidden_dim": 64}
SCALES: dict[str, dict[str, Any]] = {"paper": {"vocab_size": 40_000}, "tiny": {"vocab_size": 300, "subsampling_channels": 16} | TINY}
CLIP_NORM, LEARNING_RATE, LABEL_SMOOTHING = 5.0, 1e-4, 0.1
CPU = torch.device("cpu")
GEMM = "matrix products"
GEMM_SHAPES = ((2000, 512, 2048), (2000, 2048, 512), (2048, 2048, 2048))
"""Rows, inputs, outputs: of the feed-forward networks, and a large square."""


@dataclass(frozen=True)
class Shape:
    """A batch, from which every process makes the same: frames and target tokens of each utterance."""

    frames: list[int]
    tokens: list[int]
    seed: int

    @property
    def fill(self) -> float:
        return sum(self.frames) / (len(self.frames) * max(self.frames))


@dataclass
class Speech:
    """The tensors of a batch, padded: features (N,T,F) and tokens (N,U) with zeros, which is no token of a text."""

    features: Tensor
    frames: Tensor
    tokens_in: Tensor
    targets: Tensor
    tokens: Tensor

    def targets_with(self, padding: int) -> Tensor:
        """Targets with another value for padding."""
        return self.targets.masked_fill(torch.arange(self.targets.shape[1], device=self.tokens.device) >= self.tokens[:, None], padding)

    def to(self, device: torch.device) -> Speech:
        return Speech(*(getattr(self, field.name).to(device) for field in fields(self)))


Loss = Callable[[Speech], Tensor]


def speak(shape: Shape, dims: Dimensions) -> Speech:
    generator = torch.Generator().manual_seed(shape.seed)
    frames, tokens = torch.tensor(shape.frames), torch.tensor(shape.tokens)
    features = torch.randn(len(frames), int(frames.max()), dims.mel_bins, generator=generator)
    features.masked_fill_((torch.arange(features.shape[1]) >= frames[:, None])[:, :, None], 0.0)
    text = torch.randint(5, dims.vocab_size, (len(tokens), int(tokens.max()) + 1), generator=generator)
    beyond = torch.arange(text.shape[1] - 1) >= tokens[:, None]
    return Speech(features, frames, text[:, :-1].masked_fill(beyond, 0), text[:, 1:].masked_fill(beyond, 0), tokens)


@dataclass(frozen=True)
class Variant:
    """What one process runs.

    Attributes:
        system: `ours`, a name in `PEERS`, or `GEMM`.
        label: Its name in tables.
        dtype, matmul: As in `Precision`.
        fused: AdamW in one kernel; else as torch makes it by default.
        recompute: Whether layers keep only their inputs (`train.activation_checkpointing`).
    """

    system: str
    label: str
    dtype: str
    matmul: str
    fused: bool = True
    ctc: bool = True
    loss_chunk: int | str = "auto"
    recompute: bool = False


def ours(dims: Dimensions, variant: Variant) -> tuple[SpeechToText, Loss]:
    model, settings = SpeechToText(dims), TrainSettings(loss_chunk=variant.loss_chunk)
    precision = Precision(variant.dtype, variant.matmul, "given")
    model.encoder.recompute = model.decoder.recompute = variant.recompute

    def loss(speech: Speech) -> Tensor:
        none = torch.zeros(len(speech.frames), dtype=torch.int64)
        batch = Batch(
            features=speech.features,
            feature_lengths=speech.frames,
            tokens_in=speech.tokens_in,
            targets=speech.targets_with(IGNORE_ID),
            ctc_targets=speech.targets,
            ctc_lengths=speech.tokens,
            encoder_expert=none,
            decoder_expert=none,
            routes=[],
            cuts=[],
        )
        return losses_of(model, batch, batch.features, settings, precision, PAD_ID).total

    return model, loss


def transformers_speech2text(dims: Dimensions) -> tuple[nn.Module, Loss]:
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

    model = Speech2TextForConditionalGeneration(
        Speech2TextConfig(
            vocab_size=dims.vocab_size,
            d_model=dims.dim,
            encoder_layers=dims.encoder_layers,
            encoder_ffn_dim=dims.encoder_hidden_dim,
            encoder_attention_heads=dims.heads,
            decoder_layers=dims.decoder_layers,
            decoder_ffn_dim=dims.decoder_hidden_dim,
            decoder_attention_heads=dims.heads,
            conv_channels=dims.subsampling_channels,
            input_feat_per_channel=dims.mel_bins,
            tie_word_embeddings=dims.tie_embeddings,
        )
    )

    def loss(speech: Speech) -> Tensor:
        heard = (torch.arange(speech.features.shape[1], device=speech.frames.device) < speech.frames[:, None]).long()
        found: Tensor = model(input_features=speech.features, attention_mask=heard, labels=speech.targets_with(-100)).loss
        return found

    return model, loss


def speechbrain_transformer(dims: Dimensions, lean: bool) -> tuple[nn.Module, Loss]:
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
    from speechbrain.nnet.losses import kldiv_loss

    # As in recipes/LibriSpeech/ASR/transformer/hparams/transformer.yaml.
    front = (
        gated_subsampler(dims)
        if lean
        else ConvolutionFrontEnd(
            input_shape=(8, 10, dims.mel_bins),
            num_blocks=3,
            num_layers_per_block=1,
            out_channels=(64, 64, 64),
            kernel_sizes=(5, 5, 1),
            strides=(2, 2, 1),
            residuals=(False, False, True),
        )
    )
    transformer = TransformerASR(
        tgt_vocab=dims.vocab_size,
        input_size=dims.dim if lean else 64 * math.ceil(dims.mel_bins / 4),
        d_model=dims.dim,
        nhead=dims.heads,
        num_encoder_layers=dims.encoder_layers,
        num_decoder_layers=dims.decoder_layers,
        d_ffn=dims.encoder_hidden_dim,
        dropout=dims.dropout,
        activation=nn.GELU,
        encoder_module="transformer",
        attention_type="regularMHA",
        normalize_before=True,
        causal=False,
    )
    output = nn.Linear(dims.dim, dims.vocab_size)

    def loss(speech: Speech) -> Tensor:
        x = front(speech.features, speech.frames)[0] if lean else front(speech.features)
        _, states = transformer(x, speech.tokens_in, speech.frames / speech.frames.max(), pad_idx=0)
        log_probs = F.log_softmax(output(states), dim=-1)
        found: Tensor = kldiv_loss(log_probs, speech.targets, label_smoothing=LABEL_SMOOTHING, pad_idx=0, reduction="batchmean")
        return found

    return nn.ModuleList([front, transformer, output]), loss


def espnet_transformer(dims: Dimensions, lean: bool) -> tuple[nn.Module, Loss]:
    from espnet.nets.pytorch_backend.transformer.embedding import PositionalEncoding
    from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    front, positions = (gated_subsampler(dims), PositionalEncoding(dims.dim, dims.dropout)) if lean else (None, None)
    encoder = TransformerEncoder(
        input_size=dims.dim if lean else dims.mel_bins,
        output_size=dims.dim,
        attention_heads=dims.heads,
        linear_units=dims.encoder_hidden_dim,
        num_blocks=dims.encoder_layers,
        input_layer=None if lean else "conv2d",
    )
    decoder = TransformerDecoder(
        vocab_size=dims.vocab_size,
        encoder_output_size=dims.dim,
        attention_heads=dims.heads,
        linear_units=dims.decoder_hidden_dim,
        num_blocks=dims.decoder_layers,
    )
    criterion = LabelSmoothingLoss(dims.vocab_size, -1, LABEL_SMOOTHING)

    def loss(speech: Speech) -> Tensor:
        x, frames = speech.features, speech.frames
        if front is not None and positions is not None:
            x, frames = front(x, frames)
            x = positions(x)
        memory, lengths, _ = encoder(x, frames)
        logits, _ = decoder(memory, lengths, speech.tokens_in, speech.tokens)
        found: Tensor = criterion(logits, speech.targets_with(-1))
        return found

    return nn.ModuleList([part for part in (front, encoder, decoder) if part is not None]), loss


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        modules: What it needs, imported before memory is counted.
        install: How to get it beside smoe's own packages.
        build: Makes model and loss.
        fused: Whether its own trainer takes fused AdamW.
    """

    modules: tuple[str, ...]
    install: str
    build: Callable[[Dimensions], tuple[nn.Module, Loss]]
    fused: bool = False


FROM_SPEECHBRAIN = (
    ("speechbrain.lobes.models.transformer.TransformerASR", "speechbrain.lobes.models.convolution", "speechbrain.nnet.losses"),
    "pip install --no-deps speechbrain==1.1.2 hyperpyyaml==1.2.3 ruamel.yaml==0.18.6",
)
FROM_ESPNET = (
    ("espnet2.asr.encoder.transformer_encoder", "espnet2.asr.decoder.transformer_decoder"),
    "pip install --no-deps espnet==202511 typeguard==2.13.3 humanfriendly configargparse",
)
PEERS = {
    "transformers": Peer(
        ("transformers.models.speech_to_text.modeling_speech_to_text",), "pip install transformers", transformers_speech2text, fused=True
    ),
    "speechbrain": Peer(*FROM_SPEECHBRAIN, lambda dims: speechbrain_transformer(dims, lean=False)),
    "speechbrain-lean": Peer(*FROM_SPEECHBRAIN, lambda dims: speechbrain_transformer(dims, lean=True)),
    "espnet": Peer(*FROM_ESPNET, lambda dims: espnet_transformer(dims, lean=False)),
    "espnet-lean": Peer(*FROM_ESPNET, lambda dims: espnet_transformer(dims, lean=True)),
}


class Trained:
    """A model, its optimiser, and what they take."""

    def __init__(self, variant: Variant, dims: Dimensions, device: torch.device = CPU) -> None:
        self.variant, self.dims, self.device = variant, dims, device
        self.model: nn.Module
        if variant.system == "ours":
            # As `smoe train` does; the allocator is the process's.
            keep_memory()
            self.memory = Memory(device)
            self.base = self.memory.used()
            self.model, self.loss = ours(Dimensions(**asdict(dims) | {"ctc": variant.ctc}), variant)
            self.model.to(device)
            self.optimiser = make_optimiser(self.model, TrainSettings(learning_rate=LEARNING_RATE))
        else:
            for name in PEERS[variant.system].modules:
                import_module(name)
            self.memory = Memory(device)
            self.base = self.memory.used()
            self.model, self.loss = PEERS[variant.system].build(dims)
            self.model.to(device)
            self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True if variant.fused else None)
        self.model.train()

    def forward(self, speech: Speech) -> Tensor:
        if self.variant.system == "ours":
            return self.loss(speech)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.dtype == "bf16"):
            return self.loss(speech)

    def turn(self, shape: Shape) -> dict[str, Any]:
        """Two optimiser steps, of which the second is measured.

        Whoever waits for its turn hands its free memory back, as that of all would be too much; the first step takes it again.
        """
        self.step(shape)
        found = self.step(shape) | {"kept_mb": self.kept_mb(shape)}
        self.optimiser.zero_grad(set_to_none=True)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return found

    def kept_mb(self, shape: Shape) -> float | None:
        """What the forward pass keeps for the backward pass, beside the weights; None: layers are recomputed, which hides it."""
        if self.variant.recompute:
            return None
        weights = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # Bound, so that what it keeps stays where it is until all is counted.
            loss = self.forward(speak(shape, self.dims).to(self.device))
        del loss
        return sum(kept.values()) / 2**20

    def step(self, shape: Shape) -> dict[str, Any]:
        """One optimiser step; batches are made before it."""
        speech, before = speak(shape, self.dims).to(self.device), self._sample()
        settle(self.device)
        self.memory.reset()
        cpu, wall = time.process_time(), time.perf_counter()
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.forward(speech)
        loss.backward()
        if self.variant.system == "ours":
            clip(self.model, self.optimiser, CLIP_NORM)
        else:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        settle(self.device)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        moved = [not torch.equal(old, new) for old, new in zip(before, self._sample(), strict=True)]
        return {
            "cpu": cpu,
            "wall": wall,
            "memory_mb": (self.memory.peak() - self.base) / 2**20,
            "loss": loss.item(),
            "moved": sum(moved) / len(moved),
        }

    def _sample(self) -> list[Tensor]:
        """The first numbers of every weight."""
        return [weight.detach().flatten()[:64].clone() for weight in self.model.parameters()]


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply(
    dtype: torch.dtype,
    device: torch.device = CPU,
    shapes: Sequence[tuple[int, int, int]] = GEMM_SHAPES,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """FLOP per second, by default of the CPU's, of the fastest matrix product."""
    best = 0.0
    for rows, inputs, outputs in shapes:
        x, weight = (torch.randn(height, inputs, dtype=dtype, device=device) for height in (rows, outputs))
        for _ in range(5):
            settle(device)
            start = clock()
            F.linear(x, weight)
            settle(device)
            best = max(best, 2 * rows * inputs * outputs / (clock() - start))
    return {"rate": best}


def work(variant: Variant, scale: str, threads: int) -> None:
    """Take a turn for each line of standard input, which is a `Shape`, and answer with a line."""
    # Where memory runs out after all, these processes go, and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    # Libraries may print; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(variant.matmul)

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    if variant.system == GEMM:
        answer({"parameters": 0})
        for _ in sys.stdin:
            answer(multiply(torch.bfloat16 if variant.dtype == "bf16" else torch.float32))
        return
    try:
        trained = Trained(variant, Dimensions(**SCALES[scale], ctc=False))
    except ImportError as error:
        answer({"missing": str(error)})
        return
    answer({"parameters": sum(weight.numel() for weight in trained.model.parameters())})
    for line in sys.stdin:
        answer(trained.turn(Shape(**json.loads(line))))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variant", help="as JSON")
    parser.add_argument("--scale", choices=SCALES, default="paper", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    given = parser.parse_args(words)
    work(Variant(**json.loads(given.variant)), given.scale, given.threads)


if __name__ == "__main__":
    main()
