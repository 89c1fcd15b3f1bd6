"""Augmentation: the same draw gives the same audio, each part does what it says, and narrowband stays narrowband."""

import random

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.dataset import SpecAugment

from smoe_cli import augmentation, checkpoint, pipeline
from smoe_cli.augmentation import Augmentation, Masking
from smoe_cli.errors import CheckpointError, ConfigError, DataError
from smoe_cli.recipe import load_config
from smoe_cli.tags import Bandwidth
from smoe_cli.train_settings import AugmentSettings, TrainSettings
from tests.test_training import recipe, write_corpus

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One noise shorter and one longer than the speech, one room with an echo, and a cut."""
    root = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for name, seconds in (("short", 0.3), ("long", 4.0)):
        (root / "noise").mkdir(exist_ok=True)
        soundfile.write(root / "noise" / f"{name}.flac", 0.1 * generator.standard_normal(int(RATE * seconds)), RATE)
    room = np.zeros(4000)
    room[[0, 1600]] = 0.9, 0.5
    (root / "rooms").mkdir()
    soundfile.write(root / "rooms" / "hall.wav", room, RATE)
    t = np.arange(2 * RATE) / RATE
    soundfile.write(root / "a.flac", 0.3 * np.sin(2 * np.pi * 500 * t) * (t < 1), RATE)
    return root


@pytest.fixture
def cut(folder):
    recording = Recording.from_file(folder / "a.flac", recording_id="a")
    return MonoCut("a-transcribe-en-wb", 0.0, 2.0, 0, recording=recording)


def augmented(cut, band=Bandwidth.WB, batch=0, seed=0, **settings):
    return Augmentation(AugmentSettings(**settings), RATE, seed)(cut, cut.load_audio(), band, batch)


def spectrum_db(samples):
    power = np.abs(np.fft.rfft(samples[0] * np.hanning(samples.shape[1]))) ** 2
    return 10 * np.log10(power + 1e-20), np.fft.rfftfreq(samples.shape[1], 1 / RATE)


def test_nothing_asked_for_is_nothing_done(cut):
    np.testing.assert_array_equal(augmented(cut), cut.load_audio())


def test_a_draw_depends_on_seed_batch_and_cut_alone(cut, folder):
    every = {"speeds": [0.9, 1.0, 1.1], "noise": folder / "noise", "noise_share": 0.7, "rooms": folder / "rooms", "rooms_share": 0.5}
    first = [augmented(cut, batch=batch, **every) for batch in range(12)]
    again = [augmented(cut, batch=batch, **every) for batch in reversed(range(12))][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 8
    assert augmented(cut, batch=1, seed=1, **every).tobytes() != first[1].tobytes()
    other = MonoCut("b", 0.0, 2.0, 0, recording=cut.recording)
    assert any(augmented(other, batch=batch, **every).tobytes() != one.tobytes() for batch, one in enumerate(first))


@pytest.mark.parametrize(("suffix", "read_whole"), [("wav", 4), ("flac", 4), ("ogg", 40)])
def test_as_much_noise_is_read_as_is_heard_and_it_is_the_same_noise(tmp_path, cut, monkeypatch, suffix, read_whole):
    """Half a minute of noise for two seconds of speech. All of it is read where its end goes on with its beginning, and of a lossy file,
    whose middle depends on what comes before."""
    soundfile.write(tmp_path / f"long.{suffix}", 0.1 * np.random.default_rng(1).standard_normal(30 * RATE), RATE)
    settings = {"noise": tmp_path, "noise_share": 1.0, "snr_db": (5.0, 5.0)}
    lengths, read = [], augmentation.read_samples
    monkeypatch.setattr(augmentation, "read_samples", lambda *a, **k: (lengths.append((got := read(*a, **k)).shape[1]), got)[1])
    parts = [augmented(cut, batch=batch, **settings) for batch in range(40)]
    assert (lengths.count(30 * RATE), lengths.count(2 * RATE)) == (read_whole, 40 - read_whole)
    monkeypatch.setattr(augmentation, "EXACT", ())
    whole = [augmented(cut, batch=batch, **settings) for batch in range(40)]
    assert all(np.array_equal(one, other) for one, other in zip(parts, whole, strict=True))


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_moves_length_and_pitch_together(cut, speed):
    samples = augmented(cut, speeds=[speed])
    assert samples.shape[1] == pytest.approx(2 * RATE / speed, abs=2)
    level, hertz = spectrum_db(samples)
    assert hertz[level.argmax()] == pytest.approx(500 * speed, abs=2)


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_noise_is_as_loud_as_it_says(cut, folder, snr):
    for batch in range(6):
        samples = augmented(cut, batch=batch, noise=folder / "noise", noise_share=1.0, snr_db=(snr, snr))
        assert samples.shape == (1, 2 * RATE)
        noise = samples - cut.load_audio()
        found = 10 * np.log10((cut.load_audio() ** 2).mean() / (noise**2).mean())
        assert found == pytest.approx(snr, abs=0.5)


def test_a_room_gives_the_echo_that_it_has(cut, folder):
    samples = augmented(cut, rooms=folder / "rooms", rooms_share=1.0)
    assert samples.shape == (1, 2 * RATE)
    after = samples[0, RATE + 100 : RATE + 1500]  # the tone ends after a second; its echo comes a tenth later
    assert np.abs(after).max() > 0.2 * np.abs(samples[0, :RATE]).max()


def test_narrowband_stays_narrowband(cut, folder):
    every = {"speeds": [1.1], "noise": folder / "noise", "noise_share": 1.0, "snr_db": (0.0, 0.0)}
    narrow, wide = (spectrum_db(augmented(cut, band, **every)) for band in (Bandwidth.NB, Bandwidth.WB))

    def above(level_hertz, edge):
        level, hertz = level_hertz
        return level[hertz > edge].mean()

    assert above(wide, 5500) > above(narrow, 5500) + 40
    assert abs(narrow[0][(narrow[1] > 1000) & (narrow[1] < 3000)].mean() - wide[0][(wide[1] > 1000) & (wide[1] < 3000)].mean()) < 1


def test_shares_are_kept(cut, folder):
    augmentation = Augmentation(AugmentSettings(noise=folder / "noise", noise_share=0.3), RATE, 0)
    samples = cut.load_audio()
    changed = sum(augmentation(cut, samples, Bandwidth.WB, batch) is not samples for batch in range(400))
    same = sum(np.array_equal(augmentation(cut, samples, Bandwidth.WB, batch), samples) for batch in range(400))
    assert changed and 0.6 < same / 400 < 0.8


def masked(cut, features, batch=0, **settings):
    return Masking(TrainSettings(**{"time_masks": 0, "frequency_masks": 0} | settings))(cut, features, batch)


def test_masks_are_within_their_limits_and_reach_them(cut):
    """The value of a mask is the mean, which no other value equals."""
    features = torch.rand(100, 80) + torch.arange(2.0).repeat(40)
    blank = [(masked(cut, features, batch, time_masks=1, time_mask_share=0.2) == features.mean()).all(1).sum() for batch in range(300)]
    assert {int(width) for width in blank} == set(range(21))
    blank = [
        (masked(cut, features, batch, frequency_masks=1, frequency_mask_bins=10) == features.mean()).all(0).sum() for batch in range(300)
    ]
    assert {int(width) for width in blank} == set(range(11))
    for batch in range(100):
        both = masked(cut, features, batch, time_masks=3, time_mask_share=0.1, frequency_masks=2, frequency_mask_bins=30) != features
        assert both.all(1).sum() <= 30
        assert torch.equal(both, both.all(1)[:, None] | both.all(0)[None])
    assert torch.equal(masked(cut, features), features)
    assert all(
        masked(cut, torch.ones(frames, 80), time_masks=4, time_mask_share=1.0, time_warp_frames=80).shape[0] == frames
        for frames in (1, 2, 170)
    )


def test_masks_are_those_of_lhotse(cut):
    """With the generators as they are seeded for a cut, Lhotse's own transform gives the same."""
    features, seed = torch.rand(400, 80), int(np.random.SeedSequence(augmentation.drawn_for(7, 3, cut)).generate_state(1)[0])
    np.random.seed(seed)
    torch.manual_seed(seed)
    theirs = SpecAugment(80, 2, 28, 2, 41, 0.25, p=1.0)(features[None])[0]
    settings = {"time_warp_frames": 80, "time_masks": 2, "frequency_masks": 2, "seed": 7}
    assert torch.equal(masked(cut, features, 3, **settings), theirs)
    assert not torch.equal(masked(cut, features, 4, **settings), theirs)
    warped = masked(cut, features, 3, time_warp_frames=80)
    assert not torch.equal(warped, features)


