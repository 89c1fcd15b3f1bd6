"""How much of its time training waits for data: features on the fly, half of the utterances narrowband twins that are made when read.

    SMOE_DATA=FOLDER python benchmarks/waiting.py                     paper scale, 0 and 2 workers: a quarter of an hour
    SMOE_DATA=FOLDER python benchmarks/waiting.py --preset tiny       steps so short that loading weighs
    SMOE_DATA=FOLDER python benchmarks/waiting.py --json

A recipe over `real-read` is prepared once in a folder of its own, then trained as a user would; the last line that `smoe train` writes into
`metrics.jsonl` is the result. It counts from before the first batch is there: that workers start is in it, and so is the time in which they
fill their queues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MODEL = {"preset": "encdec-smoe"}
TINY = MODEL | {"d_model": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "ffn_dim": 64, "subsampling_channels": 16}
PRESETS = {"paper": MODEL, "tiny": TINY}


def write_recipe(folder: Path, data: Path, preset: str, steps: int, batch_s: float) -> None:
    """`smoe.yaml` of a model that hears narrowband lines of every kind."""
    recipe = {
        "name": "waiting",
        "data": {
            "root": str(data.resolve()),
            "corpora": {"read": {"type": "tsv", "language": "en", "path": "real-read/real-read.tsv"}},
            "nb_downsample": True,
            "nb_simulation": {"codecs": ["plain", "mulaw", "alaw", "gsm"]},
        },
        "tasks": {"transcribe": {"languages": ["en"]}},
        "tokenizer": {"vocab_size": 320},
        "features": {"cache_mb": 0},
        "model": PRESETS[preset],
        "train": {"max_steps": steps, "validate_every": steps, "batch_s": batch_s, "validation_utterances": 4},
    }
    (folder / "smoe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def run(folder: Path, *words: str) -> None:
    """A command of smoe.

    Raises:
        RuntimeError: If it fails.
    """
    done = subprocess.run([sys.executable, "-m", "smoe_cli", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"smoe {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


def measure(folder: Path, workers: Sequence[int]) -> list[dict[str, Any]]:
    """Train once with each number of workers.

    Returns:
        For each, `workers`, `waiting_share` and `frames_per_s`.
    """
    rows = []
    for step in ("prepare", "tokenize"):
        print(step, file=sys.stderr, flush=True)
        run(folder, step)
    for number in workers:
        words = ("--set", f"train.workers={number}", "--resume", "never")
        run(folder, "train", *words)
        lines = (folder / "exp" / "model" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append({"workers": number} | {key: json.loads(lines[-1])[key] for key in ("waiting_share", "frames_per_s")})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| workers | waiting | frames/s |", "| ---: | ---: | ---: |"]
    lines += [f"| {row['workers']} | {row['waiting_share']:.1%} | {row['frames_per_s']:,.0f} |" for row in rows]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="default: %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=25, help="default: %(default)s")
    parser.add_argument("--batch-s", type=float, default=120.0, help="seconds of audio in a batch; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(words)
    if "SMOE_DATA" not in os.environ:
        parser.error("set SMOE_DATA to the folder that holds real-read/")
    with tempfile.TemporaryDirectory(prefix="smoe-waiting-") as name:
        write_recipe(Path(name), Path(os.environ["SMOE_DATA"]), given.preset, given.steps, given.batch_s)
        rows = measure(Path(name), given.workers)
    print(json.dumps(rows, indent=2) if given.json else markdown(rows))


if __name__ == "__main__":
    main()
