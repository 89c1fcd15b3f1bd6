"""What the trees of corpora are made of: tones instead of speech, and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


def tone(path: Path, seconds: float = 1.0, rate: int = 16000, levels: Sequence[float] = (0.3,), **form: str) -> None:
    """A file with one tone per channel, each as loud as its level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.stack([level * wave for level in levels], axis=1), rate, **form)


def text(path: Path, *lines: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