def test_masks_move_no_generator_that_others_draw_from(cut):
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    masked(cut, torch.rand(400, 80, generator=torch.Generator().manual_seed(0)), time_masks=2, frequency_masks=2, time_warp_frames=80)
    assert random.getstate() == before[0]
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


def trained(tmp_path, name, sounds, **train):
    if not (tmp_path / "corpus").exists():
        write_corpus(tmp_path / "corpus")
    augment = {"speeds": [0.9, 1.0, 1.1], "noise": sounds / "noise", "noise_share": 0.5}
    masks = {"time_warp_frames": 10, "time_masks": 2}
    config = recipe(tmp_path / "corpus", tmp_path / name, train={"max_steps": 8, "validate_every": 4, "augment": augment} | masks | train)
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


@pytest.mark.parametrize("harm", ["a speed", "a rate"])
def test_what_no_memory_could_resample_is_refused_at_the_start(folder, tmp_path, harm):
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "a.wav", 0.1 * np.sin(np.arange(4000)), 44101 if harm == "a rate" else 44100)
    settings = AugmentSettings(noise=tmp_path / "noise", noise_share=0.5, speeds=[1.0, 0.9123] if harm == "a speed" else [0.9, 1.05, 1.1])
    with pytest.raises(DataError, match="it would take a filter of") as caught:
        Augmentation(settings, RATE, 0)
    assert caught.value.hint


