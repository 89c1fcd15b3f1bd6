"""How often the bandwidth of real recordings is estimated right: a confusion table.

    SMOE_DATA=FOLDER python benchmarks/bandwidth.py            200 files of each set, a few minutes
    SMOE_DATA=FOLDER python benchmarks/bandwidth.py --files 20 --json

Wideband recordings as they are, telephone speech recorded at 8 kHz and brought to 16 kHz, wideband recordings sent through
every simulated line; then the same speech made hard: muffled, quiet, in noise, cut short, coded again at 16 kHz, badly
resampled. Files are drawn with a fixed seed; digits of one speaker are joined to clips of a second and more.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse.augmentation import Resample
from numpy.typing import NDArray

from smoe_cli.bandwidth import Estimate, estimate_bandwidth
from smoe_cli.tags import TELEPHONE_HZ
from smoe_cli.telephone import SUBTYPES, TelephoneLine, to_int16

Samples = NDArray[np.float32]
RATE, SHORTEST_S, DIGITS = 16000, 1.0, 4
DOWN, UP = Resample(RATE, TELEPHONE_HZ), Resample(TELEPHONE_HZ, RATE)
WIDEBAND = {
    "read sentences (Opus)": "real-read/audio/*/*/*.opus",
    "studio prompts (G.722, Opus)": "real-prompts/audio/*/*.opus",
    "connected digits": "real-digits/so762/**/*.flac",
}
TELEPHONE = "real-digits/fsdd/*/*/*.flac"


def draw(root: Path, pattern: str, files: int) -> list[Path]:
    """Some of the files of a set, the same ones every time."""
    found = sorted(root.glob(pattern))
    if not found:
        sys.exit(f"error: no files `{pattern}` in `{root}`\n\nhint: set SMOE_DATA to the folder with the recordings")
    return random.Random(0).sample(found, min(files, len(found)))


def load(path: Path) -> Samples:
    return soundfile.read(path, dtype="float32")[0]


def joined_digits(root: Path, files: int) -> Iterator[Samples]:
    """Isolated digits of one speaker, joined: alone they are shorter than a second."""
    for folder in sorted({path.parent for path in root.glob(TELEPHONE)}):
        digits = sorted(folder.iterdir())
        random.Random(0).shuffle(digits)
        for start in range(0, min(len(digits), max(DIGITS, DIGITS * files // 6)) - DIGITS + 1, DIGITS):
            yield np.concatenate([load(path) for path in digits[start : start + DIGITS]])


def resample(samples: Samples, step: Resample) -> Samples:
    return np.asarray(step(samples[None])[0])


def line(codec: Any, band: bool) -> Callable[[Samples], Samples]:
    return lambda samples: resample(TelephoneLine(codec, band)(resample(samples, DOWN)[None], RATE)[0], UP)


def coded(samples: Samples, **how: str) -> Samples:
    """Through a file of another format at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, **how)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def muffled(samples: Samples) -> Samples:
    """As through a wall: 6 dB less per octave above 2 kHz."""
    decay = np.exp(-2 * np.pi * 2000 / RATE)
    return np.convolve(samples, (1 - decay) * decay ** np.arange(200))[: len(samples)].astype(np.float32)


def noisy(samples: Samples, snr_db: float) -> Samples:
    noise = np.random.default_rng(len(samples)).normal(size=len(samples))
    return (samples + noise * samples.std() * 10 ** (-snr_db / 20)).astype(np.float32)


def interpolated(samples: Samples) -> Samples:
    """To 8 kHz and, by straight lines between samples, back."""
    low = resample(samples, DOWN)
    return np.interp(np.arange(len(samples)) / 2, np.arange(len(low)), low).astype(np.float32)


def music(number: int) -> Samples:
    """A chord with soft overtones up to 1.8 kHz that swells and fades: music on hold, after the line."""
    time = np.arange(3 * RATE) / RATE
    roots = np.array([220.0, 277.2, 329.6]) * 2 ** (number % 12 / 12)
    tones = sum(np.sin(2 * np.pi * root * k * time) / k**2 for root in roots for k in range(1, 5))
    return (0.05 * tones * (1 + np.sin(2 * np.pi * 2 * time))).astype(np.float32)


