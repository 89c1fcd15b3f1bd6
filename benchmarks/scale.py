"""Time and memory of each step from manifest to first training batch, for more and more cuts.

    python benchmarks/scale.py                          10,000, 100,000 and 1,000,000 cuts; about an hour, 5 GB of disk
    python benchmarks/scale.py --cuts 10000 30000       less
    python benchmarks/scale.py --json

Each step is a process of its own, as a user would call it, `validate` with `--no-audio`; memory is its largest resident set, in MiB
(2^20 bytes). By default the cuts lie in 200 recordings of 30 s, as in a corpus of a few long ones: what grows is the manifest.
`--recordings N` spreads them over so many files, as many as there are cuts for a corpus of one file each, which is what most are: then what
is remembered of files grows too, and reading them takes its time. More than 200 are as long as the longest cut and share their bytes (hard
links). How fast audio is read is another benchmark's business (`benchmarks/data.py`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

RECORDINGS, SECONDS, RATE_HZ = 200, 30.0, 16000
SHORT_S = 8.0
"""Of each recording where there are more than `RECORDINGS`."""
WORDS = "the call was put through to another line and nobody knew who had asked for it that day so we rang again".split()
STEPS = {
    "prepare": ["prepare"],
    "validate": ["validate", "--no-audio"],
    "tokenize": ["tokenize"],
    "first batch": ["train"],
}


def recordings(folder: Path, count: int) -> list[Recording]:
    """Faint noise; nothing of the audio matters here but that it can be read."""
    generator, seconds = np.random.default_rng(0), SECONDS if count <= RECORDINGS else SHORT_S
    found: list[Recording] = []
    for number in range(count):
        path, different = folder / f"r{number}.wav", number % min(count, RECORDINGS)
        if number == different:
            soundfile.write(path, 0.1 * generator.standard_normal(int(seconds * RATE_HZ)), RATE_HZ, subtype="PCM_16")
        else:
            os.link(folder / f"r{different}.wav", path)
        found.append(Recording(f"r{number}", [AudioSource("file", [0], str(path))], RATE_HZ, int(seconds * RATE_HZ), seconds))
    return found


def cuts(recordings: Sequence[Recording], count: int, split: str) -> Iterator[MonoCut]:
    generator = random.Random(split)
    for number in range(count):
        recording = recordings[number % len(recordings)]
        duration = round(generator.uniform(1.0, min(SHORT_S, recording.duration)), 2)
        name = f"{split}-{number:08d}"
        text = " ".join(generator.choices(WORDS, k=max(3, round(2.5 * duration))))
        segment = SupervisionSegment(name, recording.id, 0.0, duration, text=text, language="en", speaker=f"{split}{number % 5000}")
        start = round(generator.uniform(0, recording.duration - duration), 2)
        yield MonoCut(name, start, duration, 0, supervisions=[segment], recording=recording)


def write_corpus(folder: Path, count: int, files: int) -> None:
    """A folder with a recipe and Lhotse manifests: all cuts but a thousand, or a tenth, in the train split."""
    sound, dev = recordings(folder, min(files, count)), min(1000, max(1, count // 10))
    for split, some in (("train", count - dev), ("dev", dev)):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", compresslevel=1) as file:
            file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts(sound, some, split))
    recipe = {
        "data": {"corpora": {"calls": {"type": "lhotse", "cuts": {split: f"{split}.jsonl.gz" for split in ("train", "dev")}}}},
        "tasks": {"transcribe": {"languages": ["en"]}},
        "tokenizer": {"vocab_size": 350},
        "features": {"cache_mb": 0},
        # The model hardly counts: what grows with the manifest is what is measured.
        "model": {"preset": "tiny", "encoder_experts_by": "bandwidth", "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 64},
        "train": {"max_steps": 1, "batch_s": 20, "validation_utterances": 10, "threads": 1, "precision": "fp32"},
    }
    (folder / "smoe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def run(folder: Path, words: Sequence[str]) -> tuple[float, float]:
    """(seconds, peak memory in MiB) of a command.

    Raises:
        RuntimeError: If it fails.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", "smoe_cli", *words], cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return time.perf_counter() - started, used.ru_maxrss / 1024  # of KiB


def measure(counts: Sequence[int], steps: Sequence[str], files: int) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="smoe-scale-") as name:
            write_corpus(Path(name), count, files)
            for step in steps:
                seconds, memory_mib = run(Path(name), STEPS[step])
                rows.append(
                    {
                        "cuts": count,
                        "recordings": min(files, count),
                        "step": step,
                        "seconds": round(seconds, 1),
                        "memory_mib": round(memory_mib),
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| step | cuts | seconds | microseconds per cut | memory, MiB |", "| --- | ---: | ---: | ---: | ---: |"]
    for step in dict.fromkeys(row["step"] for row in rows):
        name = " ".join([step, *STEPS[step][1:]])
        lines += [
            f"| {name} | {row['cuts']:,} | {row['seconds']:,.1f} | {1e6 * row['seconds'] / row['cuts']:,.0f} | {row['memory_mib']:,} |"
            for row in rows
            if row["step"] == step
        ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument(
        "--recordings",
        type=int,
        default=RECORDINGS,
        metavar="N",
        help=f"files that the cuts lie in: up to {RECORDINGS} of {SECONDS:g} s, more of {SHORT_S:g} s; at most one for each cut "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(words)
    rows = measure(given.cuts, given.steps, given.recordings)
    print(json.dumps(rows, indent=2) if given.json else markdown(rows))


if __name__ == "__main__":
    main()