@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_with_the_same_augmentation(folder, tmp_path, monkeypatch, workers):
    whole = trained(tmp_path, "whole", folder, workers=workers)
    pipeline.train(whole)
    parts = trained(tmp_path, "parts", folder, workers=workers, max_steps=4, schedule="inverse-sqrt")
    straight = trained(tmp_path, "straight", folder, workers=0, schedule="inverse-sqrt")
    pipeline.train(straight)
    pipeline.train(parts)
    pipeline.train(parts.model_copy(update={"train": parts.train.model_copy(update={"max_steps": 8})}))
    models = [checkpoint.load(config.exp_dir / "model" / "final").model.state_dict() for config in (parts, straight)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    plain = trained(tmp_path, "plain", folder, schedule="inverse-sqrt", augment={})
    pipeline.train(plain)
    other = checkpoint.load(plain.exp_dir / "model" / "final").model.state_dict()
    assert any(not torch.equal(models[0][name], other[name]) for name in other)


def test_a_checkpoint_names_the_sounds_but_not_where_they_lay(folder, tmp_path):
    config = trained(tmp_path, "exp", folder, max_steps=1)
    pipeline.train(config)
    saved = checkpoint.load(config.exp_dir / "model" / "final").config.train.augment
    assert (str(saved.noise), saved.noise_share, saved.speeds) == ("noise", 0.5, [0.9, 1.0, 1.1])
    pipeline.train(config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 2})}))
    louder = config.train.augment.model_copy(update={"snr_db": (0.0, 1.0)})
    with pytest.raises(CheckpointError, match=r"train\.augment"):
        pipeline.train(config.model_copy(update={"train": config.train.model_copy(update={"augment": louder, "max_steps": 3})}))


def test_folders_start_from_the_recipe_and_what_is_wrong_is_named(folder, tmp_path, cut):
    text = "tasks: {transcribe: {languages: [en]}}\ntrain: {augment: {noise: sounds, noise_share: 0.5}}\n"
    (tmp_path / "smoe.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "smoe.yaml").train.augment.noise == tmp_path / "sounds"
    with pytest.raises(DataError, match=r"`train.augment.noise`: no audio in `.*sounds`"):
        augmented(cut, noise=tmp_path / "sounds", noise_share=0.5)
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "s.wav", np.zeros((100, 2)), RATE)
    with pytest.raises(DataError, match="has 2 channels"):
        augmented(cut, noise=tmp_path / "sounds", noise_share=0.5)
    for wrong, problem in (
        ("noise_share: 0.5", "need each other"),
        ("noise: sounds", "need each other"),
        ("snr_db: [9, 1]", "the lowest, 9, is above the highest, 1"),
        ("speeds: []", "at least 1 item"),
        ("speeds: [3]", "less than or equal to 2"),
    ):
        (tmp_path / "smoe.yaml").write_text(text.replace("noise: sounds, noise_share: 0.5", wrong), encoding="utf-8")
        with pytest.raises(ConfigError, match=problem):
            load_config(tmp_path / "smoe.yaml")