HARD: dict[str, Callable[[Samples], Samples]] = {
    "muffled": muffled,
    "at -40 dB, 16 bits": lambda samples: to_int16(samples / 100) / np.float32(2**15),
    "white noise at 20 dB": lambda samples: noisy(samples, 20),
    "0.3 s of it": lambda samples: samples[6000:10800],
    "coded with Opus at 16 kHz": lambda samples: coded(samples, format="OGG", subtype="OPUS"),
    "coded with mu-law at 16 kHz": lambda samples: coded(samples, format="WAV", subtype="ULAW"),
}


def conditions(root: Path, files: int) -> Iterator[tuple[str, str, list[tuple[str, Samples]]]]:
    """(name, band it truly has, named clips at 16 kHz)."""
    wide: list[tuple[str, Samples]] = []
    for name, pattern in WIDEBAND.items():
        clips = [(path.name, load(path)) for path in draw(root, pattern, files)]
        long = [clip for clip in clips if len(clip[1]) >= SHORTEST_S * RATE]
        short = [clip for clip in clips if len(clip[1]) < SHORTEST_S * RATE]
        yield name, "wb", long
        if short:
            yield f"{name}, under 1 s", "wb", short
        wide += long[: max(1, files // 3)]
    digits = [(f"digits-{number}", resample(clip, UP)) for number, clip in enumerate(joined_digits(root, files))]
    yield "8 kHz digits, joined, at 16 kHz", "nb", [clip for clip in digits if len(clip[1]) >= SHORTEST_S * RATE]
    for codec in SUBTYPES:
        for band in (False, True):
            yield f"simulated: {TelephoneLine(codec, band)}", "nb", [(name, line(codec, band)(clip)) for name, clip in wide]
    narrow = [(name, line("mulaw", True)(clip)) for name, clip in wide]
    for name, harm in HARD.items():
        for true, clips in (("wb", wide), ("nb", narrow)):
            yield f"hard: {true} {name}", true, [(which, harm(clip)) for which, clip in clips]
    yield "hard: nb interpolated linearly", "nb", [(name, interpolated(clip)) for name, clip in wide]
    yield "hard: nb music on hold", "nb", [(f"chord-{number}", music(number)) for number in range(12)]


def measure(root: Path, files: int) -> Iterator[dict[str, Any]]:
    for name, true, clips in conditions(root, files):
        found: list[tuple[str, Estimate]] = [(which, estimate_bandwidth(clip, RATE)) for which, clip in clips]
        reliable = [item for item in found if item[1].reliable]
        yield {
            "set": name,
            "true": true,
            "clips": len(found),
            "nb": sum(item.band == "nb" for _, item in found),
            "wb": sum(item.band == "wb" for _, item in found),
            "right_percent": round(100 * sum(item.band == true for _, item in found) / len(found), 1),
            "median_hz": int(np.median([item.bandwidth_hz for _, item in found])),
            "reliable": len(reliable),
            "reliable_wrong": sum(item.band != true for _, item in reliable),
            "wrong": [f"{which} {item.bandwidth_hz} Hz {item.confidence}" for which, item in found if item.band != true],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="files of each set")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    if not os.environ.get("SMOE_DATA"):
        sys.exit("error: no recordings\n\nhint: set SMOE_DATA to the folder that holds real-read, real-prompts and real-digits")
    torch.set_num_threads(1)
    rows = []
    columns = ("true", "clips", "nb", "wb", "right_percent", "median_hz", "reliable", "reliable_wrong")
    if not wanted.json:
        print("| set | " + " | ".join(columns).replace("_", " ") + " |\n|" + " --- |" * (len(columns) + 1))
    for row in measure(Path(os.environ["SMOE_DATA"]), wanted.files):
        rows.append(row)
        if not wanted.json:
            print(f"| {row['set']} | " + " | ".join(str(row[column]) for column in columns) + " |", flush=True)
    if wanted.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        for wrong in row["wrong"][:5]:
            print(f"wrong in {row['set']}: {wrong}")


if __name__ == "__main__":
    main()
