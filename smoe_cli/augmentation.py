"""What is done to training cuts, each time otherwise, through Lhotse: to their audio speed, rooms and noise, to their features SpecAugment.

Every draw is a function of the seed, the batch and the cut, so a training that resumes hears what it would have heard.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lhotse import MonoCut, Recording
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import Resample, ReverbWithImpulseResponse, Speed
from lhotse.dataset import SpecAugment
from numpy.typing import NDArray
from torch import Tensor

from smoe_cli.audio import read_samples
from smoe_cli.corpora.files import AUDIO_SUFFIXES, files_below, is_dir, recording_of, refuse
from smoe_cli.errors import DataError
from smoe_cli.tags import TELEPHONE_HZ, Bandwidth
from smoe_cli.train_settings import AugmentSettings, TrainSettings
from smoe_cli.transforms import check_rate, resampled_too_finely

EXACT = (".wav", ".flac")
"""What can be read from the middle with the samples that it has there; lossy formats depend on what comes before."""
Samples = NDArray[np.float32]
# (1,N): one channel, N samples
# T frames, F mel bins


class Augmentation:
    """Draws what is done to each training cut, and does it.

    Narrowband cuts stay narrowband: what speed or noise puts above 4 kHz is taken away again.

    Args:
        settings: Of the recipe.
        rate_hz: Of the model's features.
        seed: Of all draws.

    Raises:
        DataError: If there is no noise or no room where the settings name some, or one is no sound audio of one channel; or if a speed
            or a rate would take a filter that fills the memory.
    """

    def __init__(self, settings: AugmentSettings, rate_hz: int, seed: int) -> None:
        self.settings, self.rate_hz, self.seed = settings, rate_hz, seed
        self._noises = sounds(settings.noise, "train.augment.noise")
        self._rooms = sounds(settings.rooms, "train.augment.rooms")
        for speed in settings.speeds:
            if why := resampled_too_finely(round(rate_hz * speed), rate_hz):
                raise DataError(f"`train.augment.speeds`: {speed:g} cannot be computed: {why}", "use speeds such as 0.9, 1.05 and 1.1")
        for sound in (*self._noises, *self._rooms):
            check_rate(f"audio `{sound.sources[0].source}`", sound.sampling_rate, rate_hz)
        self._down, self._up = Resample(rate_hz, TELEPHONE_HZ), Resample(TELEPHONE_HZ, rate_hz)

    def __call__(self, cut: MonoCut, samples: Samples, band: Bandwidth, batch: int) -> Samples:
        """The audio of a cut as it is heard in a batch.

        Args:
            cut: Whose audio it is.
            samples: At the model's rate, shape (1,N).
            band: What it carries.
            batch: Number of the batch, which the draw depends on.

        Returns:
            Shape (1,M); M differs from N where the speed does.

        Raises:
            DataError: If noise or room cannot be read.
        """
        generator = np.random.default_rng(drawn_for(self.seed, batch, cut))
        speed = self.settings.speeds[generator.integers(len(self.settings.speeds))]
        room = self._drawn(generator, self._rooms, self.settings.rooms_share)
        noise = self._drawn(generator, self._noises, self.settings.noise_share)
        snr_db = generator.uniform(*self.settings.snr_db)
        changed = Speed(speed)(samples, self.rate_hz) if speed != 1.0 else samples
        if room is not None:
            changed = ReverbWithImpulseResponse(room.resample(self.rate_hz).to_dict())(changed, self.rate_hz)
        if noise is not None:
            changed = self._mixed(changed, noise, snr_db, generator)
        if band is Bandwidth.NB and changed is not samples:
            changed = self._up(self._down(changed, self.rate_hz), TELEPHONE_HZ)
        return np.ascontiguousarray(changed, dtype=np.float32)

    def _drawn(self, generator: np.random.Generator, some: Sequence[Recording], share: float) -> Recording | None:
        # The same number of draws whatever comes of them, so that a setting moves nothing but itself.
        number, chance = int(generator.integers(max(1, len(some)))), generator.random()
        return some[number] if some and chance < share else None

    def _mixed(self, samples: Samples, noise: Recording, snr_db: float, generator: np.random.Generator) -> Samples:
        """Speech with noise from a random place on, repeated if it is too short."""
        mixer = AudioMixer(samples, self.rate_hz)
        mixer.add_to_mix(self._some_of(noise, samples.shape[1], generator), snr=snr_db)
        return np.asarray(mixer.mixed_audio)[:, : samples.shape[1]]

    def _some_of(self, noise: Recording, length: int, generator: np.random.Generator) -> Samples:
        """Noise from a random place on; only as much is read as gives the samples that reading all of it would give."""
        what, cure = f"noise `{noise.sources[0].source}`", "mend it, or take it away"
        start = None
        if noise.sampling_rate == self.rate_hz and noise.sources[0].source.lower().endswith(EXACT):
            start = int(generator.integers(noise.num_samples))
            if start + length <= noise.num_samples:
                return read_samples(noise, what, part_s=(start / self.rate_hz, length / self.rate_hz), cure=cure)
        loud = read_samples(noise.resample(self.rate_hz), what, cure=cure)
        start = int(generator.integers(loud.shape[1])) if start is None else start
        return np.take(loud, np.arange(start, start + length), axis=1, mode="wrap")


class Masking:
    """Lhotse's SpecAugment (arXiv:1904.08779) on the features of one utterance, before a batch pads them.

    Where the features themselves are padded to the model's window (`features.pad_to_window`), that is part of the utterance.

    Args:
        settings: Of training; their masks are as long as a share of the utterance, Lhotse's as a number of frames.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def __call__(self, cut: MonoCut, features_TF: Tensor, batch: int) -> Tensor:
        """The features of a cut (T,F) as they are learned from in a batch.

        Args:
            batch: Number of the batch, which the draw depends on.
        """
        settings, (frames, bins) = self.settings, features_TF.shape
        # Lhotse draws widths below the size that it is given, and cannot do without time masks: at size 1 they are of no width.
        masks = max(1, settings.time_masks)
        size = 1 + (int(settings.time_mask_share * frames) if settings.time_masks else 0)
        augment = SpecAugment(
            time_warp_factor=settings.time_warp_frames,
            num_feature_masks=settings.frequency_masks,
            features_mask_size=1 + min(settings.frequency_mask_bins, bins),
            num_frame_masks=masks,
            frames_mask_size=size,
            max_frames_mask_fraction=(masks * size + 0.5) / frames,  # all masks at their longest, whatever is lost in rounding
            p=1.0,
        )
        with _seeded(drawn_for(settings.seed, batch, cut), numpy=settings.time_warp_frames > 0):
            augmented: Tensor = augment(features_TF[None])[0]
        return augmented


