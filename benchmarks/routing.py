"""What supervised routing costs: time of training steps and of decoding, S-MoE against the dense model it is made of.

    python benchmarks/routing.py                    paper scale, an hour, 16 GB of memory
    python benchmarks/routing.py --scale small      the preset `small`, some minutes, 3 GB of memory used at once
    python benchmarks/routing.py --scale tiny       seconds; shows that it runs, its numbers mean nothing
    python benchmarks/routing.py --json

One process holds the dense model and one S-MoE model at a time, whose experts are all copies of the dense model's
networks: that both compute the same is checked before anything is timed. Each variant then takes turns with the dense model, round after
round, in training layer by layer, forward and backward, in decoding token by token; so a machine that becomes busier or slower in between
slows both sides of each ratio (`turns.py`). What is reported is the geometric mean over rounds of (variant / dense in the same round), and
its interval by a bootstrap over rounds: a bound within that interval is not decided.

Measured on one thread, CPU seconds leave out the time in which other processes had the core. Experts that no batch here
uses are parameters of model and optimiser like all others, but lie in the memory of one that is used: nothing reads or
writes them, so their place costs no time, and 64 experts would need 10 GB. As in `smoe train` they have neither gradients
nor optimiser state.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from torch import Tensor
from turns import Times, Turn, hand_on, hand_on_after, interval, one_arena, take_turns, use_memory

from smoe_cli import __version__
from smoe_cli.batching import Batch
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText
from smoe_cli.tokenizer import PAD_ID
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.allocator import keep_memory
from smoe_cli.training.optimiser import clip, make_optimiser
from smoe_cli.training.precision import Precision, choose_precision
from smoe_cli.training.step import losses_of

# N utterances, T frames, F mel bins, U tokens, B beams
SMALL = {"dim": 256, "heads": 4, "encoder_layers": 6, "decoder_layers": 3, "encoder_hidden_dim": 1024, "decoder_hidden_dim": 1024}
TINY = {"dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "encoder_hidden_dim": 64, "decoder_hidden_dim": 64}


@dataclass(frozen=True)
class Scale:
    """How large everything is: the model's `Dimensions`, N, T, U, tokens that a decoding is forced to write, beam widths.

    At paper scale a batch is of 120 s, the default of `train.batch_s`. All of it together takes `memory_gb`.
    """

    model: dict[str, Any]
    utterances: int = 12
    frames: int = 1000
    tokens: int = 40
    forced_tokens: int = 30
    beams: tuple[int, ...] = (1, 5)
    memory_gb: float = 14

    def without_ctc(self) -> Scale:
        return replace(self, model=self.model | {"ctc": False})


SCALES = {
    "paper": Scale({"vocab_size": 40_000}),
    "small": Scale({"vocab_size": 8_000, "subsampling_channels": 512} | SMALL, memory_gb=3),
    "tiny": Scale(
        {"vocab_size": 300, "mel_bins": 8, "subsampling_channels": 16} | TINY, frames=60, tokens=6, forced_tokens=4, memory_gb=0.1
    ),
}
USED_EXPERTS = 8
"""Experts of each layer that batches use, at most: a mixed one all of them, single-route ones one after the other."""
BOUNDS = {"single-route": 1.02, "mixed": 1.05}
FLAT = 0.03
"""How far decoding may move from the fewest experts to any other number of them."""


@dataclass(frozen=True)
class Row:
    """One variant beside the dense model.

    Attributes:
        work: `training step`, or `decoding, beam B`.
        experts: Of each layer.
        batch: `single-route` or `mixed`.
        routes: Experts that one batch uses in each layer.
        ratio: Geometric mean over rounds of CPU seconds / the dense model's in the same round.
        lowest, highest: Its interval, see `interval`.
        wall_ratio: The same of wall seconds.
        cpu_s, dense_cpu_s: Medians.
        phases: Part of a training step -> ratio, as above.
    """

    work: str
    experts: int
    batch: str
    routes: int
    ratio: float
    lowest: float
    highest: float
    wall_ratio: float
    cpu_s: float
    dense_cpu_s: float
    phases: dict[str, float]


def noise(scale: Scale) -> Batch:
    """One batch; every variant sees the same, under experts of its own."""
    n, vocab = scale.utterances, scale.model["vocab_size"]
    text, none = torch.randint(3, vocab, (n, scale.tokens)), torch.zeros(n, dtype=torch.int64)
    return Batch(
        features=torch.randn(n, scale.frames, Dimensions(**scale.model).mel_bins),
        feature_lengths=torch.full((n,), scale.frames),
        tokens_in=text,
        targets=text.roll(-1, 1),
        ctc_targets=text,
        ctc_lengths=torch.full((n,), min(scale.tokens, scale.frames // 8)),
        encoder_expert=none,
        decoder_expert=none,
        routes=[],
        cuts=[],
    )


def build(scale: Scale, experts: int, dense: SpeechToText | None) -> SpeechToText:
    """A model whose every expert is a copy of the dense model's network; without a dense model, that one."""
    if dense is None:
        return SpeechToText(Dimensions(**scale.model))
    names = [f"expert{number}" for number in range(experts)]
    with torch.device("meta"):
        model = SpeechToText(Dimensions(**scale.model, encoder_experts=names, decoder_experts=names))
    weights, copies = dense.state_dict(), dict[str, Tensor]()
    for name in model.state_dict():
        used = re.sub(r"(?<=\.expert)\d+", lambda number: str(min(int(number[0]), USED_EXPERTS - 1)), name)
        copies[name] = copies[used] if used in copies else weights[re.sub(r"\.expert\d+\.", ".dense.", name)].clone()
    model.load_state_dict(copies, assign=True)
    return model


