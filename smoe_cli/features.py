"""Log-mel features: the one front end of training, decoding and audit."""

from __future__ import annotations

from collections import OrderedDict

import torch
from lhotse import Fbank, FbankConfig, MonoCut
from torch import Tensor

from smoe_cli.errors import DataError

FRAME_SHIFT_S = 0.01
# T frames, F mel bins


class FrontEnd:
    """Kaldi-style log-mel filterbanks (Lhotse), normalised per utterance, with an optional bounded cache.

    The mean of each bin is removed (channel and level); the scale is one number for the whole utterance.
    Per-bin scaling, usual elsewhere, would blow up the empty bins above 4 kHz of narrowband audio.

    Args:
        sample_rate_hz: Rate of the audio that comes in.
        mel_bins: F.
        cache_mb: Memory for features kept as float16; when full, the oldest are dropped.
    """

    def __init__(self, sample_rate_hz: int, mel_bins: int, cache_mb: int = 0) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._fbank = Fbank(FbankConfig(sampling_rate=sample_rate_hz, num_mel_bins=mel_bins, dither=0.0, frame_shift=FRAME_SHIFT_S))
        self._cache: OrderedDict[tuple[str, int, float, float, str], Tensor] = OrderedDict()
        self._free_bytes = cache_mb << 20

    def __call__(self, cut: MonoCut) -> Tensor:
        """Features (T,F) of a cut, float32.

        Raises:
            DataError: If the audio cannot be read or has another sampling rate.
        """
        # An utterance's tasks share its features; its bands do not, and differ in their transforms.
        transforms = cut.recording.transforms or []
        key = (str(cut.recording.sources[0].source), cut.channel, cut.start, cut.duration, str(transforms))
        cached = self._cache.get(key)
        if cached is None:
            cached = self.compute(cut).half()
            size = cached.numel() * 2
            while self._cache and self._free_bytes < size:
                self._free_bytes += self._cache.popitem(last=False)[1].numel() * 2
            if self._free_bytes >= size:
                self._cache[key] = cached
                self._free_bytes -= size
        return cached.float()

    def compute(self, cut: MonoCut) -> Tensor:
        """Features (T,F) of a cut, read and computed now."""
        if cut.sampling_rate != self.sample_rate_hz:
            raise DataError(
                f"cut `{cut.id}` is at {cut.sampling_rate} Hz, the model at {self.sample_rate_hz} Hz",
                "prepare the manifest with `smoe prepare`",
            )
        try:
            samples = cut.load_audio()
        except Exception as error:  # Lhotse wraps every reader's own errors
            raise DataError(
                f"cannot read the audio of cut `{cut.id}`: {error}", "bring back the file, or prepare the manifest again"
            ) from error
        return self.of_samples(torch.from_numpy(samples[0]))

    @property
    def settings(self) -> dict[str, str | int | float | bool | None]:
        """All that another program needs to compute the same features: Lhotse's settings, and what `of_samples` does to them."""
        settings = {name: value for name, value in self._fbank.config.to_dict().items() if name != "device"}
        return settings | {"per_utterance": "minus each bin's mean, divided by the standard deviation of all values"}

    def of_samples(self, samples: Tensor) -> Tensor:
        """Features (T,F) of samples in [-1, 1], shape (samples,)."""
        features = torch.as_tensor(self._fbank.extract(samples, self.sample_rate_hz))
        features = features - features.mean(dim=0)
        return features / features.std().clamp_min(1e-3)


def spec_augment(
    features_NTF: Tensor, lengths_N: Tensor, time_masks: int, time_share: float, frequency_masks: int, frequency_bins: int, seed: int
) -> Tensor:
    """Blank random stripes of time and frequency with the utterance's mean (zero). Source: arXiv:1904.08779.

    Args:
        time_share: Longest time mask, as a share of the utterance.
        frequency_bins: Widest frequency mask.
        seed: Same seed, same masks: training resumes exactly.
    """
    n, t, f = features_NTF.shape
    generator = torch.Generator().manual_seed(seed)

    def stripes(count: int, sizes_N: Tensor, longest_N: Tensor, axis_length: int) -> Tensor:
        """(N, axis_length), true where masked."""
        width = torch.rand(n, count, generator=generator) * (longest_N[:, None] + 1)
        start = torch.rand(n, count, generator=generator) * (sizes_N[:, None] - width).clamp_min(0)
        axis = torch.arange(axis_length)
        return ((axis >= start.floor()[..., None]) & (axis < (start.floor() + width.floor())[..., None])).any(dim=1)

    lengths = lengths_N.cpu().float()
    masked_time = stripes(time_masks, lengths, lengths * time_share, t)
    bins = torch.full((n,), float(f))
    masked_frequency = stripes(frequency_masks, bins, torch.full((n,), float(min(frequency_bins, f))), f)
    masked = masked_time[:, :, None] | masked_frequency[:, None, :]
    return features_NTF.masked_fill(masked.to(features_NTF.device), 0.0)
