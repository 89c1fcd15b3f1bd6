"""Laws of simulated telephone lines: the codecs are the standards', time and length stay, the same seed gives the same samples."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording

from smoe_cli import pipeline, telephone
from smoe_cli.config import Config, NarrowbandSettings
from smoe_cli.cuts import contradiction, read_cuts, route_of, tags_of
from smoe_cli.errors import ConfigError
from smoe_cli.layout import Layout
from smoe_cli.tags import Bandwidth, Route
from smoe_cli.telephone import SUBTYPES, TelephoneLine, line_of, telephone_band, through_codec
from tests.conftest import tiny_config
from tests.test_preparation import lhotse_config, spoken
from tests.test_training import write_corpus

LINES = [TelephoneLine(codec, band) for codec in SUBTYPES for band in (False, True)]
EVERY = {"codecs": list(SUBTYPES), "telephone_band": 0.5}


def g711_levels(law: str) -> tuple[np.ndarray, np.ndarray]:
    """(magnitudes that decoders put out, half the width of their intervals), in 16 bits: tables 1 and 2 of ITU-T G.711."""
    segment, step = np.divmod(np.arange(128), 16)
    if law == "mulaw":
        return (((2 * step + 33) << segment) - 33) * 4, 4 << segment
    linear = np.maximum(segment - 1, 0)
    return np.where(segment == 0, 16 * step + 8, (16 * step + 264) << linear), 8 << linear


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
def test_g711_puts_every_16_bit_sample_into_the_interval_of_the_standards_table(law):
    sent = np.arange(-(2**15), 2**15)
    received = np.rint(through_codec((sent / 2**15).astype(np.float32), SUBTYPES[law]) * 2**15).astype(int)
    levels, halves = g711_levels(law)
    found = np.searchsorted(levels, np.abs(received))
    np.testing.assert_array_equal(levels[found], np.abs(received))
    assert set(np.abs(received)) == set(levels), "all 128 levels are used"
    inside = np.abs(np.abs(sent) - np.abs(received)) <= halves[found]
    assert (inside | (np.abs(sent) > levels[-1])).all()
    # Small samples around zero may have either sign.
    assert (np.sign(sent) * np.sign(received) >= 0)[np.abs(sent) > halves[0] * 2].all()


def speech_like(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Noise in bursts: no two parts are alike, so that no shift and no repetition can hide."""
    generator = np.random.default_rng(seed)
    samples = generator.normal(size=round(seconds * rate)) * (1 + np.sin(np.arange(round(seconds * rate)) / rate * 20))
    return np.clip(0.05 * np.convolve(samples, np.hanning(12), "same"), -0.99, 0.99).astype(np.float32)


def recording_of(samples: np.ndarray, folder: Path, rate: int = 16000) -> Recording:
    soundfile.write(folder / "a.wav", samples, rate, subtype="FLOAT")
    return Recording.from_file(folder / "a.wav")


def through(recording: Recording, line: TelephoneLine) -> Recording:
    down = recording.resample(8000)
    down.transforms.append(line)
    return down.resample(16000)


