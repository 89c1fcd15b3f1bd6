"""How fast audio becomes features: seconds of speech per second of one core, beside plain Lhotse and torchaudio on the same files.

    SMOE_DATA=FOLDER python benchmarks/data.py            200 files, two minutes
    SMOE_DATA=FOLDER python benchmarks/data.py --files 20 --json

Each way does the same work on every file of a fixed draw, on one thread, in turns that change from round to round; the first round
warms up. What is reported is the best round: what is slower was disturbed by something else. That both ways compute the same is
checked first, as far as they should.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from lhotse import Fbank, FbankConfig, MonoCut, Recording
from torchaudio.compliance import kaldi

from smoe_cli.audio import listen, read_as_checked
from smoe_cli.bandwidth import estimate_bandwidth
from smoe_cli.config import FeatureSettings
from smoe_cli.features import FrontEnd
from smoe_cli.telephone import TelephoneLine

RATE, TELEPHONE = 16000, 8000
PATTERN = "real-read/audio/*/*/*.opus"
Way = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """One way to do one piece of work.

    Attributes:
        speed: Seconds of speech per second of one core.
        ratio: To ours, of the same work; above 1 the other is faster.
    """

    work: str
    way: str
    speed: float
    ratio: float


def cut_of(path: Path, *transforms: Any) -> MonoCut:
    recording = Recording.from_file(path, recording_id=path.stem)
    for transform in transforms:
        recording = transform(recording)
    return MonoCut(path.stem, 0.0, recording.duration, 0, recording=recording)


def telephone(codec: Any) -> Callable[[Recording], Recording]:
    """The narrowband twin, as `smoe prepare` writes it into a manifest."""

    def sent(recording: Recording) -> Recording:
        recording = recording.resample(TELEPHONE)
        if codec != "plain":
            recording.transforms = [*(recording.transforms or []), TelephoneLine(codec, False)]
        return recording.resample(RATE)

    return sent


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T)


def through_mulaw(samples: torch.Tensor) -> torch.Tensor:
    functional = torchaudio.functional
    low = functional.resample(samples, RATE, TELEPHONE)
    return functional.resample(functional.mu_law_decoding(functional.mu_law_encoding(low, 256), 256), TELEPHONE, RATE)


def lhotse_fbank(front: FrontEnd) -> Fbank:
    return Fbank(FbankConfig(sampling_rate=RATE, num_mel_bins=front.settings.mel_bins, dither=0.0))


def ways() -> dict[str, dict[str, Way]]:
    """Work -> name of the way -> what it does with a file; ours first."""
    front = FrontEnd(FeatureSettings(), cache_mb=0)
    fbank, bins = lhotse_fbank(front), front.settings.mel_bins

    def kaldi_of(samples: torch.Tensor) -> torch.Tensor:
        return kaldi.fbank(samples, num_mel_bins=bins, sample_frequency=RATE, snip_edges=False, high_freq=-400.0)

    return {
        "read": {
            "smoe (a cut)": lambda path: cut_of(path).load_audio(),
            "smoe (checked to its end, as `prepare` does)": lambda path: listen(cut_of(path).recording),
            "Lhotse": lambda path: Recording.from_file(path).load_audio(),
            "soundfile": tensor,
        },
        "to 8 kHz and back": {
            "smoe (plain twin)": lambda path: cut_of(path, telephone("plain")).load_audio(),
            "Lhotse": lambda path: Recording.from_file(path).resample(TELEPHONE).resample(RATE).load_audio(),
            "torchaudio": lambda path: torchaudio.functional.resample(
                torchaudio.functional.resample(tensor(path), RATE, TELEPHONE), TELEPHONE, RATE
            ),
        },
        "narrowband, mu-law": {
            "smoe": lambda path: cut_of(path, telephone("mulaw")).load_audio(),
            "Lhotse (`narrowband`)": lambda path: cut_of(path).narrowband("mulaw", restore_orig_sr=True).load_audio(),
            "torchaudio": lambda path: through_mulaw(tensor(path)),
        },
        "narrowband, GSM 06.10": {"smoe": lambda path: cut_of(path, telephone("gsm")).load_audio()},
        "features": {
            "smoe": lambda path: front.compute(cut_of(path)),
            "Lhotse (`compute_features`)": lambda path: cut_of(path).compute_features(fbank),
            "torchaudio (`kaldi.fbank`)": lambda path: kaldi_of(tensor(path)),
        },
        "features of a mu-law twin": {
            "smoe": lambda path: front.compute(cut_of(path, telephone("mulaw"))),
            "Lhotse": lambda path: cut_of(path).narrowband("mulaw", restore_orig_sr=True).compute_features(fbank),
            "torchaudio": lambda path: kaldi_of(through_mulaw(tensor(path))),
        },
        "bandwidth estimated": {"smoe": lambda path: estimate_bandwidth(soundfile.read(path, dtype="float32")[0], RATE)},
    }


def check(path: Path) -> None:
    """What is compared must be the same work.

    Raises:
        AssertionError: If it is not.
    """
    work = ways()
    np.testing.assert_array_equal(work["read"]["smoe (a cut)"](path), work["read"]["Lhotse"](path))
    np.testing.assert_array_equal(work["to 8 kHz and back"]["smoe (plain twin)"](path), work["to 8 kHz and back"]["Lhotse"](path))
    ours, theirs = (torch.as_tensor(work["features"][way](path)) for way in ("smoe", "Lhotse (`compute_features`)"))
    theirs = theirs - theirs.mean(dim=0)
    torch.testing.assert_close(ours, theirs / theirs.std(), rtol=1e-4, atol=1e-4)
    theirs = torch.as_tensor(work["features"]["torchaudio (`kaldi.fbank`)"](path))[: len(ours)]
    theirs = theirs - theirs.mean(dim=0)
    # Its floor under the logarithm is higher, which recordings with digital silence reach.
    assert (ours - theirs / theirs.std()).abs().median() < 1e-2


def measure(paths: Sequence[Path], rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    read_as_checked()
    check(paths[0])
    speech_s = sum(soundfile.info(path).duration for path in paths)
    shuffle, rows = random.Random(0), []
    for work, some in ways().items():
        best = dict.fromkeys(some, float("inf"))
        for number in range(rounds + 1):
            for way in shuffle.sample(list(some), len(some)):
                started = time.process_time()
                for path in paths:
                    some[way](path)
                if number:
                    best[way] = min(best[way], time.process_time() - started)
        ours = next(iter(best.values()))
        rows += [Row(work, way, speech_s / seconds, ours / seconds) for way, seconds in best.items()]
        print(f"{work}: " + ", ".join(f"{way} {speech_s / seconds:,.0f}" for way, seconds in best.items()), file=sys.stderr, flush=True)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| work, reading the file included | way | x real time, one core | beside ours |", "| --- | --- | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {row.work} | {row.way} | {row.speed:,.0f} | {row.ratio:.2f} |" for row in rows)])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(words)
    found = sorted(Path(os.environ.get("SMOE_DATA", ".")).glob(PATTERN))
    if not found:
        sys.exit(f"error: no files `{PATTERN}`\n\nhint: set SMOE_DATA to the folder with the recordings")
    rows = measure(random.Random(0).sample(found, min(given.files, len(found))), given.rounds)
    print(json.dumps([vars(row) for row in rows], indent=2) if given.json else markdown(rows))


if __name__ == "__main__":
    main()
