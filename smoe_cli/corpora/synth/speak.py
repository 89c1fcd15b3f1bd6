"""From a text and a voice to a finished audio file; runs in worker processes.

N samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import resample

from smoe_cli.audio import write_flac
from smoe_cli.corpora.synth.voices import Voice, Wave, load_engine
from smoe_cli.errors import DataError

SAMPLE_RATE_HZ = 16000
PLAYBACK_STEP_HZ = 160
"""Playback rates are multiples of this, so that resampling needs at most 100 filters; pitch moves by 0.5 % at most."""
SPEEDS = (0.88, 1.14)
"""Slowest and fastest tempo, relative to the engine's own."""
SILENCE_S = (0.05, 0.25)
"""Shortest and longest silence at either end; the engines' own, up to a second, is cut off."""
QUIET_DB, QUIET_S = -40.0, 0.02
"""What counts as an engine's silence: root mean square of a stretch below this, relative to the loudest stretch."""
PEAKS = (0.2, 0.8)
"""Lowest and highest peak, of full scale 1."""
NOISE_DB = (-70.0, -50.0)
"""Quietest and loudest noise floor, in decibels below full scale."""
FULL_SCALE = 0.999
CLIPPED_SAMPLES = 5
"""From so many samples at full scale on, the engine is held to have clipped."""
MIN_RMS = 0.003
MIN_WORD_S = 0.08
"""Shorter speech per word is cut off: the fastest voice needs about 0.15 s."""


@dataclass(frozen=True)
class Saying:
    """One text to be spoken into one file.

    Attributes:
        text: What is said.
        voice: Who says it.
        seed: Of tempo, silences, level and noise.
        path: The FLAC file.
    """

    text: str
    voice: Voice
    seed: int
    path: Path


def speak_all(sayings: Iterable[Saying]) -> int:
    """Speak each into its file and return how many there were."""
    threads = torch.get_num_threads()
    # One thread: workers share the cores, and sums then run in one order, whatever the machine.
    torch.set_num_threads(1)
    try:
        return sum(speak(saying) for saying in sayings)
    finally:
        torch.set_num_threads(threads)


def speak(saying: Saying) -> int:
    """Write one file, 16-bit mono FLAC at 16 kHz; it appears under its name only when complete. Returns 1.

    Raises:
        DataError: If the engine was silent, clipped or stopped early, or the file cannot be written.
    """
    rng = np.random.default_rng(saying.seed)
    dry_N = _engine_output(saying, speed=rng.uniform(*SPEEDS))
    before, after = (round(seconds * SAMPLE_RATE_HZ) for seconds in rng.uniform(*SILENCE_S, size=2))
    padded_N = np.pad(dry_N * (rng.uniform(*PEAKS) / np.abs(dry_N).max()), (before, after))
    noise_N = rng.standard_normal(len(padded_N)) * 10 ** (rng.uniform(*NOISE_DB) / 20)
    write_flac(saying.path, np.round((padded_N + noise_N) * 32767).astype(np.int16), SAMPLE_RATE_HZ)
    return 1


def _engine_output(saying: Saying, speed: float) -> Wave:
    voice = saying.voice
    say, rate_hz = load_engine(voice.engine)
    # Playing at `warp` times the rate shifts pitch and formants, and the tempo with them, which the engine makes up for.
    raw_N = say(f"{saying.text}.", voice, speed / voice.warp, saying.seed % 2**31)
    playback_hz = round(rate_hz * voice.warp / PLAYBACK_STEP_HZ) * PLAYBACK_STEP_HZ
    check_output(raw_N, playback_hz, saying)
    dry_N: Wave = resample(torch.from_numpy(raw_N), playback_hz, SAMPLE_RATE_HZ).numpy()
    return trimmed(dry_N)


def trimmed(samples_N: Wave) -> Wave:
    """Without the silence at either end; one quiet stretch is left there, so that no sound is cut into."""
    stretch = round(QUIET_S * SAMPLE_RATE_HZ)
    padded_N = np.pad(samples_N, (0, -len(samples_N) % stretch))
    rms = np.sqrt(np.mean(np.square(padded_N.reshape(-1, stretch)), axis=1))
    loud = np.flatnonzero(rms > rms.max() * 10 ** (QUIET_DB / 20))
    return samples_N[max(0, loud[0] - 1) * stretch : (loud[-1] + 2) * stretch]


def check_output(raw_N: Wave, rate_hz: int, saying: Saying) -> None:
    """Refuse what is not speech of this text: silence, clipping, an early end.

    Raises:
        DataError: Naming the text, the voice and the measure.
    """
    duration_s = len(raw_N) / rate_hz
    words = len(saying.text.split())
    if duration_s < words * MIN_WORD_S:
        problem = f"only {duration_s:.2f} s of audio for {words} words"
    elif (rms := float(np.sqrt(np.mean(np.square(raw_N))))) < MIN_RMS:
        problem = f"silence (root mean square {rms:.5f} of full scale; speech has at least {MIN_RMS})"
    elif (clipped := int(np.sum(np.abs(raw_N) >= FULL_SCALE))) >= CLIPPED_SAMPLES:
        problem = f"clipped audio ({clipped} samples at full scale)"
    else:
        return
    raise DataError(
        f"voice `{saying.voice.name}` gave {problem} for `{saying.text}`",
        f"reinstall the engine, or leave `{saying.voice.engine}` out of the synth corpus's `engines`",
    )
