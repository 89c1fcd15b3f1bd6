"""Laws of models that hear at 8 kHz: all is narrowband, and what asks for wideband is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import ConfigError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tags import Choice
from tests.conftest import tiny_config
from tests.test_training import write_corpus


def recipe(folder: Path, features: dict[str, object] | None = None, table: dict[str, object] | None = None, **data: object) -> Config:
    corpora = {"tones": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, **(table or {})}}
    features = {"sample_rate_hz": 8000, **(features or {})}
    return tiny_config(folder / "exp", features=features, data={"root": str(folder / "corpus"), "corpora": corpora, **data})


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
        {"nb_downsample": True},
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


@pytest.mark.parametrize("rate", [0, 3999, 192001, 10**9])
def test_a_rate_that_no_speech_has_is_no_setting(tmp_path, rate):
    with pytest.raises(ConfigError, match=r"features\.sample_rate_hz"):
        recipe(tmp_path, features={"sample_rate_hz": rate})
