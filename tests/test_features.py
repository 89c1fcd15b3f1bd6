"""Laws of features: those of smoe are those of Kaldi, whoever computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lhotse import Fbank, FbankConfig
from torchaudio.compliance import kaldi

from smoe_cli.config import FeatureSettings
from smoe_cli.features import FrontEnd
from tests.test_bandwidth import by_telephone, speech

TOLERANCE = 2e-3
"""Of values with deviation 1: float32 Fourier transforms of two libraries."""


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0037])
@pytest.mark.parametrize("line", [False, True])
def test_default_features_are_those_of_torchaudio_and_lhotse_but_for_the_scale(rate, seconds, line):
    samples = by_telephone(speech(seconds), "mulaw") if line else speech(seconds)
    samples = samples[:: 16000 // rate] + np.random.default_rng(0).normal(size=len(samples[:: 16000 // rate])).astype(np.float32) * 1e-3
    heard = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    ours = FrontEnd(FeatureSettings(sample_rate_hz=rate)).of_samples(heard)
    # Lhotse's filters end 400 Hz below half the rate; torchaudio's by default there.
    torchaudios = kaldi.fbank(heard[None], num_mel_bins=80, sample_frequency=rate, dither=0.0, snip_edges=False, high_freq=-400.0)
    lhotses = torch.as_tensor(Fbank(FbankConfig(sampling_rate=rate, num_mel_bins=80)).extract(heard, rate))
    assert ours.shape == (round(len(heard) / rate * 100), 80)
    for theirs in (torchaudios, lhotses):
        centred = theirs[: len(ours)] - theirs[: len(ours)].mean(dim=0)
        torch.testing.assert_close(ours, centred / centred.std(), rtol=0, atol=TOLERANCE)
