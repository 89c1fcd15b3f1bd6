"""Training steps on a GPU: speed, model-FLOPs utilisation and memory of S-MoE and transformers on the same batches, in bf16.

    python benchmarks/gpu.py                                  paper scale, 64 utterances of 10 s, 40 tokens each
    python benchmarks/gpu.py --utterances 16 64 256           several sizes of batches
    python benchmarks/gpu.py --peak-tflops 989                utilisation of the peak that the GPU's data sheet gives (dense bf16)
    python benchmarks/gpu.py --device cpu --scale tiny        seconds; shows that it runs, its numbers mean nothing

The systems are those of `peers.py`, with the same loss, clipping and fused AdamW, under bf16 autocast: S-MoE dense with and without a CTC
head, which transformers lacks; S-MoE with two experts in every layer of encoder and decoder (`encdec-smoe`), all utterances of one route;
and transformers' Speech2Text. One after the other has the device. A step is forward, loss, backward, clipping and AdamW, on a batch that is
on the device already; its time is that from an idle device to an idle device. Steps that warm up come first, medians are over rounds.

MFU is the model's FLOP (6 x multiply-adds of the forward pass, as `peers.py` counts them, for all systems the same but for the CTC head) /
seconds / peak. The peak is the one that is given, else the rate of the fastest bf16 matrix product measured here, which is lower, so that
MFU is higher. Memory is the largest that a step had allocated, less what was there before the model: weights, gradients, optimiser state,
activations. The ratio is (seconds of transformers / own) for the same batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from peer_worker import GEMM_SHAPES, PEERS, SCALES, Trained, Variant, multiply
from peers import ALONE, equal, training_flops
from routing import machine

from smoe_cli.errors import ConfigError, SmoeError
from smoe_cli.model.speech_to_text import Dimensions
from smoe_cli.training.compiling import compile_parts
from smoe_cli.training.memory import is_out_of_memory

PEER = "transformers"
ROUTED = "S-MoE encdec-smoe, no CTC head"
VARIANTS = (
    Variant("ours", "S-MoE", "bf16", "highest"),
    Variant("ours", ALONE, "bf16", "highest", ctc=False),
    Variant("ours", ROUTED, "bf16", "highest", ctc=False),
    Variant(PEER, PEER, "bf16", "highest"),
)
EXPERTS = {"encoder_experts": ["nb", "wb"], "decoder_experts": ["transcribe", "translate"]}
LARGE_GEMM_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16_384, 8192, 8192))
"""Rows, inputs, outputs: on a GPU those of `peer_worker.py` are over before it runs at full rate."""
MFU, FASTER = 0.45, 2.0
"""What is aimed at, on a GPU at paper scale."""


@dataclass
class Row:
    """One system on batches of one size.

    Attributes:
        parameters: Of the model, CTC head and experts included.
        seconds: Of a step, by round.
        flops: Of the model, for one step.
        frames_per_s: In the median step.
        mfu: FLOP per second of the median step / peak.
        memory_mb: Most that a step took.
        ratio: Median seconds of transformers / own; None without transformers.
        losses: By round.
        moved: Least share of the weights that a step changed.
    """

    label: str
    utterances: int
    parameters: int
    seconds: list[float]
    flops: float
    frames_per_s: float
    mfu: float
    memory_mb: float
    ratio: float | None
    losses: list[float]
    moved: float


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: If this machine has none such.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise ConfigError(f"unknown device `{name}`; known: cuda, cuda:NUMBER, cpu", "correct --device")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(
            f"`{name}` is not there: torch {torch.__version__} finds {found} CUDA devices on this machine",
            "run this where there is a GPU, its driver, and a torch built for it (`nvidia-smi` lists GPUs); to see that the benchmark runs "
            "at all: --device cpu --scale tiny",
        )
    return device


def dims_of(variant: Variant, scale: str) -> Dimensions:
    dims = Dimensions(**SCALES[scale], ctc=variant.ctc and variant.system == "ours")
    return replace(dims, **EXPERTS) if variant.label == ROUTED else dims


def peak_of(device: torch.device, given_tflops: float | None) -> dict[str, Any]:
    """FLOP per second that is taken for the peak, and where it is from."""
    if given_tflops is not None:
        return {"tflops": given_tflops, "source": "given"}
    shapes = LARGE_GEMM_SHAPES if device.type == "cuda" else GEMM_SHAPES
    return {"tflops": multiply(torch.bfloat16, device, shapes, time.perf_counter)["rate"] / 1e12, "source": "measured"}


def measure(
    variant: Variant, scale: str, device: torch.device, utterances: int, warmup: int, rounds: int, compiled: bool, peak_flops: float
) -> Row:
    """Steps of one system.

    Raises:
        ImportError: If its library is missing.
        RuntimeError: If memory does not suffice, see `is_out_of_memory`.
    """
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(variant.matmul)
    dims, shape = dims_of(variant, scale), equal(utterances)
    trained = Trained(variant, dims, device)
    if compiled and variant.system == "ours":
        compile_parts(trained.model)
    elif compiled:
        trained.model.compile()
    for _ in range(warmup):
        trained.step(shape)
    steps = [trained.step(shape) for _ in range(rounds)]
    seconds, flops = [step["wall"] for step in steps], training_flops(dims, utterances)
    return Row(
        label=variant.label,
        utterances=utterances,
        parameters=sum(weight.numel() for weight in trained.model.parameters()),
        seconds=seconds,
        flops=flops,
        frames_per_s=sum(shape.frames) / median(seconds),
        mfu=flops / median(seconds) / peak_flops,
        memory_mb=max(step["memory_mb"] for step in steps),
        ratio=None,
        losses=[step["loss"] for step in steps],
        moved=min(step["moved"] for step in steps),
    )


def beside_peer(rows: Sequence[Row]) -> list[Row]:
    """The rows with their ratios."""
    peers = {row.utterances: median(row.seconds) for row in rows if row.label == PEER}
    return [replace(row, ratio=peers[row.utterances] / median(row.seconds) if row.utterances in peers else None) for row in rows]


def run(
    scale: str,
    device: torch.device,
    sizes: Sequence[int],
    warmup: int,
    rounds: int,
    compiled: bool,
    peak_tflops: float | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All systems on batches of all sizes.

    Returns:
        What was measured (`rows`, each a `Row`), on what, and how: `machine`, `device`, `gpu`, `peak`, `scale`, `warmup`, `rounds`,
        `compiled`, and `left_out` with the reasons.
    """
    peak = peak_of(device, peak_tflops)
    say(f"peak {peak['tflops']:.3g} TFLOP/s, {peak['source']}")
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for utterances in sizes:
        for variant in VARIANTS:
            if variant.label in left_out:
                continue
            try:
                row = measure(variant, scale, device, utterances, warmup, rounds, compiled, peak["tflops"] * 1e12)
                rows.append(row)
                say(f"{utterances} utterances, {row.label}: {median(row.seconds):.3f} s")
            except ImportError as error:
                left_out[variant.label] = f"{error}; {PEERS[variant.system].install}"
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                left_out[f"{variant.label} at {utterances} utterances"] = "memory does not suffice; name a smaller number of --utterances"
            # The model that was is part of cycles.
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for what, why in left_out.items():
        say(f"{what} is left out: {why}")
    return {
        "machine": machine(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "peak": peak,
        "scale": scale,
        "warmup": warmup,
        "rounds": rounds,
        "compiled": compiled,
        "left_out": left_out,
        "rows": [asdict(row) for row in beside_peer(rows)],
    }


def verdicts(result: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached: MFU by every S-MoE model, speed by those that have no more to do than transformers."""
    if result["gpu"] is None or result["scale"] != "paper":
        return [f"nothing is judged: the aims (MFU {MFU:g}, {FASTER:g} x {PEER}) are for a GPU and --scale paper"]
    said = []
    for row in result["rows"]:
        what = f"{row['label']}, {row['utterances']} utterances"
        if row["label"] == PEER:
            continue
        judged = [("MFU", row["mfu"], MFU)]
        if row["label"] in (ALONE, ROUTED):
            judged.append((f"speed / {PEER}'", row["ratio"], FASTER))
        for name, value, bound in judged:
            verdict = (
                "not measured" if value is None else f"{value:.3f}; aim: at least {bound:g}: {'reached' if value >= bound else 'MISSED'}"
            )
            said.append(f"{what}, {name}: {verdict}")
    return said


COLUMNS = ("system", "utterances", "s", "frames/s", "MFU", "memory, MB", f"speed / {PEER}'")


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    on, peak = result["machine"], result["peak"]
    lines = [
        f"{result['gpu'] or on['cpu']}; torch {on['torch']}, Python {on['python']}; bf16 autocast{', compiled' * result['compiled']}; peak "
        f"{peak['tflops']:.3g} TFLOP/s, {peak['source']}; {result['rounds']} rounds after {result['warmup']} that warm up.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * (len(COLUMNS) - 1)}",
    ]
    for row in result["rows"]:
        cells = [
            row["label"],
            str(row["utterances"]),
            f"{median(row['seconds']):.4f}",
            f"{row['frames_per_s']:,.0f}",
            f"{row['mfu']:.1%}",
            f"{row['memory_mb']:,.0f}",
            "" if row["ratio"] is None else f"**{row['ratio']:.2f}**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [*verdicts(result), *(f"{what} is left out: {why}" for what, why in result["left_out"].items())]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(word: str) -> float:
        value = kind(word)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"`{word}` is not above 0")
        return value

    return read


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:NUMBER or cpu; default: %(default)s")
    parser.add_argument("--scale", choices=SCALES, default="paper", help="default: %(default)s")
    parser.add_argument("--utterances", type=positive(int), nargs="+", default=[64], help="sizes of batches, of 10 s each; default: 64")
    parser.add_argument("--warmup", type=positive(int), default=5, help="steps before those that are timed; default: %(default)s")
    parser.add_argument("--rounds", type=positive(int), default=20, help="timed steps; default: %(default)s")
    parser.add_argument("--peak-tflops", type=positive(float), help="of the device in dense bf16; default: measured with matrix products")
    parser.add_argument("--compile", action="store_true", help="ours as `train.compile` does, transformers by `model.compile()`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(words)
    try:
        result = run(
            given.scale,
            find_device(given.device),
            given.utterances,
            given.warmup,
            given.rounds,
            given.compile,
            given.peak_tflops,
            lambda message: print(message, file=sys.stderr, flush=True),
        )
    except SmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    print(json.dumps(result, indent=2) if given.json else markdown(result))


if __name__ == "__main__":
    main()