def shift(sent: np.ndarray, received: np.ndarray) -> float:
    """Samples between two signals, to 1/64: the cross-spectrum, padded with zeros."""
    size = 1 << 17
    cross = np.fft.rfft(received, size) * np.conj(np.fft.rfft(sent, size))
    fine = np.fft.irfft(np.pad(cross, (0, 32 * size - size // 2)))
    place = int(np.argmax(fine))
    return min(place, len(fine) - place) / 64


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_line_shifts_nothing_by_a_fraction_of_a_sample(line, tmp_path):
    recording = recording_of(speech_like(2.0), tmp_path)
    sent, received = recording.resample(8000).resample(16000).load_audio()[0], through(recording, line).load_audio()[0]
    assert sent.shape == received.shape
    assert shift(sent, received) < 0.25
    # And where it starts is as right as where it ends: no part is another one's.
    for part in (slice(0, 8000), slice(-8000, None)):
        assert np.corrcoef(sent[part], received[part])[0, 1] > 0.5


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 320, 2401, 16001])
@pytest.mark.parametrize("line", LINES, ids=str)
def test_length_is_exact(line, samples):
    sent = np.full((1, samples), 0.1, dtype=np.float32)
    received = line(sent, 16000)
    assert received.shape == sent.shape
    assert received.dtype == np.float32


@pytest.mark.parametrize("line", LINES, ids=str)
def test_nothing_wraps_around_or_repeats(line):
    sent = np.zeros((1, 8000), dtype=np.float32)
    sent[0, 200:1800] = 3.0 * np.sin(np.arange(1600) * 0.5)
    received = line(sent, 16000)
    # Overdriven audio is clipped, never turned over; what follows it is as silent as before.
    # (GSM 06.10 predicts from what it decoded before, and takes a while to forget.)
    assert np.abs(received[0, 6000:]).max() < 0.01
    assert np.corrcoef(sent[0, 200:1800], received[0, 200:1800])[0, 1] > 0.7


@pytest.mark.parametrize("line", LINES, ids=str)
def test_energy_above_the_telephone_band_vanishes(line, tmp_path):
    received = through(recording_of(speech_like(2.0), tmp_path), line).load_audio()[0]
    power = np.abs(np.fft.rfft(received * np.hanning(len(received)))) ** 2
    hz = np.fft.rfftfreq(len(received), 1 / 16000)
    # From where Lhotse's resampling has faded out.
    assert power[hz > 5250].sum() < 1e-5 * power.sum()


def test_the_telephone_band_is_60_db_down_outside_and_flat_inside():
    impulse = np.zeros(1001, dtype=np.float32)
    impulse[500] = 1.0
    response_db = 20 * np.log10(np.abs(np.fft.rfft(telephone_band(impulse), 8000)) + 1e-9)
    assert response_db[:250].max() < -59
    assert response_db[3450:].max() < -59
    assert np.abs(response_db[350:3350]).max() < 0.1
    assert response_db[[300, 3400]] == pytest.approx([-6, -6], abs=0.1)


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus", per_word=10)


def recipe(corpus: Path, exp: Path, **data: object) -> Config:
    corpora = {"tones": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}}}
    return tiny_config(exp, data={"root": str(corpus), "corpora": corpora, "nb_downsample": True, **data})


def test_lines_survive_the_manifest_and_the_same_seed_gives_the_same_samples(corpus, tmp_path):
    def twins(exp: str, **changes: object) -> list[MonoCut]:
        config = recipe(corpus, tmp_path / exp, nb_simulation={**EVERY, **changes})
        pipeline.prepare(config)
        cuts = read_cuts(Layout.of(config).cuts("train"))
        return [cut for cut in cuts if route_of(cut).bandwidth is Bandwidth.NB]

    first, second, other = twins("a"), twins("b"), twins("c", seed=1)
    assert [cut.to_dict() for cut in first] == [cut.to_dict() for cut in second]
    assert [cut.recording.transforms for cut in first] != [cut.recording.transforms for cut in other]
    for cut, again in zip(first[:12], second[:12], strict=True):
        np.testing.assert_array_equal(cut.load_audio(), again.load_audio())
        (line,) = [step for step in cut.recording.transforms if isinstance(step, TelephoneLine)] or [TelephoneLine("plain", False)]
        assert str(line) == tags_of(cut).line
        assert cut.sampling_rate == 16000
    lines = {tags_of(cut).utterance: tags_of(cut).line for cut in first}
    assert len(set(lines.values())) >= 5
    assert all(len({tags_of(cut).line for cut in first if tags_of(cut).utterance == name}) == 1 for name in lines), "one line per utterance"


def test_the_report_counts_utterances_by_line(corpus, tmp_path):
    config = recipe(corpus, tmp_path / "exp", nb_simulation={"codecs": ["gsm"], "telephone_band": 1.0})
    report = pipeline.prepare(config)
    assert report.lines == {"gsm, 300-3400 Hz": 30}
    assert pipeline.prepare(recipe(corpus, tmp_path / "plain")).lines == {}


def test_written_lines_sound_as_lazy_ones(corpus, tmp_path):
    def twins(write: bool) -> dict[str, MonoCut]:
        config = recipe(corpus, tmp_path / str(write), nb_simulation={**EVERY, "write": write})
        pipeline.prepare(config)
        return {cut.id: cut for cut in CutSet.from_jsonl_lazy(Layout.of(config).cuts("train")) if tags_of(cut).bandwidth == "nb"}

    lazy, written = twins(False), twins(True)
    assert lazy.keys() == written.keys()
    for name in list(lazy)[:12]:
        assert tags_of(lazy[name]) == tags_of(written[name])
        assert lazy[name].duration == written[name].duration
        assert str(tmp_path / "True" / "audio") in written[name].recording.sources[0].source
        np.testing.assert_allclose(lazy[name].load_audio(), written[name].load_audio(), atol=2**-15)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("rate", [16000, 44100, 22050])
