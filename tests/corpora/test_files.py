"""Files and folders of corpora: what one may not see is never taken for what is not there, and never passed over."""

from __future__ import annotations

import re
import shutil

import pytest

from smoe_cli import pipeline
from smoe_cli.augmentation import sounds
from smoe_cli.corpora.files import can_name_a_file, entries, files_below, is_dir, is_file, recording_of
from smoe_cli.errors import DataError
from tests.corpora.trees import TREES, prepared, recipe, text, tone
from tests.rights import without_rights


def test_what_is_missing_is_told_from_what_one_may_not_see(tmp_path):
    tone(tmp_path / "in" / "deep" / "a.wav")
    audio = tmp_path / "in" / "deep" / "a.wav"
    assert is_file(audio) and is_dir(audio.parent) and not is_file(audio.parent) and not is_dir(audio)
    for nothing in (tmp_path / "b", audio / "b", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        assert not is_file(nothing) and not is_dir(nothing)
    with without_rights(tmp_path / "in"):
        for look in (is_file, is_dir, lambda path: recording_of(path, "a")):
            with pytest.raises(DataError, match=r"no right to see `.*in/deep/a.wav`: the rights of `.*/in` forbid it") as caught:
                look(audio)
            assert "chmod -R u+rX" in caught.value.hint
    with without_rights(audio), pytest.raises(DataError, match=r"no right to read audio `.*a.wav` \(utterance `a`\)"):
        recording_of(audio, "a")


def test_a_folder_that_cannot_be_read_is_a_problem_and_the_others_are_read(tmp_path):
    for name in ("a", "b", "c"):
        text(tmp_path / name / "deep" / "file", "x")
    problems: list[DataError] = []
    with without_rights(tmp_path / "b"):
        assert [path.parts[-3] for path in files_below(tmp_path, problems.append)] == ["a", "c"]
        assert entries(tmp_path / "b", problems.append) == []
    assert [problem.message for problem in problems] == [f"no right to read folder `{tmp_path / 'b'}`"] * 2
    with without_rights(tmp_path / "b"), pytest.raises(DataError, match=r"`train\.augment\.noise`: no right to read folder"):
        sounds(tmp_path, "train.augment.noise")


LOCKED = {
    "librispeech": "LibriSpeech/dev-clean/13",
    "switchboard": "swb_ms98_transcriptions/20/2041",
    "fisher-callhome": "LDC2010T04/fisher_spa_tr/data",
    "mustc": "must-c/en-de/data/train/txt",
    "europarl-st": "europarl-st/v1.1/en/de",
    "fleurs": "fleurs/en_us/audio/dev",
}


@pytest.mark.parametrize("name", LOCKED)
def test_a_folder_of_a_corpus_that_cannot_be_read_refuses_it(name, tmp_path):
    TREES[name](tmp_path)
    with (
        without_rights(tmp_path / LOCKED[name]),
        pytest.raises(DataError, match=rf"no right to (read folder|see) `.*{LOCKED[name]}") as caught,
    ):
        pipeline.prepare(
            recipe(name, tmp_path, *(f"data.corpora.{corpus}.max_unfit=1000" for corpus in recipe(name, tmp_path).data.corpora))
        )
    assert "chmod -R u+rX" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "a\nb", "a\x7f", "ä" * 101])
def test_names_that_no_file_should_have(name):
    assert not can_name_a_file(name)
    assert can_name_a_file("Größe 1.2-a")


STRAYS = {
    "mustc": ("must-c/en-de/data/dev/wav/ted_9.wav", r"that `.*dev.yaml` does not name"),
    "mtedx": ("mtedx/es-es/data/valid/wav/x9.flac", r"that `.*valid.yaml` does not name"),
    "fleurs": ("fleurs/en_us/audio/test/999.wav", r"that `.*test.tsv` does not name"),
    "voxpopuli": ("voxpopuli/transcribed_data/en/2009/x.ogg", r"that no `asr_\*.tsv` in `.*en` names"),
    "switchboard": ("LDC97S62/swb1_d1/data/sw02999.sph", r"calls of which there is no transcript below `.*swb_ms98_transcriptions`"),
    "fisher-callhome": ("LDC2010S01/fisher_spa_d1/data/speech/x_fsp.sph", r"calls of which there is no line in `.*mapping`"),
}


@pytest.mark.parametrize("name", STRAYS)
def test_audio_that_no_table_names_is_counted_in_a_note(name, tmp_path):
    TREES[name](tmp_path)
    place, said = STRAYS[name]
    other = next(path for path in (tmp_path / place).parent.iterdir() if path.is_file())
    shutil.copy(other, tmp_path / place)
    report, _ = prepared(name, tmp_path)
    (note,) = (note for note in report.notes if "the first" in note)
    assert re.search(said, note) and "1 " in note and f"(the first: `{tmp_path / place}`) left out" in note


@pytest.mark.parametrize("name", TREES)
def test_a_whole_corpus_has_no_such_note(name, tmp_path):
    TREES[name](tmp_path)
    assert not [note for note in prepared(name, tmp_path)[0].notes if "the first" in note]
