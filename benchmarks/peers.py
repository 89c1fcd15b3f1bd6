"""Training steps beside peers: speed and peak memory of S-MoE, transformers, SpeechBrain and ESPnet on the same batches.

    python benchmarks/peers.py                      paper scale, all parts, 9 rounds: two hours on an idle machine, 20 GB of memory
    python benchmarks/peers.py --rounds 3 --parts equal --peers transformers
    python benchmarks/peers.py --scale tiny         seconds; shows that it runs, its numbers mean nothing
    python benchmarks/peers.py --json

All have an encoder of 12 and a decoder of 6 layers, width 512, FFN 2048, 8 heads, 40,000 pieces, output weights of their own, dropout as
each library has it by default (0.1 in ours), and a step is forward, loss, backward, clipping and AdamW. Each library has its own code, loss
and mask of padding; `lean` are those whose own front end is replaced by the one that S-MoE and transformers have. None of the peers has a
CTC head, so S-MoE is measured with and without one. The parts:

- `equal`: 8 utterances of 10 s, 40 tokens each; all at the precision and matmul setting that `smoe train` chooses here, fused AdamW;
- `ragged`: the same, but utterances as long as recordings drawn at random (column `duration` of a table), 4 tokens per second, another
  batch in each round, padded for the peers as their collators do, and masked;
- `defaults`: the batch of `equal`, the peers as they come: float32, torch's default matmul, the AdamW of their trainers.

Every variant has a process of its own. They take turns, round after round in changing order, so a machine that becomes busier slows all
sides of a ratio. A turn is two steps, of which the second is measured: the first takes the memory that the others had meanwhile. Measured
on one thread, CPU seconds leave out the time in which other processes had the core. Ratios are geometric means over rounds of (time of the
best peer / own time in the same round), the best being the one with the least CPU time. Memory is the largest resident size in a step, less
what the process had once libraries were imported: weights, gradients, optimiser state and activations. A peer that is not installed is left
out, and a line says how to install it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from peer_worker import GEMM, PEERS, SCALES, Shape, Variant
from routing import machine
from turns import interval

from smoe_cli.model.cost import FRAMES_PER_S, TOKENS_PER_S, UTTERANCE_S, multiply_adds_per_second
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText
from smoe_cli.training.memory import Memory
from smoe_cli.training.precision import Precision, choose_precision

WORKER = Path(__file__).with_name("peer_worker.py")
UTTERANCES = 8
STEP_BYTES = {"paper": 6 * 2**30, "tiny": 2**30}
"""What a step takes besides weights and state in the process whose turn it is, and some more for the rest of the machine."""
PARTS = ("equal", "ragged", "defaults")
ALONE = "S-MoE, no CTC head"
RECOMPUTED = f"{ALONE}, layers recomputed"
FASTER, FASTER_THAN_DEFAULTS, FASTER_RAGGED, GEMM_SHARE, MEMORY = 1.15, 2.5, 1.6, 0.7, 0.7
"""What is aimed at; beside the peers' defaults, where this machine's choice is bf16."""


class Worker:
    """A process that runs one variant."""

    def __init__(self, variant: Variant, scale: str, threads: int) -> None:
        self.variant = variant
        command = [sys.executable, str(WORKER), json.dumps(asdict(variant)), "--scale", scale, "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.answers: list[dict[str, Any]] = []
        self.ready = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process of `{self.variant.label}` ended; what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def turn(self, shape: Shape) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(shape)) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        self.process.communicate()


@dataclass
class Row:
    """One variant in one part.

    Attributes:
        parameters: Of the model, a CTC head included.
        cpu, wall: Seconds of a step, by round.
        frames_per_s, wall_frames_per_s: Real frames, without padding, per second.
        ratio: Geometric mean over rounds of (CPU seconds of the best peer / own); None without a peer.
        lowest, highest: Its interval, by a bootstrap over rounds.
        wall_ratio: The same of wall seconds, beside the same peer.
        memory_mb: Most that a step took.
        memory_ratio: Of that of the peer which takes least.
        kept_mb: Most that a forward pass kept for the backward pass, beside the weights.
        gemm_share: FLOP of the model per CPU second / those of the machine's fastest matrix product in the same round.
        losses: By round.
        moved: Least share of the weights that a step changed.
    """

    part: str
    system: str
    label: str
    precision: str
    parameters: int
    cpu: list[float]
    wall: list[float]
    frames_per_s: float
    wall_frames_per_s: float
    ratio: float | None
    lowest: float | None
    highest: float | None
    wall_ratio: float | None
    memory_mb: float
    memory_ratio: float | None
    kept_mb: float | None
    gemm_share: float | None
    losses: list[float]
    moved: float


def training_flops(dims: Dimensions, utterances: int = UTTERANCES) -> float:
    """Of one step on a batch of `equal`: forward, and twice as much backward; two for each multiply-add of `smoe_cli.model.cost`."""
    with torch.device("meta"):
        model = SpeechToText(dims)
    total = utterances * UTTERANCE_S * multiply_adds_per_second(model)
    if dims.ctc:
        # Which the cost of a model leaves out, as it serves training alone.
        total += utterances * math.ceil(UTTERANCE_S * FRAMES_PER_S / dims.subsampling) * dims.dim * dims.vocab_size
    return 2.0 * 3.0 * total


def equal(utterances: int) -> Shape:
    """Utterances of one length, so that nothing is padded."""
    return Shape([UTTERANCE_S * FRAMES_PER_S] * utterances, [UTTERANCE_S * TOKENS_PER_S] * utterances, 0)


def shapes_of(part: str, rounds: int, durations_s: Sequence[float]) -> list[Shape]:
    """The batch of each round."""
    if part != "ragged":
        return [equal(UTTERANCES)] * rounds
    generator, shapes = random.Random(0), []
    for seed in range(rounds):
        drawn_s = generator.sample(durations_s, UTTERANCES)
        frames = [round(FRAMES_PER_S * duration_s) for duration_s in drawn_s]
        shapes.append(Shape(frames, [max(1, round(TOKENS_PER_S * duration_s)) for duration_s in drawn_s], seed))
    return shapes


def variants_of(part: str, precision: Precision, peers: Sequence[str]) -> list[Variant]:
    here = precision.dtype, precision.matmul
    found = [Variant("ours", "S-MoE", *here), Variant("ours", ALONE, *here, ctc=False)]
    if part == "defaults":
        found.append(Variant("ours", "S-MoE, loss_chunk 1024", *here, loss_chunk=1024))
        return found + [Variant(name, name, "fp32", "highest", PEERS[name].fused) for name in peers]
    found += [Variant(name, name, *here) for name in peers]
    if part == "equal":
        found += [Variant("ours", RECOMPUTED, *here, ctc=False, recompute=True), Variant(GEMM, GEMM, *here)]
    return found


def measure(
    part: str, variants: Sequence[Variant], shapes: Sequence[Shape], scale: str, threads: int, say: Callable[[str], None]
) -> list[Row]:
    """Let the variants take turns.

    Raises:
        ImportError: If a library is missing.
        SystemExit: If there is not enough memory for all, or a process ended.
    """
    workers: list[Worker] = []
    try:
        for variant in variants:
            worker = Worker(variant, scale, threads)
            workers.append(worker)
            if "missing" in worker.ready:
                raise ImportError(worker.ready["missing"], name=variant.system)
        # What is not there yet: two states of AdamW for every weight, and one step.
        needed, free = 8 * sum(worker.ready["parameters"] for worker in workers) + STEP_BYTES[scale], Memory(torch.device("cpu")).free()
        if needed > free:
            raise SystemExit(
                f"error: part `{part}` needs {needed / 2**30:.0f} GiB more, and {free / 2**30:.0f} are free\n\n"
                "hint: name fewer --peers; ratios of two runs do not compare"
            )
        shuffle = random.Random(0)
        for shape in shapes:
            for worker in shuffle.sample(workers, len(workers)):
                worker.answers.append(worker.turn(shape))
            trained = (worker for worker in workers if worker.variant.system != GEMM)
            said = "  ".join(f"{worker.variant.label} {worker.answers[-1]['cpu']:.2f}" for worker in trained)
            say(f"{part}, {shape.fill:.0%} full: {said}")
    finally:
        for worker in workers:
            worker.end()
    return compare(part, workers, shapes, scale)


def compare(part: str, workers: Sequence[Worker], shapes: Sequence[Shape], scale: str) -> list[Row]:
    def times(worker: Worker, what: str) -> list[float]:
        return [answer[what] for answer in worker.answers]

    def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
        return [one / other for one, other in zip(above, below, strict=True)]

    peers = [worker for worker in workers if worker.variant.system in PEERS]
    best = min(peers, key=lambda worker: geometric_mean(times(worker, "cpu")), default=None)
    least_mb = min((max(times(worker, "memory_mb")) for worker in peers), default=None)
    rates = next((times(worker, "rate") for worker in workers if worker.variant.system == GEMM), None)
    frames = sum(sum(shape.frames) for shape in shapes)
    rows = []
    for worker in workers:
        variant = worker.variant
        if variant.system == GEMM:
            continue
        cpu, wall, memory_mb = times(worker, "cpu"), times(worker, "wall"), max(times(worker, "memory_mb"))
        ratios = None if best is None else quotients(times(best, "cpu"), cpu)
        lowest, highest = (None, None) if ratios is None else interval(ratios)
        share = None
        if rates is not None and variant.system == "ours" and not variant.recompute:
            flops = training_flops(Dimensions(**SCALES[scale], ctc=variant.ctc))
            share = geometric_mean(flops / seconds / rate for seconds, rate in zip(cpu, rates, strict=True))
        rows.append(
            Row(
                part=part,
                system=variant.system,
                label=variant.label,
                precision=f"{variant.dtype}, matmul {variant.matmul}",
                parameters=worker.ready["parameters"],
                cpu=cpu,
                wall=wall,
                frames_per_s=frames / sum(cpu),
                wall_frames_per_s=frames / sum(wall),
                ratio=None if ratios is None else geometric_mean(ratios),
                lowest=lowest,
                highest=highest,
                wall_ratio=None if best is None else geometric_mean(quotients(times(best, "wall"), wall)),
                memory_mb=memory_mb,
                memory_ratio=None if least_mb is None else memory_mb / least_mb,
                kept_mb=max((answer["kept_mb"] for answer in worker.answers if answer["kept_mb"] is not None), default=None),
                gemm_share=share,
                losses=times(worker, "loss"),
                moved=min(times(worker, "moved")),
            )
        )
    return rows


def run(
    scale: str,
    parts: Sequence[str],
    peers: Sequence[str],
    rounds: int,
    threads: int,
    precision: str,
    durations: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All parts.

    Returns:
        What was measured (`rows`, each a `Row`), on what, and how: `machine`, `precision`, `dtype`, `scale`, `rounds`, `fill` of ragged
        batches, `left_out` and why, `gemm_gflops`, `load_before`, `load_after`.
    """
    torch.set_num_threads(threads)
    load_before = os.getloadavg()[0]
    chosen = choose_precision(precision, torch.device("cpu"))
    say(f"{chosen}, load {load_before:.1f}")
    left_out = {name: f"not installed; {PEERS[name].install}" for name in peers if not find_spec(PEERS[name].modules[0].partition(".")[0])}
    if durations is None and "ragged" in parts:
        left_out["ragged"] = "no table with durations: name one with --durations, or set SMOE_DATA"
    durations_s = [] if durations is None else read_durations(durations)
    rows: list[Row] = []
    fill: float | None = None
    for part in parts:
        if part in left_out:
            continue
        shapes = shapes_of(part, rounds, durations_s)
        if part == "ragged":
            fill = sum(sum(shape.frames) for shape in shapes) / sum(sum(shape.frames) / shape.fill for shape in shapes)
        while True:
            variants = variants_of(part, chosen, [name for name in peers if name not in left_out])
            try:
                rows += measure(part, variants, shapes, scale, threads, say)
                break
            except ImportError as error:
                left_out[str(error.name)] = f"{error}; {PEERS[str(error.name)].install}"
    for what, why in left_out.items():
        say(f"{what} is left out: {why}")
    return {
        "machine": machine(),
        "precision": str(chosen),
        "dtype": chosen.dtype,
        "scale": scale,
        "rounds": rounds,
        "fill": fill,
        "left_out": left_out,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "rows": [asdict(row) for row in rows],
    }


