"""What is wrong with corpora: all of it is said, what more than one utterance hangs on is never forgiven, nothing is overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from tests.conftest import tiny_config
from tests.corpora.test_damaged_trees import FISHER, LIBRI, MUSTC, SWB, lose
from tests.corpora.trees import TREES
from tests.corpora.trees import recipe as published
from tests.test_training import write_corpus

TONES = {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}}


def over(root: Path, corpora: dict[str, object], **data: object) -> Config:
    return tiny_config(root.parent / "exp", data={"root": str(root), "corpora": corpora, **data})


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus", per_word=10)


def rewrite(table: Path, change: Callable[[str], str]) -> None:
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")


def test_a_second_utterance_with_the_same_id_leaves_the_files_of_the_first_as_they_are(corpus, tmp_path):
    written = {"nb_downsample": True, "nb_simulation": {"write": True, "codecs": ["mulaw"]}}
    pipeline.prepare(over(corpus, {"tones": TONES}, **written))
    (path,) = (tmp_path / "exp" / "audio" / "narrowband" / "tones").glob("a1.*.flac")
    before = soundfile.read(path)[0]
    shutil.rmtree(tmp_path / "exp")
    rewrite(corpus / "table.tsv", lambda text: text.replace("\nb1\t", "\na1\t"))
    pipeline.prepare(over(corpus, {"tones": TONES | {"max_unfit": 1}}, **written))
    assert (soundfile.read(path)[0] == before).all()


# --- what more than one utterance hangs on ----------------------------------------------------------------

LOST = {
    "mustc": (lose(MUSTC + "/txt/train.de"), r"no file `.*train\.de`"),
    "librispeech": (lose("LibriSpeech/test-other"), r"no folder `.*test-other`"),
    "librispeech, a chapter": (lose(LIBRI + "/13-100.trans.txt"), r"no file `.*13-100\.trans\.txt`"),
    "fisher-callhome": (lose(FISHER), r"no transcript of call `20050908_182943_20_fsp`"),
    "switchboard": (lambda root: (root / SWB).write_bytes(b"\xff\n"), r"trans\.text` line 1 is not UTF-8"),
    "voxpopuli": (lose("voxpopuli/transcribed_data/de/asr_dev.tsv"), r"no file `.*asr_dev\.tsv`"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_lost_part_is_never_one_unfit_utterance(what, tmp_path):
    name, (harm, message) = what.partition(",")[0], LOST[what]
    TREES[name](tmp_path)
    harm(tmp_path)
    allowed = [f"data.corpora.{corpus}.max_unfit=1000" for corpus in published(name, tmp_path).data.corpora]
    with pytest.raises(DataError, match=message) as caught:
        pipeline.prepare(published(name, tmp_path, *allowed))
    assert "max_unfit" not in caught.value.hint
    assert not list((tmp_path / "exp").rglob("cuts.*"))


def test_lost_parts_are_counted_apart_from_unfit_utterances(tmp_path):
    TREES["mustc"](tmp_path)
    for target in ("de", "fr"):
        (tmp_path / f"must-c/en-{target}/data/dev/wav/ted_2.wav").unlink()
        (tmp_path / f"must-c/en-{target}/data/train/txt/train.en").unlink()
    with pytest.raises(
        DataError, match=r"1 files or folders that many utterances hang on and 3 of 9 utterances are not fit for use:\n"
    ) as caught:
        pipeline.prepare(published("mustc", tmp_path))
    lines = caught.value.message.splitlines()
    assert "train.en" in lines[1] and len(lines) == 4
    assert "max_unfit" not in caught.value.hint


# --- all that is wrong --------------------------------------------------------------------------------------


def test_a_refused_corpus_has_a_line_for_each_thing_that_is_wrong(corpus, tmp_path):
    for path in corpus.glob("*.flac"):
        path.unlink()
    config = over(corpus, {"tones": TONES})
    with pytest.raises(DataError, match=r"30 of 30 utterances are not fit") as caught:
        pipeline.prepare(config)
    assert caught.value.message.splitlines()[-1] == "... and 10 more"
    listed = Layout.of(config).refused("tones")
    assert f"`{listed}` has a line for each" in caught.value.hint
    lines = listed.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 30 and all(
        "no audio file" in line and line.endswith("; correct the path, or bring the file back") for line in lines
    )
    shutil.rmtree(corpus)
    write_corpus(corpus, per_word=10)
    pipeline.prepare(config)
    assert not listed.exists()


def test_a_name_that_is_not_utf_8_ends_in_reports_and_not_in_a_fault(corpus, tmp_path):
    folder, named = tmp_path / "calls" / "train", os.fsdecode(b"\xff.flac")
    folder.mkdir(parents=True)
    for name in ("a.flac", named):
        shutil.copy(corpus / "a1.flac", folder / name)
    (folder / "metadata.csv").write_text("file_name,transcription\na.flac,one\n", encoding="utf-8")
    calls = {"calls": {"type": "audiofolder", "path": ".", "splits": {"dev": None, "test": None}}}
    config = over(folder.parent, calls).model_copy(update={"tasks": {"transcribe": over(folder.parent, calls).tasks["transcribe"]}})
    assert any(rf"the first: `{folder}/\udcff.flac`" in note for note in pipeline.prepare(config).notes)
    root = tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2"
    root.mkdir(parents=True)
    (root / "1-2.trans.txt").write_text("1-2-0 ONE\n", encoding="utf-8")
    for name in ("1-2-0.flac", named):
        shutil.copy(corpus / "a1.flac", root / name)
    parts = {part: None for part in ("train-clean-100", "train-clean-360", "train-other-500", "test-clean", "test-other", "dev-other")}
    config = config.model_copy(update={"data": over(tmp_path, {"libri": {"type": "librispeech", "splits": parts}}).data})
    with pytest.raises(DataError, match=r"has no transcript of `\\udcff.flac`"):
        pipeline.prepare(config)
    assert r"\udcff.flac" in (tmp_path / "exp" / "refused.libri.txt").read_text(encoding="utf-8")


def test_what_ends_a_corpus_does_not_hide_what_was_found_before(corpus, tmp_path):
    folder = tmp_path / "clips" / "train"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text('file_name,transcription\nno.wav,one\n"open,two\n', encoding="utf-8")
    door = {"type": "audiofolder", "path": "clips", "folders": {"train": "train"}}
    with pytest.raises(DataError) as caught:
        pipeline.prepare(over(tmp_path, {"clips": door}))
    assert "line 3: unexpected end of data" in caught.value.message
    assert "line 2: no audio file" in caught.value.message


def test_every_corpus_is_looked_at_whatever_is_wrong_with_another(corpus, tmp_path):
    (corpus / "a1.flac").unlink()
    corpora = {
        "lost": TONES | {"path": "nowhere.tsv"},
        "tones": TONES,
        "none": TONES | {"splits": {s: None for s in ("train", "dev", "test")}},
    }
    with pytest.raises(DataError) as caught:
        pipeline.prepare(over(corpus, corpora))
    for said in ("no table `", "corpus `tones`: 1 of 30 utterances", "no audio file `", "corpus `none` gives no utterance"):
        assert said in caught.value.message
    for cure in ("`data.corpora.lost.path`", "correct the path", "check the filters"):
        assert cure in caught.value.hint


@pytest.mark.parametrize("name", ["a\0b", "a\x1bb", "../b", "x" * 250])
def test_an_id_that_no_file_can_have_is_refused_where_audio_is_joined(corpus, name):
    def join(text: str) -> str:
        header, *rows = text.splitlines()
        joined = [f"{row}\ta1.flac a2.flac\t0 0 0" for row in rows]
        return "\n".join([f"{header}\tsegments\tgaps_ms", *joined]).replace("\nb1\t", f"\n{name}\t") + "\n"

    rewrite(corpus / "table.tsv", join)
    rewrite(corpus / "table.tsv", lambda text: text.replace("duration", "lasts").replace("sample_rate", "rate"))
    with pytest.raises(DataError, match=r"1 of 30 utterances .*\n.*`id` names the joined file, and .* cannot"):
        pipeline.prepare(over(corpus, {"tones": TONES | {"segments_column": "segments"}}))