def test_a_twin_is_exactly_as_long_as_its_original(tmp_path, rate, write):
    rows = ["id\tpath\tsplit\ttranscript\tde"]
    for samples in (rate, rate + 1, rate + 2, 3 * rate // 2 + 7):
        soundfile.write(tmp_path / f"a{samples}.flac", speech_like(samples / rate, rate), rate)
        rows.append(f"a{samples}\ta{samples}.flac\ttrain\tone\teins")
    (tmp_path / "table.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = recipe(tmp_path, tmp_path / "exp", nb_simulation={"codecs": ["gsm"], "write": write})
    pipeline.prepare(config)
    found: dict[str, dict[str, np.ndarray]] = {}
    for cut in read_cuts(Layout.of(config).cuts("train")):
        found.setdefault(tags_of(cut).utterance, {})[tags_of(cut).bandwidth] = cut.load_audio()[0]
        assert cut.supervisions[0].duration == cut.duration
    assert len(found) == 4
    for bands in found.values():
        assert len(bands["nb"]) == len(bands["wb"])
        assert np.corrcoef(bands["nb"][-4000:], bands["wb"][-4000:])[0, 1] > 0.3


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_the_twin_of_a_part_begins_where_its_original_does_wherever_that_is(tmp_path, rate, write):
    (tmp_path / "corpus").mkdir()
    recording = recording_of(speech_like(4.0, rate), tmp_path / "corpus", rate)
    starts = (12345 / 16000, 20001 / 16000, 0.7654321, 1.999969, 2.000031)
    parts = [spoken(f"p{number}", recording, start_s, recording.duration - start_s) for number, start_s in enumerate(starts)]
    config = lhotse_config(tmp_path, parts, nb_downsample=True, nb_simulation={"codecs": ["mulaw"], "write": write})
    pipeline.prepare(config)
    found: dict[str, dict[str, MonoCut]] = {}
    for cut in read_cuts(Layout.of(config).cuts("train")):
        found.setdefault(tags_of(cut).utterance, {})[tags_of(cut).bandwidth] = cut
    assert len(found) == len(starts)
    for start_s, twins in zip(starts, found.values(), strict=True):
        wide, narrow = (twins[band].load_audio()[0] for band in ("wb", "nb"))
        assert len(wide) == len(narrow)
        assert shift(wide, narrow) <= 1 / 64
        assert abs(twins["wb"].start - start_s) <= 0.5 / 8000 + 1e-9
        assert twins["wb"].end <= recording.duration


def test_written_audio_is_named_by_what_it_was_made_from_and_made_once(corpus, tmp_path):
    def write(**changes: object) -> set[Path]:
        config = recipe(corpus, tmp_path / "exp", nb_simulation={"codecs": ["gsm", "alaw"], "write": True, **changes})
        pipeline.prepare(config)
        return {Path(c.recording.sources[0].source) for c in read_cuts(Layout.of(config).cuts("train")) if tags_of(c).bandwidth == "nb"}

    first = write()
    times = {path: path.stat().st_mtime_ns for path in first}
    assert write() == first
    other = write(seed=1)
    assert 0 < len(first & other) < len(first), "some utterances have the same line again"
    assert {path: path.stat().st_mtime_ns for path in first} == times, "nothing was written twice, nothing overwritten"
    source = next(corpus.glob("*.flac"))
    rewritten = soundfile.read(source)[0] / 2
    soundfile.write(source, rewritten, 16000)
    assert len(write() - first) in (0, 1), "one recording changed"


def test_an_id_that_is_too_long_for_a_file_is_cut_and_its_audio_stays_apart(tmp_path):
    """Ids that nobody gave are made from paths, which may be longer than the name of a file."""
    folder, rows = Path(*["sprecherin-ä" * 4] * 6), []
    for name in ("a", "b"):
        path = tmp_path / "corpus" / folder / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(1.0, seed=ord(name)), 16000)
        rows.append(json.dumps({"audio_filepath": str(folder / path.name), "text": "one", "german": "eins"}))
    (tmp_path / "corpus" / "train.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
    nemo = {"type": "nemo", "language": "en", "manifests": {"train": "train.json"}, "translations": {"de": "german"}}
    config = recipe(tmp_path / "corpus", tmp_path / "exp", corpora={"talks": nemo}, nb_simulation={"write": True})
    pipeline.prepare(config)
    cuts = [cut for cut in read_cuts(Layout.of(config).cuts("train")) if tags_of(cut).bandwidth == "nb"]
    written = {Path(cut.recording.sources[0].source) for cut in cuts}
    assert len(written) == len({path.read_bytes() for path in written}) == 2
    assert all(path.name.startswith("sprecherin-ä") for path in written)


def test_lines_are_written_by_those_who_read_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    def prepare(exp: str, jobs: int) -> dict[str, bytes]:
        config = recipe(corpus, tmp_path / exp / "exp", nb_simulation={**EVERY, "write": True})
        monkeypatch.chdir(tmp_path / exp)
        pipeline.prepare(config.model_copy(update={"exp_dir": Path("exp")}), jobs=jobs)
        return {str(path): path.read_bytes() for path in sorted(Path().rglob("*.flac")) + sorted(Path().rglob("cuts.*.gz"))}

    def here(utterance: object, *_: object) -> None:
        threads.append(threading.current_thread())

    for name in "abc":
        (tmp_path / name).mkdir()
    threads: list[threading.Thread] = []
    write = telephone._write
    monkeypatch.setattr(telephone, "_write", lambda *some: (here(*some), write(*some)))
    made = prepare("a", 4)
    assert len([name for name in made if name.endswith("flac")]) == 30 == len(threads)
    assert threading.main_thread() not in threads
    # Where they cannot, whoever asked does.
    monkeypatch.setattr("smoe_cli.gathering.write_lines_of", lambda some: None)
    again = prepare("b", 1)
    assert set(threads[30:]) == {threading.main_thread()}
    assert {name: content for name, content in again.items() if name.endswith("flac")} == {
        name: content for name, content in made.items() if name.endswith("flac")
    }


def test_the_audit_still_refutes_what_came_through_a_line(corpus, tmp_path):
    for write in (False, True):
        config = recipe(corpus, tmp_path / str(write), nb_simulation={"codecs": ["alaw"], "write": write})
        pipeline.prepare(config)
        for cut in read_cuts(Layout.of(config).cuts("dev")):
            assert contradiction(cut, route_of(cut)) is None
            said = contradiction(cut, Route("transcribe", "en", Bandwidth.WB))
            assert (said is not None) == (tags_of(cut).bandwidth == "nb")


def test_each_training_utterance_is_in_one_band_if_so_asked_and_all_others_in_both(corpus, tmp_path):
    config = recipe(corpus, tmp_path / "exp", nb_simulation={"pairing": "one"})
    pipeline.prepare(config)
    for split, bands in (("train", 1), ("dev", 2)):
        found: dict[str, set[str]] = {}
        for cut in read_cuts(Layout.of(config).cuts(split)):
            found.setdefault(tags_of(cut).utterance, set()).add(tags_of(cut).bandwidth)
        assert {len(some) for some in found.values()} == {bands}
    settings = NarrowbandSettings(pairing="one", codecs=["gsm", "gsm", "plain"], telephone_band=0.25)
    lines = Counter(str(line_of(settings, f"u{number}")) for number in range(2000))
    assert sum(count for line, count in lines.items() if "gsm" in line) == pytest.approx(1333, abs=70)
    assert sum(count for line, count in lines.items() if "Hz" in line) == pytest.approx(500, abs=60)


def test_by_default_a_twin_is_the_papers_and_names_no_line(corpus, tmp_path):
    config = recipe(corpus, tmp_path / "exp")
    pipeline.prepare(config)
    for cut in read_cuts(Layout.of(config).cuts("dev")):
        assert not {"line", "bandwidth_hz", "bandwidth_confidence"} & cut.supervisions[0].custom.keys()
        steps = [step.to_dict()["kwargs"] for step in cut.recording.transforms or []]
        down, up = ({"source_sampling_rate": a, "target_sampling_rate": b} for a, b in ((16000, 8000), (8000, 16000)))
        assert steps == ([down, up] if tags_of(cut).bandwidth == "nb" else [])


@pytest.mark.parametrize("wrong", [{"codecs": ["amr"]}, {"codecs": []}, {"telephone_band": 1.5}, {"pairing": "half"}])
def test_an_impossible_simulation_is_refused(corpus, tmp_path, wrong):
    with pytest.raises(ConfigError, match=r"data\.nb_simulation"):
        recipe(corpus, tmp_path / "exp", nb_simulation=wrong)


def test_a_corpus_that_is_narrowband_goes_through_no_line(corpus, tmp_path):
    corpora = {"calls": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, "bandwidth": "nb"}}
    config = recipe(corpus, tmp_path / "exp", corpora=corpora, nb_simulation=EVERY)
    assert pipeline.prepare(config).lines == {}
