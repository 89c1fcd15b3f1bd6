"""Log-mel features: the one front end of training, decoding and audit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lhotse import Fbank, FbankConfig, MonoCut
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.transforms import MelSpectrogram

from smoe_cli.audio import read_samples
from smoe_cli.config import FRAMES_PER_S, FeatureSettings
from smoe_cli.errors import DataError

FRAME_SHIFT_S = 1 / FRAMES_PER_S
# T frames, F mel bins


Key = tuple[str, int, float, float, str]
"""Audio file, channel, start and duration in seconds, and what is done to the audio."""


class Store(Protocol):
    """Keeps features, as float16."""

    def get(self, key: Key) -> Tensor | None:
        """Features (T,F); None: there are none."""

    def put(self, key: Key, features: Tensor) -> int:
        """Keep features; returns the bytes that they take."""


class Kind(ABC):
    """A way to compute features."""

    @abstractmethod
    def __init__(self, settings: FeatureSettings) -> None: ...

    @abstractmethod
    def __call__(self, samples: Tensor) -> Tensor:
        """Features (T,F) of samples in [-1, 1], shape (samples,)."""

    @abstractmethod
    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Every setting, in the names of the library that computes them, and what is done besides."""


class Kaldi(Kind):
    """Kaldi-style log-mel filterbanks (Lhotse), normalised per utterance.

    The mean of each bin is removed (channel and level); the scale is one number for the whole utterance.
    Per-bin scaling, usual elsewhere, would blow up the empty bins above 4 kHz of narrowband audio.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.rate = settings.sample_rate_hz
        self.fbank = Fbank(FbankConfig(sampling_rate=self.rate, num_mel_bins=settings.mel_bins, dither=0.0, frame_shift=FRAME_SHIFT_S))

    def __call__(self, samples: Tensor) -> Tensor:
        features = torch.as_tensor(self.fbank.extract(samples, self.rate))
        features = features - features.mean(dim=0)
        return features / features.std().clamp_min(1e-3)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        settings = {name: value for name, value in self.fbank.config.to_dict().items() if name != "device"}
        return settings | {"per_utterance": "minus each bin's mean, divided by the standard deviation of all values"}


class Speech2Text(Kind):
    """Kaldi's log-mel filterbanks of 16-bit samples (torchaudio), each bin normalised to mean 0 and deviation 1.

    Source: the feature extractor of transformers' Speech2Text, after fairseq S2T, arXiv:2010.05171.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.rate, self.mel_bins = settings.sample_rate_hz, settings.mel_bins

    def __call__(self, samples: Tensor) -> Tensor:
        features = kaldi.fbank(samples[None] * 2**15, num_mel_bins=self.mel_bins, sample_frequency=self.rate)
        return (features - features.mean(dim=0)) / features.std(dim=0, correction=0).clamp_min(1e-10)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        per_utterance = "minus each bin's mean, divided by its standard deviation"
        return {
            "num_mel_bins": self.mel_bins,
            "computed_by": "torchaudio.compliance.kaldi.fbank on 16-bit samples",
            "per_utterance": per_utterance,
        }


class Whisper(Kind):
    """Log-mel spectrogram, the quietest 8 decades below the loudest point cut off. Source: Whisper, arXiv:2212.04356, section 2.2."""

    def __init__(self, settings: FeatureSettings) -> None:
        self.mel = MelSpectrogram(
            settings.sample_rate_hz, n_fft=400, hop_length=160, n_mels=settings.mel_bins, norm="slaney", mel_scale="slaney"
        )
        self.window = round((settings.window_s or 0.0) * settings.sample_rate_hz) if settings.pad_to_window else 0

    def __call__(self, samples: Tensor) -> Tensor:
        samples = F.pad(samples, (0, max(0, self.window - len(samples))))
        log = self.mel(samples)[:, :-1].clamp_min(1e-10).log10()
        return ((log.maximum(log.max() - 8.0) + 4.0) / 4.0).T.contiguous()

    def describe(self) -> dict[str, str | int | float | bool | None]:
        per_utterance = "log10 of at least 1e-10; at least the largest value - 8; (value + 4) / 4"
        mel = {
            "n_fft": self.mel.n_fft,
            "hop_length": self.mel.hop_length,
            "n_mels": self.mel.n_mels,
            "mel_scale": "slaney",
            "norm": "slaney",
        }
        return {**mel, "padded_to_samples": self.window or None, "per_utterance": per_utterance}