class Trained:
    """A model and its optimiser; a step is the trainer's, in phases, without data, files and augmentation."""

    def __init__(self, model: SpeechToText, batch: Batch, precision: Precision) -> None:
        self.model, self.batch, self.precision = model, batch, precision
        self.settings = TrainSettings()
        self.optimiser = make_optimiser(model, self.settings)
        hand_on_after([*model.encoder.layers, *model.decoder.layers])

    def with_experts(self, expert_N: Tensor) -> Batch:
        return replace(self.batch, encoder_expert=expert_N, decoder_expert=expert_N)

    def step(self, expert_N: Tensor, turn: Turn) -> None:
        """One optimiser step with these experts; a piece is a layer's forward or backward pass, and what lies between two layers."""
        batch, model = self.with_experts(expert_N), self.model
        self.optimiser.zero_grad(set_to_none=True)
        with turn.phase("forward"):
            loss = losses_of(model, batch, batch.features, self.settings, self.precision, PAD_ID).total
        with turn.phase("backward"):
            loss.backward()
        with turn.phase("clipping"):
            clip(model, self.optimiser, self.settings.clip_norm)
        with turn.phase("AdamW"):
            self.optimiser.step()

    @torch.inference_mode()
    def decode(self, beams: int, forced_tokens: int, expert_N: Tensor) -> Iterator[Tensor]:
        """Encode, then write tokens that are given; yields after each, first the encoder's states, then logits."""
        batch, model = self.with_experts(expert_N), self.model
        memory = model.encoder(batch.features, batch.feature_lengths, batch.encoder_expert)
        state = model.decoder.start(memory, beams)
        yield memory.states
        for position in range(forced_tokens):
            tokens_M = batch.tokens_in[:, position % batch.tokens_in.shape[1]].repeat_interleave(beams)
            yield model.decoder.step(tokens_M, state, memory, batch.decoder_expert)


def compare(work: str, experts: int, batch: str, routes: int, times: Times, dense: Times) -> Row:
    ratios = [own / base for own, base in zip(times.cpu, dense.cpu, strict=True)]
    lowest, highest = interval(ratios)
    return Row(
        work=work,
        experts=experts,
        batch=batch,
        routes=routes,
        ratio=geometric_mean(ratios),
        lowest=lowest,
        highest=highest,
        wall_ratio=geometric_mean(own / base for own, base in zip(times.wall, dense.wall, strict=True)),
        cpu_s=median(times.cpu),
        dense_cpu_s=median(dense.cpu),
        phases={
            name: geometric_mean(own[name] / base[name] for own, base in zip(times.phases, dense.phases, strict=True))
            for name in dense.phases[0]
        },
    )


