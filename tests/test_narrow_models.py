"""Laws of models that hear at 8 kHz: all is narrowband, and what asks for wideband is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut
from lhotse.augmentation import Resample

from smoe_cli import pipeline
from smoe_cli.config import Config, NarrowbandSettings
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import ConfigError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tags import Choice
from smoe_cli.telephone import TelephoneLine, line_of
from tests.conftest import tiny_config
from tests.test_training import write_corpus


def recipe(folder: Path, features: dict[str, object] | None = None, table: dict[str, object] | None = None, **data: object) -> Config:
    corpora = {"tones": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, **(table or {})}}
    features = {"sample_rate_hz": 8000, **(features or {})}
    return tiny_config(folder / "exp", features=features, data={"root": str(folder / "corpus"), "corpora": corpora} | data)


def test_a_model_at_8_khz_is_trained_and_decodes_with_narrowband_routes_alone(tmp_path):
    write_corpus(tmp_path / "corpus", per_word=10)
    # A rate between telephone and wideband leaves no doubt here.
    table = tmp_path / "corpus" / "table.tsv"
    samples = soundfile.read(tmp_path / "corpus" / "a1.flac")[0]
    soundfile.write(
        tmp_path / "corpus" / "a1.flac", np.interp(np.arange(0, len(samples), 16000 / 11025), np.arange(len(samples)), samples), 11025
    )
    table.write_text(table.read_text().replace("a1.flac\ttrain\ts1\t16000", "a1.flac\ttrain\ts1\t11025"))
    config = recipe(tmp_path)
    assert pipeline.prepare(config).findings == []
    cuts = [cut for split in ("train", "dev", "test") for cut in read_cuts(Layout.of(config).cuts(split))]
    assert {(tags_of(cut).bandwidth, cut.sampling_rate, cut.load_audio().shape[1] == cut.num_samples) for cut in cuts} == {
        ("nb", 8000, True)
    }
    assert len(cuts) == 60, "a transcription and a translation of each of 30"
    assert pipeline.validate(config).errors == 0
    pipeline.tokenize(config)
    pipeline.train(config)
    pipeline.decode(config)
    assert {row.bandwidth for row in pipeline.validate(config, audio=False).rows} == {"nb"}
    file = tmp_path / "corpus" / "a0.flac"
    pipeline.decode(config, inputs=[file], choice=Choice(task="transcribe"), out=tmp_path / "h.jsonl")
    assert json.loads((tmp_path / "h.jsonl").read_text())["bandwidth"] == "nb"
    with pytest.raises(SmoeError, match=r"called wideband, but the model hears all at 8000 Hz|no route"):
        pipeline.decode(config, inputs=[file], choice=Choice(task="transcribe", bandwidth="wb"), out=tmp_path / "h.jsonl")


@pytest.mark.parametrize(
    "asked",
    [
        {"bandwidth": "auto"},
        {"table": {"bandwidth": "wb"}},
        {"table": {"bandwidth": "auto"}},
    ],
)
@pytest.mark.parametrize("rate", [8000, 4000])
def test_a_recipe_that_asks_for_wideband_at_8_khz_is_refused_with_the_cure(tmp_path, asked, rate):
    with pytest.raises(ConfigError, match=rf"features.sample_rate_hz is {rate}, where all audio is narrowband, and .* set .* to 16000"):
        recipe(tmp_path, features={"sample_rate_hz": rate}, **asked)
    recipe(tmp_path, features={"sample_rate_hz": 16000}, **asked)


LINES = {"codecs": ["mulaw", "alaw", "gsm", "plain"], "telephone_band": 0.5}


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("rate", [8000, 4000])
def test_a_model_at_8_khz_hears_wideband_recordings_where_their_line_ends(tmp_path, write, rate):
    write_corpus(tmp_path / "corpus", per_word=10)

    def cuts(hz: int) -> dict[str, MonoCut]:
        config = recipe(tmp_path / str(hz), {"sample_rate_hz": hz}, nb_downsample=True, nb_simulation=LINES | {"write": write}, root=root)
        report = pipeline.prepare(config)
        assert report.findings == [] and sum(report.lines.values()) == 30 and len(report.lines) > 4
        return {cut.id: cut for cut in read_cuts(Layout.of(config).cuts("train")) if tags_of(cut).bandwidth == "nb"}

    root = str(tmp_path / "corpus")
    low, high = cuts(rate), cuts(16000)
    assert low.keys() == high.keys() and len(low) == 48
    for name, cut in low.items():
        other, samples = high[name], cut.load_audio()[0]
        assert (cut.sampling_rate, len(samples)) == (rate, cut.num_samples)
        assert tags_of(cut) == tags_of(other)
        assert abs(cut.duration - other.duration) < 1 / rate
        whole = soundfile.read(tmp_path / "corpus" / f"{tags_of(cut).utterance.partition('/')[2]}.flac", dtype="float32")[0]
        line = line_of(NarrowbandSettings(**LINES), tags_of(cut).utterance)
        down = Resample(16000, 8000)(whole[None], 16000)
        expected = down if line == TelephoneLine("plain", False) else line(down, 8000)
        expected = expected if rate == 8000 else Resample(8000, 4000)(expected, 8000)
        np.testing.assert_allclose(samples, expected[0][: len(samples)], atol=2**-15 * (2 if rate == 4000 else 1))


def test_a_plain_line_at_8_khz_is_what_every_model_at_8_khz_hears(tmp_path):
    write_corpus(tmp_path / "corpus", per_word=10)
    root = str(tmp_path / "corpus")
    for name, data in (("a", {"nb_downsample": True}), ("b", {})):
        pipeline.prepare(recipe(tmp_path / name, root=root, **data))
    written = [Layout.of(recipe(tmp_path / name, root=root)).cuts("train").read_bytes() for name in ("a", "b")]
    assert written[0] == written[1]


def test_what_is_narrowband_goes_through_no_line_at_8_khz_either(tmp_path):
    write_corpus(tmp_path / "corpus", per_word=10)
    report = pipeline.prepare(recipe(tmp_path, table={"bandwidth": "nb"}, nb_downsample=True, nb_simulation=LINES))
    assert report.lines == {}
    # Their word against it: they go through the line, and what the model hears is narrowband all the same.
    report = pipeline.prepare(recipe(tmp_path, table={"bandwidth": "wb"}, bandwidth="auto", nb_downsample=True, nb_simulation=LINES))
    assert sum(report.lines.values()) == 30
    assert {(row.known, row.tagged) for row in report.bandwidths} == {("wb", "nb")}


def test_there_are_no_two_bands_to_draw_between_at_8_khz(tmp_path):
    with pytest.raises(ConfigError, match=r"features.sample_rate_hz is 8000, where there is one band, and .*pairing: one"):
        recipe(tmp_path, nb_downsample=True, nb_simulation={"pairing": "one"})


@pytest.mark.parametrize("rate", [0, 3999, 192001, 10**9])
def test_a_rate_that_no_speech_has_is_no_setting(tmp_path, rate):
    with pytest.raises(ConfigError, match=r"features\.sample_rate_hz"):
        recipe(tmp_path, features={"sample_rate_hz": rate})
