"""Laws of the bandwidth estimate: what it must survive, and what it does to the tags."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, Recording
from lhotse.augmentation import Resample

from smoe_cli import pipeline
from smoe_cli.band_check import estimated
from smoe_cli.bandwidth import Estimate, contradicts, estimate_bandwidth
from smoe_cli.config import Config
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.cuts import Tags, read_cuts, tags_of
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from smoe_cli.listening import Listener, spectrum_of
from smoe_cli.tags import Bandwidth
from smoe_cli.telephone import TelephoneLine, to_int16
from tests.conftest import tiny_config
from tests.test_house import ROOT

RATE = 16000


def speech(seconds: float = 2.0, fricatives: bool = True, seed: int = 0) -> np.ndarray:
    """Syllables: harmonics up to 3.4 kHz that swell and fade, and between them noise up to 8 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * time + k * k) / k for k in range(1, 25)) * np.maximum(0, np.sin(2 * np.pi * 2 * time)) ** 2
    hiss = np.diff(generator.normal(size=len(time) + 1)) * np.maximum(0, -np.sin(2 * np.pi * 2 * time)) ** 8
    room = generator.normal(size=len(time)) * 1e-4
    return (0.1 * voice + (0.03 * hiss if fricatives else 0) + room).astype(np.float32)


def by_telephone(samples: np.ndarray, codec: str = "plain", band: bool = False) -> np.ndarray:
    low = Resample(RATE, 8000)(samples[None])
    return np.asarray(Resample(8000, RATE)(TelephoneLine(codec, band)(low, RATE))[0])


def rounded(samples: np.ndarray) -> np.ndarray:
    return to_int16(samples) / np.float32(2**15)


@pytest.mark.parametrize("codec", ["plain", "mulaw", "alaw", "gsm"])
@pytest.mark.parametrize("band", [False, True])
def test_telephone_speech_at_16_khz_is_narrowband_whatever_its_line(codec, band):
    found = estimate_bandwidth(rounded(by_telephone(speech(), codec, band)), RATE)
    assert (found.band, found.reliable) == (Bandwidth.NB, True)
    assert 3000 <= found.bandwidth_hz <= 5500


def test_wideband_speech_is_wideband():
    assert estimate_bandwidth(speech(), RATE) == (8000, Bandwidth.WB, 1.0)


def test_level_changes_nothing_until_rounding_hides_the_top_which_is_then_said():
    for level in (1.0, 0.1, 0.01):
        assert estimate_bandwidth(rounded(level * speech()), RATE).band is Bandwidth.WB
        assert estimate_bandwidth(rounded(level * by_telephone(speech())), RATE).band is Bandwidth.NB
    assert not estimate_bandwidth(rounded(0.0005 * speech()), RATE).reliable


def test_silence_around_speech_changes_nothing():
    silence = np.zeros(5 * RATE, dtype=np.float32)
    for samples, band in ((speech(), Bandwidth.WB), (by_telephone(speech()), Bandwidth.NB)):
        assert estimate_bandwidth(rounded(np.concatenate((silence, samples, silence))), RATE).band is band


def test_noise_behind_telephone_speech_does_not_make_it_wide():
    noise = np.random.default_rng(1).normal(size=2 * RATE).astype(np.float32)
    heard = by_telephone(speech())
    assert estimate_bandwidth(heard + noise * heard.std() / 30, RATE).band is Bandwidth.NB


def test_noise_alone_is_as_wide_as_it_is():
    noise = 0.1 * np.random.default_rng(1).normal(size=2 * RATE).astype(np.float32)
    assert estimate_bandwidth(noise, RATE)[:2] == (8000, Bandwidth.WB)
    assert estimate_bandwidth(by_telephone(noise), RATE).band is Bandwidth.NB


def test_images_of_a_poor_resampler_are_no_bandwidth():
    low = np.asarray(Resample(RATE, 8000)(speech()[None])[0])
    for poor in (np.repeat(low, 2), np.interp(np.arange(2 * len(low)) / 2, np.arange(len(low)), low).astype(np.float32)):
        assert estimate_bandwidth(poor, RATE).band is Bandwidth.NB


