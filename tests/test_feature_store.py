"""Stored features are those that would be computed, and training cannot tell the difference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from smoe_cli import checkpoint, pipeline
from smoe_cli.cuts import read_cuts
from smoe_cli.errors import DataError
from smoe_cli.feature_store import FeatureStore
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from tests.test_training import recipe, write_corpus


@pytest.fixture
def prepared(tmp_path):
    write_corpus(tmp_path / "corpus")
    config = recipe(tmp_path / "corpus", tmp_path / "exp", features={"mel_bins": 40, "cache_mb": 0, "stored": True})
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


def fronts(config):
    store = FeatureStore(Layout.of(config).features, config.features)
    return FrontEnd(config.features), FrontEnd(config.features, store=store), store


def test_what_is_stored_is_what_would_be_computed(prepared):
    report = pipeline.features(prepared, jobs=2)
    cuts = [cut for split in ("train", "dev") for cut in read_cuts(Layout.of(prepared).cuts(split))]
    keys = {FrontEnd.key(cut) for cut in cuts}
    assert (report.cuts, report.stored, report.computed) == (len(cuts), len(keys), len(keys))
    assert len(keys) < len(cuts), "tasks share them"
    plain, stored, store = fronts(prepared)
    for cut in cuts:
        assert store.get(FrontEnd.key(cut)) is not None
        assert torch.equal(stored(cut), plain(cut))
    again = pipeline.features(prepared, jobs=2)
    assert (again.stored, again.computed, again.bytes) == (len(keys), 0, 0)


def test_training_gives_the_same_weights_with_and_without(prepared, tmp_path):
    pipeline.train(prepared)
    assert list(Layout.of(prepared).features.rglob("*.npy")), "what was computed was kept"
    models = [checkpoint.load(Layout.of(prepared).final).model.state_dict()]
    for stored in (True, False):
        config = prepared.model_copy(update={"features": prepared.features.model_copy(update={"stored": stored})})
        pipeline.train(config, resume="never")
        models.append(checkpoint.load(Layout.of(config).final).model.state_dict())
    assert all(torch.equal(models[0][name], other[name]) for other in models[1:] for name in models[0])


def test_another_file_or_other_settings_have_features_of_their_own(prepared, tmp_path):
    pipeline.features(prepared, splits=["dev"], jobs=1)
    cut = next(iter(read_cuts(Layout.of(prepared).cuts("dev"))))
    _, stored, store = fronts(prepared)
    path = Path(cut.recording.sources[0].source)
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)
    assert store.get(FrontEnd.key(cut)) is None
    assert stored(cut).shape[1] == 40
    wider = prepared.features.model_copy(update={"mel_bins": 80})
    assert FeatureStore(Layout.of(prepared).features, wider).get(FrontEnd.key(cut)) is None
    kept = prepared.features.model_copy(update={"cache_mb": 7, "stored": False})
    assert FeatureStore(Layout.of(prepared).features, kept).folder == store.folder


def test_what_is_damaged_is_named_with_the_cure(prepared):
    pipeline.features(prepared, splits=["dev"], jobs=1)
    cut = next(iter(read_cuts(Layout.of(prepared).cuts("dev"))))
    _, stored, store = fronts(prepared)
    path = store.path(FrontEnd.key(cut))
    whole = path.read_bytes()
    for content in (whole[:50], b"", b"no array", whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read stored features") as caught:
            stored(cut)
        assert "remove the file" in caught.value.hint
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read stored features"):
        stored(cut)
    path.unlink()
    assert torch.equal(stored(cut), fronts(prepared)[0](cut))
    Path(cut.recording.sources[0].source).unlink()
    with pytest.raises(DataError, match="cannot read the audio of cut"):
        pipeline.features(prepared, splits=["dev"], jobs=1)


def test_the_command_says_what_it_did(prepared, tmp_path):
    (tmp_path / "smoe.yaml").write_text(json.dumps(prepared.model_dump(mode="json")), encoding="utf-8")

    def smoe(*words):
        words = [sys.executable, "-m", "smoe_cli", "features", "--config", str(tmp_path / "smoe.yaml"), *words]
        return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent.parent)

    assert smoe("--dry-run").returncode == 0 and not Layout.of(prepared).features.exists()
    done = smoe("--split", "dev", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["computed"] > 0
    again = smoe("--split", "dev")
    assert "0 of them now" in again.stdout
    wrong = smoe("--split", "dve")
    assert wrong.returncode == 2 and "unknown split `dve`" in wrong.stderr