def mixed_batch(utterances: int, routes: int) -> Tensor:
    """Expert of each utterance: spread evenly, in no order, as a mixed batch would come."""
    generator = torch.Generator().manual_seed(0)
    return (torch.arange(utterances) % routes)[torch.randperm(utterances, generator=generator)]


def measure_training(scale: Scale, dense: Trained, routed: Trained, experts: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    n, routes = scale.utterances, min(USED_EXPERTS, experts, scale.utterances)
    zeros, mixed = torch.zeros(n, dtype=torch.int64), mixed_batch(n, routes)
    rows = []
    # Mixed batches first: after them every expert has its optimiser state, which costs time once and not again.
    for name, used, expert_N in (("mixed", routes, mixed), ("single-route", 1, None)):

        def step(number: int, turn: Turn, given: Tensor | None = expert_N) -> None:
            # Each round another route, as training interleaves them.
            routed.step(torch.full((n,), number % routes) if given is None else given, turn)

        times = take_turns({"dense": lambda _, turn: dense.step(zeros, turn), name: step}, rounds, say)
        rows.append(compare("training step", experts, name, used, times[name], times["dense"]))
    return rows


def measure_decoding(scale: Scale, dense: Trained, routed: Trained, experts: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    n, rows = scale.utterances, []
    zeros = torch.zeros(n, dtype=torch.int64)
    for beams in scale.beams:

        def run(trained: Trained, expert: int, beams: int = beams) -> None:
            for _ in trained.decode(beams, scale.forced_tokens, zeros + expert):
                hand_on()

        times = take_turns(
            {"dense": lambda _, __: run(dense, 0), "single-route": lambda number, _: run(routed, number % min(USED_EXPERTS, experts))},
            rounds,
            say,
        )
        rows.append(compare(f"decoding, beam {beams}", experts, "single-route", 1, times["single-route"], times["dense"]))
    return rows


def check_equal(dense: Trained, routed: Trained, experts: int) -> None:
    """Both models must compute the same, or their times say nothing."""
    n = len(dense.batch.features)
    mixed = mixed_batch(n, min(USED_EXPERTS, experts, n))
    for one, other in zip(dense.decode(1, 2, mixed * 0), routed.decode(1, 2, mixed), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "smoe": __version__,
    }


def measure(
    scale: Scale, experts: Sequence[int], rounds: int, precision: str, threads: int, only: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """All variants.

    Returns:
        What was measured (`rows`, each a `Row`), on what, and how: `machine`, `precision`, `scale`, `rounds`, `load_before`, `load_after`,
        `peak_memory_gb`.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_memory()
    one_arena()
    use_memory(scale.memory_gb)
    load_before = os.getloadavg()
    train_precision = choose_precision(precision, torch.device("cpu"))
    say(f"{train_precision}, load {load_before[0]:.1f}")
    batch = noise(scale)
    dense = Trained(build(scale, 1, None), batch, train_precision)
    rows: list[Row] = []
    for number in experts:
        routed = Trained(build(scale, number, dense.model), batch, train_precision)
        for trained in (dense, routed):
            trained.model.eval()
        check_equal(dense, routed, number)
        for name, work in (("decode", measure_decoding), ("train", measure_training)):
            if only in (None, name):
                say(f"{name}, {number} experts: CPU seconds per round")
                for trained in (dense, routed):
                    trained.model.train(name == "train")
                rows += work(scale, dense, routed, number, rounds, say)
        # Its gradients, state and weights go before the next one comes.
        del routed
        gc.collect()
    return {
        "machine": machine(),
        "precision": str(train_precision),
        "scale": asdict(scale),
        "rounds": rounds,
        "load_before": load_before[0],
        "load_after": os.getloadavg()[0],
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1),
        "rows": [asdict(row) for row in rows],
    }


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was promised, and whether it was kept."""
    said = []
    for batch, bound in BOUNDS.items():
        found = [row for row in rows if row["work"] == "training step" and row["batch"] == batch]
        if found:
            worst = max(found, key=lambda row: row["ratio"])
            clear = max(row["lowest"] for row in found) > bound or max(row["highest"] for row in found) <= bound
            verdict = _verdict(worst["ratio"] <= bound, not clear)
            said.append(f"training, {batch} batches: at most {worst['ratio']:.3f} x dense; bound {bound}: {verdict}")
    for work in dict.fromkeys(row["work"] for row in rows if row["work"].startswith("decoding")):
        found = [row for row in rows if row["work"] == work]
        off = max(abs(row["ratio"] / found[0]["ratio"] - 1.0) for row in found)
        ranges = [(row["lowest"] / found[0]["highest"] - 1.0, row["highest"] / found[0]["lowest"] - 1.0) for row in found[1:]]
        inside = all(low >= -FLAT and high <= FLAT for low, high in ranges)
        outside = any(low > FLAT or high < -FLAT for low, high in ranges)
        noisy = not (inside or outside)
        said.append(f"{work}: within {off:.1%} of {rows[0]['experts']} experts; bound {FLAT:.0%}: {_verdict(off <= FLAT, noisy)}")
    return said


def _verdict(kept: bool, noisy: bool) -> str:
    """Of the means; and whether the rounds were too unlike each other to tell."""
    return ("kept" if kept else "MISSED") + (" in the mean, but the rounds are too unlike each other to tell" if noisy else "")


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    on = result["machine"]
    lines = [
        f"{on['cpu']}, {on['cores']} cores, {on['threads']} thread{'s' * (on['threads'] > 1)} used; torch {on['torch']}, Python "
        f"{on['python']}; {result['precision']}; {result['rounds']} rounds; load {result['load_before']:.1f} before, "
        f"{result['load_after']:.1f} after; {result['peak_memory_gb']} GB.",
        "",
        "| work | experts | batch | experts in one batch | dense, CPU s | S-MoE / dense | 95 % interval | wall |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['work']} | {row['experts']} | {row['batch']} | {row['routes']} | {row['dense_cpu_s']:.2f} | **{row['ratio']:.3f}** | "
        f"{row['lowest']:.3f} to {row['highest']:.3f} | {row['wall_ratio']:.3f} |"
        for row in result["rows"]
    ]
    trained = [row for row in result["rows"] if row["phases"]]
    if trained:
        names = list(trained[0]["phases"])
        lines += ["", f"| training step | batch | {' | '.join(names)} |", f"| ---: | --- | {' | '.join(['---:'] * len(names))} |"]
        for row in trained:
            parts = " | ".join(f"{row['phases'][name]:.3f}" for name in names)
            lines.append(f"| {row['experts']} experts | {row['batch']} | {parts} |")
    return "\n".join([*lines, "", *(f"- {verdict}" for verdict in verdicts(result["rows"]))])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="paper", help="default: %(default)s")
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 8, 32, 64], metavar="E", help="of each layer; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s, so that CPU seconds count work and no waiting")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of training; default: as `smoe train`")
    parser.add_argument("--utterances", type=int, help="of 10 s in a batch; default: 12")
    parser.add_argument("--no-ctc", action="store_true", help="without the auxiliary CTC head, which costs every variant the same")
    parser.add_argument("--only", choices=("train", "decode"), help="leave the other out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(words)
    scale = SCALES[given.scale].without_ctc() if given.no_ctc else SCALES[given.scale]
    result = measure(
        replace(scale, utterances=given.utterances or scale.utterances),
        given.experts,
        given.rounds,
        given.precision,
        given.threads,
        given.only,
        lambda message: print(message, file=sys.stderr, flush=True),
    )
    print(json.dumps(result, indent=2) if given.json else markdown(result))


if __name__ == "__main__":
    main()