def read_durations(path: Path) -> list[float]:
    with path.open(newline="") as lines:
        return [float(row["duration"]) for row in csv.DictReader(lines, delimiter="\t")]


def verdicts(result: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    rows = {(row["part"], row["label"]): row for row in result["rows"]}
    said = []

    def judge(what: str, row: dict[str, Any] | None, name: str, bound: float, above: bool = True) -> None:
        if row is None or row[name] is None:
            return
        reached = row[name] >= bound if above else row[name] <= bound
        noisy = name == "ratio" and row["lowest"] <= bound <= row["highest"]
        verdict = ("reached" if reached else "MISSED") + (", but the rounds are too unlike each other to tell" if noisy else "")
        said.append(f"{what}: {row[name]:.2f}; aim: at {'least' if above else 'most'} {bound:g}: {verdict}")

    judge("equal lengths and precision, without CTC head, speed / best peer's", rows.get(("equal", ALONE)), "ratio", FASTER)
    judge("share of the matrix product's rate", rows.get(("equal", "S-MoE")), "gemm_share", GEMM_SHARE)
    judge("share of the matrix product's rate, without CTC head", rows.get(("equal", ALONE)), "gemm_share", GEMM_SHARE)
    judge("ragged batches, equal precision, without CTC head, speed / best peer's", rows.get(("ragged", ALONE)), "ratio", FASTER_RAGGED)
    beside = FASTER_THAN_DEFAULTS if result["dtype"] == "bf16" else FASTER
    judge("equal lengths, without CTC head, speed / best peer's by default", rows.get(("defaults", ALONE)), "ratio", beside)
    for label in (ALONE, RECOMPUTED):
        judge(f"equal lengths, memory of {label} / leanest peer's", rows.get(("equal", label)), "memory_ratio", MEMORY, above=False)
    for label in ("S-MoE", ALONE, "S-MoE, loss_chunk 1024"):
        row = rows.get(("defaults", label))
        judge(f"memory of {label} / leanest peer's by default", row, "memory_ratio", MEMORY, above=False)
    return said


HEADINGS = {
    "equal": "Equal lengths, equal precision",
    "ragged": "Lengths of recordings, equal precision",
    "defaults": "Equal lengths, the peers by default",
}
COLUMNS = (
    *("system", "CPU s", "frames / CPU s", "speed / best peer's", "95 % interval", "wall"),
    *("memory, MB", "/ leanest peer's", "kept for backward", "of matrix product's rate"),
)


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/benchmarks.md."""
    on = result["machine"]
    lines = [
        f"{on['cpu']}, {on['cores']} cores, {on['threads']} thread{'s' * (on['threads'] > 1)} used; torch {on['torch']}, Python "
        f"{on['python']}; {result['precision']}; {result['rounds']} rounds; load {result['load_before']:.1f} before, "
        f"{result['load_after']:.1f} after."
    ]
    for part in dict.fromkeys(row["part"] for row in result["rows"]):
        heading = HEADINGS[part] + (f" ({result['fill']:.0%} of the positions real)" if part == "ragged" else "")
        lines += [
            "",
            f"{heading}:",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"| --- |{' ---: |' * (len(COLUMNS) - 1)}",
        ]
        for row in (row for row in result["rows"] if row["part"] == part):
            beside = (
                ("", "", "", "")
                if row["ratio"] is None
                else (
                    f"**{row['ratio']:.2f}**",
                    f"{row['lowest']:.2f} to {row['highest']:.2f}",
                    f"{row['wall_ratio']:.2f}",
                    f"{row['memory_ratio']:.2f}",
                )
            )
            cells = [
                row["label"],
                f"{median(row['cpu']):.2f}",
                f"{row['frames_per_s']:,.0f}",
                *beside[:3],
                f"{row['memory_mb']:,.0f}",
                beside[3],
                "" if row["kept_mb"] is None else f"{row['kept_mb']:,.0f}",
                "" if row["gemm_share"] is None else f"{row['gemm_share']:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    notes = [*verdicts(result), *(f"{what} is left out: {why}" for what, why in result["left_out"].items())]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="paper", help="default: %(default)s")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="default: all")
    parser.add_argument("--peers", choices=PEERS, nargs="*", default=list(PEERS), help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s, so that CPU seconds count work and no waiting")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours; default: as `smoe train`")
    parser.add_argument("--durations", type=Path, help="table with a column `duration`; default: real-read/real-read.tsv in $SMOE_DATA")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(words)
    durations = given.durations
    if durations is None and os.environ.get("SMOE_DATA"):
        durations = Path(os.environ["SMOE_DATA"]) / "real-read" / "real-read.tsv"
    result = run(
        given.scale,
        given.parts,
        given.peers,
        given.rounds,
        given.threads,
        given.precision,
        durations,
        lambda message: print(message, file=sys.stderr, flush=True),
    )
    print(json.dumps(result, indent=2) if given.json else markdown(result))


if __name__ == "__main__":
    main()
