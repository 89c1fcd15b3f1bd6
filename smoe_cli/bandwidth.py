"""How much of the spectrum a recording really carries, estimated from its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from smoe_cli.tags import TELEPHONE_HZ, Bandwidth

# N samples, T frames, K bins of 31.25 Hz, B bands of 500 Hz

FRAME_S, BAND_BINS, MIRROR_BIN = 0.032, 16, 256
"""A frame of 32 ms has bins of 31.25 Hz whatever the rate; 16 of them are a band, 256 the sampling rate of a telephone."""
SPEECH_K = slice(10, 109)
"""300 to 3400 Hz: telephone and wideband speech both have their energy there."""
JUDGED_B = slice(11, 15)
"""5.5 to 7.5 kHz. Lower, resampling is not sharp: Lhotse's leaves images of telephone speech up to 5.25 kHz, so that a limit at
4 kHz would call all of it wideband. Higher, wideband recordings end, and the images of hum lie."""
AUDIBLE_DB = -32.0
"""A band is carried if it comes this close to the speech band: between 5.5 and 7.5 kHz, real wideband speech comes closer, telephone speech
at 16 kHz does not, coded again neither. `benchmarks/bandwidth.py` counts how often."""
SURE_DB, SURE_S = 12.0, 0.5
"""This far from `AUDIBLE_DB`, and with this much speech, the estimate counts as sure."""
RELIABLE = 0.4
"""Confidence of 5 dB with half a second of speech: less is no reason to doubt what else is known of a recording."""
LOUDEST = 0.03
"""Share of the frames that must carry a band: a sentence may have one short fricative, and a click is a single frame."""
ACTIVE = 1e-4
"""Power of an active frame, relative to the loudest."""
ROUNDING = 4 * 2.0**-30 / 12
"""Power per bin of rounding to 16 bits, 6 dB added for dither and chance."""
STATIONARY, RISE = 30.0, 4.0
"""Where speech rises and falls by more than 15 dB, a band must rise 6 dB above its own floor: the rest is noise behind the speech."""
MIRRORED = 0.8
"""Correlation with the spectrum mirrored at 4 kHz; above it, what is there is an image that a poor resampler left."""
TINY = 1e-20
UNSURE = "unsure"
MOST_FRAMES, FRAMES_AT_ONCE = 20_000, 1024
"""Frames that are looked at, the same number of seconds apart where there are more: five minutes have 18,750."""
KEPT_BINS = 256
"""Nothing above 8 kHz is asked for."""


class Estimate(NamedTuple):
    """What a spectrum says.

    Attributes:
        bandwidth_hz: Upper edge of the highest band of 500 Hz that is carried, at most 8000; 0: nothing is to be heard.
        band: Wideband if a band above 5.5 kHz is carried.
        confidence: From 0, a guess, to 1; no probability.
    """

    bandwidth_hz: int
    band: Bandwidth
    confidence: float

    @classmethod
    def kept(cls, bandwidth_hz: int, confidence: float) -> Estimate:
        """The estimate that a cut keeps as these two."""
        return cls(bandwidth_hz, Bandwidth.WB if bandwidth_hz > 500 * JUDGED_B.start else Bandwidth.NB, confidence)

    @property
    def reliable(self) -> bool:
        """Whether it may overrule a sampling rate."""
        return self.confidence >= RELIABLE

    @property
    def says(self) -> str:
        """The band, or `unsure`."""
        return str(self.band) if self.reliable else UNSURE


def contradicts(says: str, known: str) -> bool:
    """Whether what an estimate says is another band than is known; one that is unsure contradicts nothing."""
    return says not in (UNSURE, known)


def estimate_bandwidth(samples_N: NDArray[np.float32] | Sequence[NDArray[np.float32]], rate_hz: int) -> Estimate:
    """Estimate the effective bandwidth of one channel.

    In each frame of 32 ms, bands of 500 Hz are compared with the speech band of the same frame; a band is carried if the highest
    3 % of the active frames reach -32 dB. So one fricative tells wideband speech, however long the vowels around it, and images
    that a resampler leaves above 4 kHz stay far below. Three things are taken away first: what rounding to 16 bits adds, noise
    that stays while speech rises and falls, and everything above 4 kHz where it is a mirror image of what lies below.

    Source: our own. The frame-wise comparison replaces the usual "-50 dB below the peak" of the long-term spectrum, which takes
    images for wideband and speech without fricatives for narrowband.

    Args:
        samples_N: In [-1, 1], shape (samples,); of any length, even none. Or several parts of one recording.
        rate_hz: Their sampling rate; at 8 kHz or less the answer is narrowband, and sure. Where it is too low to have a band above
            5.5 kHz (below 12 kHz), the answer is a guess.

    Raises:
        ValueError: If the samples are not one channel, or not finite.
    """
    parts = [samples_N] if isinstance(samples_N, np.ndarray) else samples_N
    for part_N in parts:
        if part_N.ndim != 1 or not np.isfinite(part_N).all():
            raise ValueError(f"expected finite samples of one channel, shape (samples,), found shape {part_N.shape}")
    telephone = rate_hz <= TELEPHONE_HZ
    every = -(-sum(len(part_N) for part_N in parts) // (round(FRAME_S * rate_hz) // 2 * MOST_FRAMES)) or 1
    power_TK = np.concatenate([_power(part_N, rate_hz, every) for part_N in parts])
    speech_T = power_TK[:, SPEECH_K].mean(axis=1)
    active_T = speech_T > max(ACTIVE * speech_T.max(), ROUNDING)
    if not active_T.any():
        return Estimate(0, Bandwidth.NB if telephone else Bandwidth.WB, float(telephone))
    bands = power_TK.shape[1] // BAND_BINS
    power_TB = power_TK[:, : bands * BAND_BINS].reshape(-1, bands, BAND_BINS).mean(axis=2)
    floor_B = np.full(bands, ROUNDING)
    if np.quantile(speech_T, 0.9) > STATIONARY * np.quantile(speech_T, 0.1):
        floor_B = np.maximum(floor_B, RISE * np.quantile(power_TB, 0.1, axis=0))
    carried_TB = np.where(power_TB > floor_B, power_TB, 0.0)
    if _mirrored(power_TK, active_T):
        carried_TB[:, TELEPHONE_HZ // 2 // 500 :] = 0.0
    share = max(LOUDEST, 2 / active_T.sum())
    level_B = 10 * np.log10(np.quantile(carried_TB[active_T] / speech_T[active_T, None], max(0.0, 1 - share), axis=0) + TINY)
    carried = np.flatnonzero(level_B[:16] > AUDIBLE_DB)
    bandwidth_hz = 500 * (int(carried[-1]) + 1) if len(carried) else 0
    if telephone:
        return Estimate(bandwidth_hz, Bandwidth.NB, 1.0)
    if not len(level_B[JUDGED_B]):
        return Estimate(bandwidth_hz, Bandwidth.NB, 0.0)
    highest_db = level_B[JUDGED_B].max()
    band = Bandwidth.WB if highest_db > AUDIBLE_DB else Bandwidth.NB
    margin_db = abs(highest_db - AUDIBLE_DB)
    if band is Bandwidth.NB:
        # What lies under rounding or noise cannot be missed.
        hidden_db = 10 * np.log10(floor_B[JUDGED_B].max() / np.quantile(speech_T[active_T], 0.9))
        margin_db = min(margin_db, max(0.0, AUDIBLE_DB - hidden_db))
        bandwidth_hz = min(bandwidth_hz, 500 * JUDGED_B.start)
    heard_s = every * active_T.sum() * FRAME_S / 2
    return Estimate(bandwidth_hz, band, round(float(min(1.0, margin_db / SURE_DB) * min(1.0, heard_s / SURE_S)), 2))


def _power(samples_N: NDArray[np.float32], rate_hz: int, every: int) -> NDArray[np.float64]:
    """Power spectrum (T,K) up to 8 kHz, in frames that overlap by half if `every` is 1; white noise of power 1 has 1 in each bin.

    A few frames at a time: all of them, windowed and as complex numbers, would take ten times the memory of what is kept.
    """
    size = round(FRAME_S * rate_hz)
    window = np.hanning(size)
    padded = np.pad(samples_N, (0, max(0, size - len(samples_N))))
    frames_TN = sliding_window_view(padded, size)[:: every * (size // 2)]
    power_TK = np.empty((len(frames_TN), min(KEPT_BINS, size // 2 + 1)))
    for first in range(0, len(frames_TN), FRAMES_AT_ONCE):
        some = slice(first, first + FRAMES_AT_ONCE)
        spectrum = np.fft.rfft(frames_TN[some] * window, axis=1)[:, : power_TK.shape[1]]
        power_TK[some] = np.abs(spectrum) ** 2 / (window**2).sum()
    return power_TK


def _mirrored(power_TK: NDArray[np.float64], active_T: NDArray[np.bool_]) -> bool:
    """Whether 5.5 to 7.5 kHz hold the image of 0.5 to 2.5 kHz, as after linear interpolation from 8 kHz.

    Compared after each frame's and each bin's mean is taken away: only the fine structure of speech is left, which no other
    process repeats upside down.
    """
    start, stop = JUDGED_B.start * BAND_BINS, JUDGED_B.stop * BAND_BINS
    if power_TK.shape[1] < stop:
        return False
    high, low = (
        10 * np.log10(power_TK[np.ix_(active_T, bins)] + TINY) for bins in (np.arange(start, stop), MIRROR_BIN - np.arange(start, stop))
    )
    high, low = (part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean() for part in (high, low))
    return bool((high * low).sum() > MIRRORED * np.sqrt((high**2).sum() * (low**2).sum()) > 0)