def test_one_fricative_tells_wideband_speech():
    vowels = speech(4.0, fricatives=False)
    vowels[RATE : RATE + 3200] = speech()[RATE // 4 : RATE // 4 + 3200]
    assert estimate_bandwidth(vowels, RATE).band is Bandwidth.WB


def test_a_click_tells_nothing():
    heard = by_telephone(speech())
    heard[RATE + 100] += 0.5
    assert estimate_bandwidth(heard, RATE).band is Bandwidth.NB


@pytest.mark.parametrize("samples", [0, 1, 100, 511, 512, 513, 1600])
def test_the_shortest_audio_has_an_estimate_that_nobody_relies_on(samples):
    assert not estimate_bandwidth(speech()[:samples], RATE).reliable


def test_silence_has_no_bandwidth():
    assert estimate_bandwidth(np.zeros(RATE, dtype=np.float32), RATE) == (0, Bandwidth.WB, 0.0)


@pytest.mark.parametrize("rate", [11025, 22050, 44100, 48000])
def test_any_rate_is_judged_alike(rate):
    telephone = np.asarray(Resample(RATE, rate)(by_telephone(speech(), "mulaw", True)[None])[0])
    assert estimate_bandwidth(telephone, rate).band is Bandwidth.NB
    if rate > RATE:
        assert estimate_bandwidth(np.asarray(Resample(RATE, rate)(speech()[None])[0]), rate).band is Bandwidth.WB


def test_where_no_band_above_telephone_speech_exists_nothing_is_concluded():
    noise = 0.1 * np.random.default_rng(1).normal(size=2 * 11025).astype(np.float32)
    for samples in (noise, np.asarray(Resample(RATE, 11025)(by_telephone(speech())[None])[0])):
        found = estimate_bandwidth(samples, 11025)
        assert (found.confidence, found.reliable) == (0.0, False)


def test_a_rate_without_such_a_band_stays_an_error(tmp_path):
    config = recipe(tmp_path / "c", bandwidth="auto")
    for number in range(4):
        noise = 0.1 * np.random.default_rng(number).normal(size=11025).astype(np.float32)
        soundfile.write(tmp_path / "c" / f"a{number}.flac", noise, 11025)
    with pytest.raises(DataError, match="11025 Hz: neither"):
        pipeline.prepare(config)


def test_of_many_frames_a_bounded_number_tells_the_same(monkeypatch):
    monkeypatch.setattr("smoe_cli.bandwidth.MOST_FRAMES", 200)
    for samples, band in ((speech(30.0), Bandwidth.WB), (by_telephone(speech(30.0)), Bandwidth.NB)):
        assert estimate_bandwidth(samples, RATE) == estimate_bandwidth([samples[: 7 * RATE], samples[7 * RATE :]], RATE)
        assert estimate_bandwidth(samples, RATE)[1:] == (band, 1.0)
    tracemalloc.start()
    estimate_bandwidth(np.zeros(600 * RATE, dtype=np.float32), RATE)
    assert tracemalloc.get_traced_memory()[1] < 80e6, "600 s took 330 MB"
    tracemalloc.stop()


def recording_of(folder: Path, samples: np.ndarray) -> Recording:
    soundfile.write(folder / "long.flac", samples, RATE)
    return Recording.from_file(folder / "long.flac")


def test_of_a_long_recording_parts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("smoe_cli.listening.WHOLE_S", 20.0)
    monkeypatch.setattr("smoe_cli.listening.PARTS", 4)
    monkeypatch.setattr("smoe_cli.listening.PART_S", 2.0)
    loaded = []
    load = Recording.load_audio
    monkeypatch.setattr(Recording, "load_audio", lambda *args, **kwargs: (loaded.append(load(*args, **kwargs)), loaded[-1])[1])
    for samples, band in ((speech(30.0), Bandwidth.WB), (by_telephone(speech(30.0)), Bandwidth.NB)):
        loaded.clear()
        assert spectrum_of(recording_of(tmp_path, samples), 0)[1:] == (band, 1.0)
        assert [part.shape for part in loaded] == 4 * [(1, 2 * RATE)]
    np.testing.assert_array_equal(loaded[-1], soundfile.read(tmp_path / "long.flac", dtype="float32")[0][None, 28 * RATE :])


def test_a_channel_is_estimated_once_in_a_run_and_after_an_interruption_not_again(tmp_path, monkeypatch):
    recording = recording_of(tmp_path, speech())
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    bad = Recording("b", [AudioSource("file", [0], str(tmp_path / "bad.wav"))], RATE, 9, 9 / RATE)
    with ThreadPoolExecutor(1) as pool:
        listener = Listener(pool, 1, tmp_path / "heard.jsonl")
        good, failed, again = listener.estimate([(recording, 0), (bad, 0), (recording, 0)])
        assert good == again == (8000, Bandwidth.WB, 1.0)
        assert "cannot read channel 0 of audio" in failed.message
        monkeypatch.setattr("smoe_cli.listening.spectrum_of", lambda *args: pytest.fail("it was estimated again"))
        for one in (listener, Listener(pool, 1, tmp_path / "heard.jsonl")):
            assert list(one.estimate([(recording, 0)])) == [good]
            utterance = Utterance("u", recording, "train", "", "en", "one")
            (said,) = estimated([utterance], Work("c", tmp_path, tmp_path), one)
            assert said.estimate == good
            assert one.remembered == 0, "a recording that was estimated was not read to its end"
            one.forget()


def test_the_estimates_of_many_channels_take_little_memory(tmp_path, monkeypatch):
    def said(recording: Recording, channel: int) -> Estimate:
        return Estimate(500 * (channel % 4), Bandwidth.WB, (channel % 25) / 100)

    monkeypatch.setattr("smoe_cli.listening.spectrum_of", said)
    recording = Recording("r", [AudioSource("file", [0], str(tmp_path / "a.wav"))], RATE, RATE, 1.0)
    channels = [(recording, channel) for channel in range(2000)]
    with ThreadPoolExecutor(1) as pool:
        # Estimated, which also fills caches, then recalled: what is freed with the listener was its own.
        for _ in range(2):
            tracemalloc.start()
            listener = Listener(pool, 1, tmp_path / "heard.jsonl")
            assert all(one == said(*channel) for one, channel in zip(listener.estimate(channels), channels, strict=True))
            whole = tracemalloc.get_traced_memory()[0]
            del listener
            assert whole - tracemalloc.get_traced_memory()[0] < 120 * len(channels)
            tracemalloc.stop()


def test_what_was_heard_is_written_down_as_it_comes(tmp_path):
    """Whoever is stopped at the seventeenth recording has sixteen."""
    recording = recording_of(tmp_path, speech())
    some = [replace(recording, id=str(number), sampling_rate=RATE, duration=2.0 + number / 1e6) for number in range(40)]

    class Stopped(ThreadPoolExecutor):
        def map(self, function, parts):
            yield function(next(iter(parts)))
            raise KeyboardInterrupt

    with Stopped(1) as pool, pytest.raises(KeyboardInterrupt):
        Listener(pool, 1, tmp_path / "heard.jsonl").hear(some)
    assert Listener(pool, 1, tmp_path / "heard.jsonl").remembered == 16


@pytest.mark.parametrize(("recordings", "readers", "sizes"), [(3, 4, [1, 1, 1]), (40, 1, [16, 16, 8]), (40, 4, 8 * [5]), (9, 2, [3, 3, 3])])
def test_few_recordings_are_shared_among_all_who_read(tmp_path, recordings, readers, sizes):
    class Pool(ThreadPoolExecutor):
        def map(self, function, parts):
            asked.append([len(part) for part in parts])
            return super().map(function, parts)

    asked: list[list[int]] = []
    some = [replace(recording_of(tmp_path, speech(0.1)), duration=0.1 + number / 1e6) for number in range(recordings)]
    with Pool(2) as pool:
        listener = Listener(pool, readers, tmp_path / "heard.jsonl")
        listener.hear(some)
        list(listener.estimate([(one, 0) for one in some]))
    assert asked == [sizes, sizes]


def test_at_8_khz_there_is_nothing_to_doubt():
    assert estimate_bandwidth(speech()[::2], 8000)[1:] == (Bandwidth.NB, 1.0)


@pytest.mark.parametrize("wrong", [np.zeros((1, 9), np.float32), np.array([np.nan], np.float32)])
def test_what_is_not_one_finite_channel_is_refused(wrong):
    with pytest.raises(ValueError, match="finite samples of one channel"):
        estimate_bandwidth(wrong, RATE)


def recipe(folder: Path, **data: object) -> Config:
    """Four recordings at 16 kHz: two are telephone speech."""
    folder.mkdir(exist_ok=True)
    rows = ["id\tpath\tsplit\tspeaker\ttranscript\tde"]
    for number in range(4):
        samples = speech(seed=number) if number < 2 else by_telephone(speech(seed=number), "alaw", True)
        soundfile.write(folder / f"a{number}.flac", samples, RATE)
        rows.append(f"a{number}\ta{number}.flac\t{'dev' if number % 2 else 'train'}\ts{number}\tone\teins")
    (folder / "table.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    table = {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, **data.pop("table", {})}
    return tiny_config(folder / "exp", data={"root": str(folder), "corpora": {"calls": table}, **data})


@pytest.mark.parametrize("how", [{"bandwidth": "auto"}, {"table": {"bandwidth": "auto"}}])
def test_16_khz_files_with_telephone_speech_are_found_tagged_and_reported(tmp_path, how):
    config = recipe(tmp_path / "c", nb_downsample=True, **how)
    report = pipeline.prepare(config)
    assert [(row.known_by, row.known, row.estimated, row.tagged, row.utterances) for row in report.bandwidths] == [
        ("16000 Hz", "wb", "nb", "nb", 2),
        ("16000 Hz", "wb", "wb", "wb", 2),
    ]
    assert [[Path(name).name for name in row.disagreeing] for row in report.bandwidths] == [["a2.flac", "a3.flac"], []]
    assert any(
        "2 utterances of `calls` are wb by a sampling rate of 16000 Hz, but nb by their spectrum, e.g. `a2`" in n for n in report.notes
    )
    cuts = [cut for split in ("train", "dev") for cut in read_cuts(Layout.of(config).cuts(split))]
    bands: dict[str, set[str]] = {}
    for cut in cuts:
        tags = tags_of(cut)
        bands.setdefault(tags.utterance, set()).add(tags.bandwidth)
        native = tags.bandwidth == "wb" or tags.utterance in ("calls/a2", "calls/a3")
        # A twin was not measured: it is narrowband because it was made so.
        assert (tags.bandwidth_hz is not None, tags.bandwidth_confidence is not None) == (native, native)
    assert bands == {"calls/a0": {"nb", "wb"}, "calls/a1": {"nb", "wb"}, "calls/a2": {"nb"}, "calls/a3": {"nb"}}


def test_the_users_word_stays_and_is_contradicted_aloud(tmp_path):
    report = pipeline.prepare(recipe(tmp_path / "c", bandwidth="auto", table={"bandwidth": "wb"}))
    assert {row.bandwidth for row in report.rows} == {"wb"}
    assert any("2 utterances of `calls` are wb by `data.corpora.calls.bandwidth`, but nb" in note for note in report.notes)
    again = pipeline.validate(None, cuts=[report.cuts_dir / f"cuts.{split}.jsonl.gz" for split in ("train", "dev")], audio=False)
    for findings in (report.findings, again.findings):
        found = [finding for finding in findings if finding.check == "bandwidth"]
        assert [(finding.severity, finding.cuts, finding.where.split("`")[3]) for finding in found] == [
            ("note", 2, f"calls-{name}-transcribe-en-wb") for name in ("a2", "a3")
        ]
        assert all(re.fullmatch(r"is tagged `wb`, but is `nb` by its spectrum: \d+ Hz", finding.message) for finding in found)


@pytest.mark.parametrize("samples", [speech(), by_telephone(speech(), "alaw", True), by_telephone(speech(), "plain", False)])
@pytest.mark.parametrize("rate", [8000, RATE])
def test_what_a_cut_keeps_of_an_estimate_is_the_estimate(samples, rate):
    said = estimate_bandwidth(samples, rate)
    assert said.reliable and Estimate.kept(said.bandwidth_hz, said.confidence) == said


def test_only_a_reliable_estimate_contradicts():
    assert contradicts(Estimate.kept(4000, 1.0).says, "wb") and contradicts(Estimate.kept(8000, 1.0).says, "nb")
    assert contradicts(Estimate.kept(4000, 1.0).says, "neither")
    assert not contradicts(Estimate.kept(4000, 1.0).says, "nb") and not contradicts(Estimate.kept(4000, 0.3).says, "wb")


def test_without_auto_nothing_is_estimated(tmp_path):
    report = pipeline.prepare(recipe(tmp_path / "c"))
    assert report.bandwidths == []
    assert {row.bandwidth for row in report.rows} == {"wb"}


def test_a_rate_between_the_bands_is_settled_only_by_telephone_speech(tmp_path):
    config = recipe(tmp_path / "c", bandwidth="auto")
    for number in range(4):
        path = tmp_path / "c" / f"a{number}.flac"
        samples = by_telephone(speech(), "mulaw", True)
        soundfile.write(path, np.asarray(Resample(RATE, 12000)(samples[None])[0]), 12000)
    assert {row.tagged for row in pipeline.prepare(config).bandwidths} == {"nb"}
    soundfile.write(path, np.asarray(Resample(RATE, 12000)(speech()[None])[0]), 12000)
    with pytest.raises(DataError, match="12000 Hz: neither"):
        pipeline.prepare(config)


def test_manifests_from_before_the_estimate_are_still_read():
    fields = {"utterance": "c/a", "corpus": "c", "task": "t", "bandwidth": "nb", "source_lang": "en", "transcript": "", "subset": ""}
    old = Tags.model_validate({**fields, "references": [], "synthetic": False, "axes": {}})
    assert (old.line, old.bandwidth_hz, old.bandwidth_confidence) == (None, None, None)


def test_the_benchmark_finds_real_recordings_right(real_speech):
    """A small part of the table in docs/concepts/bandwidth.md."""
    import json

    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bandwidth.py", "--files", "6", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SMOE_DATA": str(real_speech)},
        capture_output=True,
        check=True,
    )
    rows = json.loads(done.stdout)
    assert len(rows) >= 26
    for row in rows:
        assert row["nb"] + row["wb"] == row["clips"] > 0
        if not row["set"].startswith("hard") and "under 1 s" not in row["set"]:
            assert row["right_percent"] == 100.0, row


