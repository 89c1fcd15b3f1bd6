"""Every corpus that has a recipe, from its tree: what comes out, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest

from smoe_cli import pipeline
from smoe_cli.cuts import tags_of
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from tests.corpora.trees import TREES, prepared, recipe

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".sph", ".tar")
"""Suffixes of what holds audio in the trees."""


@pytest.fixture(params=TREES)
def name(request, tmp_path) -> str:
    TREES[request.param](tmp_path)
    return request.param


ROWS = {
    "librispeech": {"train": 12, "dev": 8, "test": 8},
    "mini-librispeech": {"train": 4, "dev": 4},
    "mustc": {"train": 14, "dev": 14, "test": 28},
    "mtedx": {"train": 6, "dev": 6, "test": 6},
    "covost": {"train": 8, "dev": 4, "test": 4},
    "fleurs": {"train": 14, "dev": 14, "test": 14},
    "europarl-st": {"train": 12, "dev": 12, "test": 12},
    "voxpopuli": {"train": 4, "dev": 4, "test": 4},
    "fisher-callhome": {"train": 8, "dev": 12, "test": 8},
    "switchboard": {"train": 2, "dev": 40, "test": 40},
    "table": {"train": 6, "dev": 6, "test": 6},
    "audiofolder": {"train": 6, "dev": 6, "test": 6},
    "kaldi": {"train": 8, "dev": 8, "test": 8},
    "nemo": {"train": 10, "dev": 10, "test": 10},
    "lhotse": {"train": 7, "dev": 7, "test": 7},
    "lhotse-recipe": {"train": 4, "dev": 4, "test": 4},
    "shar": {"train": 10, "dev": 10, "test": 10},
}
"""Recipe -> cuts per split: utterances, times what each can serve, times bands. Counted by hand."""


def test_a_recipe_reads_the_tree_of_its_corpus(name, tmp_path):
    report, cuts = prepared(name, tmp_path)
    found: Counter[str] = Counter()
    for row in report.rows:
        found[row.split] += row.cuts
    assert dict(found) == ROWS[name]
    assert not [finding for finding in report.findings if finding.severity == "error"]
    assert all(tags_of(cut).transcript for cut in cuts)
    config = recipe(name, tmp_path)
    served = {(tags_of(cut).task, cut.supervisions[0].language) for cut in cuts}
    assert served == {(task, lang) for task, lang in config.targets()}


def test_the_same_tree_gives_the_same_bytes(name, tmp_path):
    config = recipe(name, tmp_path)
    pipeline.prepare(config)
    first = [Layout.of(config).cuts(split).read_bytes() for split in ROWS[name]]
    shutil.rmtree(config.exp_dir)
    pipeline.prepare(config)
    assert [Layout.of(config).cuts(split).read_bytes() for split in ROWS[name]] == first


def test_a_missing_corpus_is_named_and_so_is_the_cure(name, tmp_path):
    (tmp_path / "empty").mkdir()
    said = r"no folder `.*empty/.*`, where `data\.corpora\.\w+\.\w+` says|nothing of the corpus is there: no `.*empty/|no table `.*empty/"
    with pytest.raises(DataError, match=said) as caught:
        pipeline.prepare(recipe(name, tmp_path / "empty"))
    cure = r"set `data.root` to the folder that holds (it|them), for example --set data.root=FOLDER, or correct `data\.corpora\.\w+\.\w+`"
    assert re.match(cure, caught.value.hint or "")
    assert len(caught.value.message.splitlines()) <= 1 + len(recipe(name, tmp_path).data.corpora), "one line a corpus"


def test_a_corpus_of_somebody_else_may_not_lead_out_of_its_folder(name, tmp_path):
    """Untrusted, all is read; with its audio behind a link to another place, nothing is."""
    corpora = recipe(name, tmp_path).data.corpora
    changes = [f"data.corpora.{corpus}.untrusted=true" for corpus in corpora]
    prepared(name, tmp_path, *changes)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    for item in list(tmp_path.iterdir()):
        if item.is_dir() and item not in (inside, outside, tmp_path / "exp"):
            shutil.move(item, inside / item.name)
    for number, path in enumerate(sorted(path for path in inside.rglob("*") if path.suffix.lower() in AUDIO)):
        outside.mkdir(exist_ok=True)
        shutil.move(path, outside / f"{number}{path.suffix}")
        path.symlink_to(outside / f"{number}{path.suffix}")
    prepared(name, inside)
    with pytest.raises(DataError, match=r"leads out of `.*inside`, and what is marked untrusted may not"):
        prepared(name, inside, *changes)