FRONT_ENDS: dict[str, type[Kind]] = {
    "kaldi": Kaldi,
    "speech2text": Speech2Text,
    "whisper": Whisper,
}
"""Name in the settings -> what computes such features."""


class FrontEnd:
    """Features of cuts, with an optional bounded cache.

    Args:
        settings: Of the recipe or the checkpoint.
        cache_mb: Memory for features kept as float16, if not as the settings say; when full, the oldest are dropped.
        store: Where features are looked for, and kept, besides.
    """

    def __init__(self, settings: FeatureSettings, cache_mb: int | None = None, store: Store | None = None) -> None:
        self.store = store
        self.settings, self.sample_rate_hz = settings, settings.sample_rate_hz
        self._kind = FRONT_ENDS[settings.kind](settings)
        self._cache: OrderedDict[Key, Tensor] = OrderedDict()
        self._free_bytes = (settings.cache_mb if cache_mb is None else cache_mb) << 20

    def __call__(self, cut: MonoCut) -> Tensor:
        """Features (T,F) of a cut, float32.

        Raises:
            DataError: If the audio cannot be read, is longer than the model takes, or has another sampling rate.
        """
        key = self.key(cut)
        cached = self._cache.get(key)
        if cached is None:
            cached = self._stored(cut, key)
            size = cached.numel() * 2
            while self._cache and self._free_bytes < size:
                self._free_bytes += self._cache.popitem(last=False)[1].numel() * 2
            if self._free_bytes >= size:
                self._cache[key] = cached
                self._free_bytes -= size
        return cached.float()

    @staticmethod
    def key(cut: MonoCut) -> Key:
        """The same for cuts with the same features: an utterance's tasks share them; its bands do not, and differ in their transforms."""
        return str(cut.recording.sources[0].source), cut.channel, cut.start, cut.duration, str(cut.recording.transforms or [])

    def keep(self, cut: MonoCut) -> int:
        """Compute the features of a cut and put them into the store; returns the bytes that they take.

        Raises:
            DataError: As of calling it, and if the store cannot be written.
        """
        assert self.store is not None
        return self.store.put(self.key(cut), self.compute(cut).half())

    def _stored(self, cut: MonoCut, key: Key) -> Tensor:
        """Features as float16, from the store if there is one."""
        if self.store is None:
            return self.compute(cut).half()
        found = self.store.get(key)
        if found is None:
            found = self.compute(cut).half()
            self.store.put(key, found)
        return found

    def compute(self, cut: MonoCut) -> Tensor:
        """Features (T,F) of a cut, read and computed now."""
        return self.of_samples(torch.from_numpy(self.read(cut)[0]))

    def read(self, cut: MonoCut) -> NDArray[np.float32]:
        """The audio (1,N) of a cut.

        Raises:
            DataError: If it cannot be read, is longer than the model takes, or has another sampling rate.
        """
        if cut.sampling_rate != self.sample_rate_hz:
            raise DataError(
                f"cut `{cut.id}` is at {cut.sampling_rate} Hz, the model at {self.sample_rate_hz} Hz",
                "prepare the manifest with `smoe prepare`",
            )
        if self.settings.window_s is not None and cut.duration > self.settings.window_s:
            raise DataError(
                f"cut `{cut.id}` lasts {cut.duration:.2f} s; the model takes {self.settings.window_s:g} s", "split long audio at pauses"
            )
        return read_samples(cut, f"the audio of cut `{cut.id}`")

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """All that another program needs to compute the same features."""
        return {"kind": self.settings.kind, "sampling_rate": self.sample_rate_hz, "frame_shift": FRAME_SHIFT_S, **self._kind.describe()}

    def of_samples(self, samples: Tensor) -> Tensor:
        """Features (T,F) of samples in [-1, 1], shape (samples,)."""
        return self._kind(samples)