def drawn_for(seed: int, batch: int, cut: MonoCut) -> list[int]:
    """What seeds the draws of a cut in a batch."""
    return [seed, batch, zlib.crc32(cut.id.encode())]


@contextmanager
def _seeded(by: list[int], numpy: bool) -> Iterator[None]:
    """Within it, the generators that all of Python, torch and numpy share draw anew from a seed; then they go on as if nothing had been.

    Args:
        numpy: Whether numpy's is among them; it takes as long as all else here, and only warping draws from it.
    """
    before = random.getstate(), torch.get_rng_state(), np.random.get_state() if numpy else None
    seed = int(np.random.SeedSequence(by).generate_state(1)[0])
    random.seed(seed)
    if numpy:
        np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which is for GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if before[2] is not None:
            np.random.set_state(before[2])


def sounds(folder: Path | None, setting: str) -> list[Recording]:
    """All audio files in a folder and below; only their headers are read, as every process of a run does this at its start.

    Raises:
        DataError: If there is none, or one is no sound audio of one channel.
    """
    if folder is None:
        return []
    try:
        files = files_below(folder, refuse) if is_dir(folder) else []
        paths = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        if not paths:
            raise DataError(f"no audio in `{folder}`; known are {', '.join(AUDIO_SUFFIXES)}", "name a folder with audio files")
        return [recording_of(path, str(path.relative_to(folder))) for path in paths]
    except DataError as error:
        raise DataError(f"`{setting}`: {error.message}", error.hint) from error
