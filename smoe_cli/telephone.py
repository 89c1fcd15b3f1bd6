"""Simulated telephone lines: what a codec and the band of a line leave of speech at 8 kHz."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse import MonoCut
from lhotse.augmentation import AudioTransform
from numpy.typing import NDArray

from smoe_cli.audio import describe, read_samples, resampled, state_of, write_flac
from smoe_cli.config import Config, LineCodec, NarrowbandSettings
from smoe_cli.corpora.files import LONGEST_NAME
from smoe_cli.corpora.utterance import Utterance
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from smoe_cli.tags import TELEPHONE_HZ, Bandwidth

# C channels, N samples

SUBTYPES = {"plain": None, "mulaw": "ULAW", "alaw": "ALAW", "gsm": "GSM610"}
"""Codec -> libsndfile's name of it in a WAV file."""
GSM_BLOCK = 320
"""A WAV file holds GSM 06.10 in pairs of 160 samples; libsndfile fills up the last one."""
BAND_HZ, TAPS, KAISER_BETA = (300, 3400), 401, 6.0
"""A linear-phase filter of 50 ms: -6 dB at the edges of ITU-T G.712's band, -60 dB 50 Hz further out."""


@dataclass
class TelephoneLine(AudioTransform):  # type: ignore[misc]  # Lhotse has no type hints that are exported
    """A telephone line, applied by Lhotse when audio is read; its sisters in `Recording.transforms` bring audio to 8 kHz and back.

    Neither time nor length change: the filter is symmetric, G.711 works sample by sample, GSM 06.10 frame by frame without delay.

    Attributes:
        codec: `mulaw`, `alaw` (ITU-T G.711), `gsm` (GSM 06.10 full rate) or `plain` (none); libsndfile codes and decodes.
        telephone_band: Whether only 300 to 3400 Hz pass, before the codec.
    """

    codec: LineCodec
    telephone_band: bool

    def __str__(self) -> str:
        return f"{self.codec}, {BAND_HZ[0]}-{BAND_HZ[1]} Hz" if self.telephone_band else self.codec

    def __call__(self, samples_CN: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float32]:
        """Pass samples in [-1, 1] at 8 kHz, shape (channels, samples), through the line; same shape.

        Args:
            sampling_rate: Not used: Lhotse names the rate at the end of all transforms.
        """
        return np.stack([self._channel(np.asarray(samples_N)) for samples_N in samples_CN])

    def reverse_timestamps(self, offset: float, duration: float | None, sampling_rate: int) -> tuple[float, float | None]:
        """The same: nothing moves."""
        return offset, duration

    def _channel(self, samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.telephone_band:
            samples_N = telephone_band(samples_N)
        subtype = SUBTYPES[self.codec]
        if subtype is None:
            return samples_N.astype(np.float32)
        return through_codec(samples_N, subtype)


def telephone_band(samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """300 to 3400 Hz of audio at 8 kHz, by a windowed-sinc filter without delay; same length."""
    time = np.arange(TAPS) - TAPS // 2
    low, high = (2 * edge / TELEPHONE_HZ * np.sinc(2 * edge / TELEPHONE_HZ * time) for edge in BAND_HZ)
    filtered = np.convolve(samples_N, (high - low) * np.kaiser(TAPS, KAISER_BETA))
    return filtered[TAPS // 2 : TAPS // 2 + len(samples_N)].astype(np.float32)


def through_codec(samples_N: NDArray[np.float32], subtype: str) -> NDArray[np.float32]:
    """Code and decode audio at 8 kHz with a codec of libsndfile; same length.

    Clipped and rounded to 16 bits first: what a codec takes, and nothing can wrap around.
    """
    file = io.BytesIO()
    soundfile.write(file, np.pad(to_int16(samples_N), (0, -len(samples_N) % GSM_BLOCK)), TELEPHONE_HZ, format="WAV", subtype=subtype)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return decoded[: len(samples_N)]


def to_int16(samples_N: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1], clipped and rounded to 16 bits."""
    return np.clip(np.rint(samples_N * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)


class ToWrite(NamedTuple):
    """An utterance as it comes out of its line, how much of it is to be written, and where."""

    heard: Utterance
    duration_s: float
    path: Path


def line_of(settings: NarrowbandSettings, utterance: str) -> TelephoneLine:
    """The line that an utterance is sent through: drawn from the seed and its id alone, whatever else is prepared."""
    generator = _generator(settings, utterance, "line")
    codec = settings.codecs[generator.integers(len(settings.codecs))]
    return TelephoneLine(codec, bool(generator.random() < settings.telephone_band))


def bands_of(settings: NarrowbandSettings, utterance: str, split: str) -> list[Bandwidth]:
    """The bands in which a wideband utterance is used: both, or the one drawn for it."""
    if settings.pairing == "both" or split != "train":
        return [Bandwidth.WB, Bandwidth.NB]
    return [Bandwidth.NB if _generator(settings, utterance, "band").random() < 0.5 else Bandwidth.WB]


def _generator(settings: NarrowbandSettings, utterance: str, what: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, zlib.crc32(f"{what} {utterance}".encode())])


def send(utterance: Utterance, corpus: str, duration_s: float, config: Config) -> tuple[Utterance, str | None]:
    """A wideband utterance as it comes out of its line, at 8 kHz, and the line's name; None: plain, as no line is asked for.

    Its spectrum was estimated before, so the estimate is dropped. Audio that is written is named by all that it was made from: what is
    there already is kept, and nothing else overwrites it.

    Args:
        duration_s: Of the utterance.

    Raises:
        DataError: If the audio is to be written, and cannot be read or written.
    """
    settings = config.data.nb_simulation
    heard, line = _through_line(utterance, corpus, settings)
    if settings.write:
        path = _path(heard, corpus, duration_s, config)
        if not path.exists():
            _write(heard, duration_s, path)
        heard = replace(heard, recording=describe(path, heard.recording.id), start_s=0.0, duration_s=None, channel=0)
    return heard, None if settings == NarrowbandSettings() else str(line)


def to_write(utterance: Utterance, corpus: str, duration_s: float, config: Config) -> list[ToWrite]:
    """What `send` would write, if it is not there already."""
    heard, _ = _through_line(utterance, corpus, config.data.nb_simulation)
    path = _path(heard, corpus, duration_s, config).absolute()
    return [] if path.exists() else [ToWrite(heard, duration_s, path)]


def write_lines_of(some: Sequence[ToWrite]) -> None:
    """Write simulated audio, ahead of `send`, which says why if it cannot be done."""
    for one in some:
        with suppress(DataError):
            _write(*one)


def _through_line(utterance: Utterance, corpus: str, settings: NarrowbandSettings) -> tuple[Utterance, TelephoneLine]:
    line, recording = line_of(settings, f"{corpus}/{utterance.id}"), resampled(utterance.recording, TELEPHONE_HZ)
    if line != TelephoneLine("plain", False):
        recording.transforms = [*(recording.transforms or []), line]
    return replace(utterance, recording=recording, estimate=None), line


def _path(heard: Utterance, corpus: str, duration_s: float, config: Config) -> Path:
    # An id may be longer than a name; the digest tells apart what begins alike.
    name = re.sub(r"[^\w.-]", "_", heard.id).encode()[:LONGEST_NAME].decode(errors="ignore")
    return Layout.of(config).audio / "narrowband" / corpus / f"{name}.{_digest(heard, f'{corpus}/{heard.id}', duration_s)}.flac"


def _digest(heard: Utterance, key: str, duration_s: float) -> str:
    """Stands for an utterance, the states of its files, all that is done to them, and its part of them."""
    files = [state_of(Path(source.source)) for source in heard.recording.sources]
    made_from = f"{key} {heard.recording.to_dict()} {files} {heard.start_s} {duration_s} {heard.channel}"
    return blake2b(made_from.encode(), digest_size=8).hexdigest()


def _write(heard: Utterance, duration_s: float, path: Path) -> None:
    # Not a sample less than the part lasts, so that nothing has to be made up at its end.
    whole_s = ceil(round(duration_s * TELEPHONE_HZ, 6)) / TELEPHONE_HZ
    cut = MonoCut(heard.id, heard.start_s, whole_s, heard.channel, recording=heard.recording)
    samples_CN = read_samples(cut, f"the audio of utterance `{heard.id}`", cure="bring back the file, or remove it")
    write_flac(path, to_int16(samples_CN[0]), TELEPHONE_HZ)