def test_a_model_at_8_khz_hears_as_it_is_what_was_telephone_speech_in_16_khz_files(tmp_path):
    tree = recipe(tmp_path / "c", nb_downsample=True, bandwidth="auto", nb_simulation={"codecs": ["gsm"]}).model_dump()
    report = pipeline.prepare(Config.model_validate(tree | {"features": {"sample_rate_hz": 8000}}))
    assert report.lines == {"gsm": 2}
    assert [(row.known, row.estimated, row.tagged) for row in report.bandwidths] == [("wb", "nb", "nb"), ("wb", "wb", "nb")]


@pytest.mark.parametrize("how", [{}, {"bandwidth": "auto"}])
def test_what_a_table_says_of_each_recording_is_its_tag_and_compared_with_its_spectrum(tmp_path, how):
    config = recipe(tmp_path / "c", table={"bandwidth_column": "line", "bandwidth": "wb"}, **how)
    table, said = tmp_path / "c" / "table.tsv", ["line", "wb", "nb", "nb", ""]
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("".join(f"{line}\t{one}\n" for line, one in zip(lines, said, strict=True)), encoding="utf-8")
    report = pipeline.prepare(config)
    cuts = [tags_of(cut) for split in ("train", "dev") for cut in read_cuts(Layout.of(config).cuts(split))]
    assert {(tags.utterance, tags.bandwidth) for tags in cuts} == {
        ("calls/a0", "wb"),
        ("calls/a1", "nb"),
        ("calls/a2", "nb"),
        ("calls/a3", "wb"),
    }
    assert [(row.known_by, row.known, row.estimated, row.tagged, row.example) for row in report.bandwidths] == (
        [
            ("corpus", "nb", "nb", "nb", "a2"),
            ("corpus", "nb", "wb", "nb", "a1"),
            ("corpus", "wb", "wb", "wb", "a0"),
            ("recipe", "wb", "nb", "wb", "a3"),
        ]
        if how
        else []
    )
    assert any("are nb by the corpus's own word, but wb by their spectrum, e.g. `a1`: tagged nb" in note for note in report.notes) == bool(
        how
    )
