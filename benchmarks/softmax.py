"""What `train.loss_chunk` saves and costs: peak memory and time of the loss over a large vocabulary, whole and in chunks.

    python benchmarks/softmax.py                     40,000 pieces, width 512, 8 utterances of 10 s and 40 tokens; a minute, 3 GB
    python benchmarks/softmax.py --utterances 32     a larger batch
    python benchmarks/softmax.py --json

Each variant runs in a process of its own, forward and backward, from the decoder's and encoder's last states on: the projection to
the vocabulary, label-smoothed cross-entropy and auxiliary CTC. Memory is the largest resident size of that process less what it was
before the first loss; weights and their gradients are in it for all variants alike. Time is the median of the rounds, on one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from smoe_cli.loss import Weights, combined_loss

# N utterances, S encoder frames, U tokens, D model width, V vocabulary
FRAMES, TOKENS = 250, 40
JOINED = Weights(label_smoothing=0.1, ctc=0.3, ignore_id=-100, blank_id=0)


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, utterances: int, pieces: int, width: int, rounds: int) -> dict[str, Any]:
    """One variant, in this process; ``rows`` 0 is the whole batch at once.

    Returns:
        Memory in MB, seconds of one forward and backward, and the loss.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    states, memory = (torch.randn(utterances, length, width, requires_grad=True) for length in (TOKENS, FRAMES))
    output, head = torch.nn.Linear(width, pieces, bias=False), torch.nn.Linear(width, pieces)
    targets = torch.randint(1, pieces, (utterances, TOKENS))
    lengths, frames = torch.full((utterances,), TOKENS), torch.full((utterances,), FRAMES)
    before, seconds = peak_mb(), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        losses = combined_loss(states, output, targets, memory.flatten(0, 1), head, frames, targets, lengths, JOINED, rows)
        losses.total.backward()
        seconds.append(time.perf_counter() - start)
        loss = losses.total.item()
        del losses
    return {"rows": rows, "memory_mb": round(peak_mb() - before), "seconds": median(seconds[1:]), "loss": loss}


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    whole = result["variants"][0]
    lines = [
        f"{result['utterances']} utterances, {result['pieces']:,} pieces, width {result['width']}; torch {torch.__version__}, one thread.",
        "",
        "| rows at once | memory | seconds | of the whole's |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for found in result["variants"]:
        share = found["seconds"] / whole["seconds"]
        lines.append(f"| {found['rows'] or 'all'} | {found['memory_mb']:,} MB | {found['seconds']:.2f} | {share:.2f} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 2048, 512, 128], help="tokens or frames at once; 0: all")
    parser.add_argument("--utterances", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--pieces", type=int, default=40_000, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--here", action="store_true", help="measure the first of --rows in this process")
    given = parser.parse_args(words)
    sizes = [f"--{name}={getattr(given, name)}" for name in ("utterances", "pieces", "width", "rounds")]
    if given.here:
        print(json.dumps(measure(given.rows[0], given.utterances, given.pieces, given.width, given.rounds)))
        return
    variants = []
    for rows in given.rows:
        command = [sys.executable, __file__, "--here", "--rows", str(rows), *sizes]
        variants.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    result = {"utterances": given.utterances, "pieces": given.pieces, "width": given.width, "variants": variants}
    print(json.dumps(result, indent=2) if given.json else markdown(result))


if __name__ == "__main__":
    main()
