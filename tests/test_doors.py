"""Doors for corpora of other makers: what they give, what is refused with its place, and what may never happen."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.corpora import read_corpus
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import Corpus
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import DataError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.steps import plan_step
from tests.conftest import tiny_config
from tests.rights import without_rights


def tone(path: Path, pitch_hz: float = 440.0, seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> None:
    """A tone; in a file of several channels each is an octave higher than the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(rate * seconds)) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * pitch_hz * 2**channel * t) for channel in range(channels)], 1)
    soundfile.write(path, samples, rate)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def recipe(root: Path, corpus: dict[str, object], **changes: object) -> Config:
    return tiny_config(root.parent / "exp", data={"root": str(root), "corpora": {"theirs": corpus}}, **changes)


def read(root: Path, corpus: dict[str, object]) -> tuple[list[Utterance], list[str]]:
    """The utterances, and the messages of what is wrong."""
    work = Work("theirs", root, root.parent / "exp" / "audio")
    found = list(read_corpus(recipe(root, corpus).data.corpora["theirs"], work))
    assert all(problem.hint for problem in work.problems)
    return found, [problem.message for problem in work.problems]


# --- Kaldi -----------------------------------------------------------------------------------------------

KALDI = {"type": "kaldi", "path": "data", "translations": {"de": "text.tc.de"}, "splits": {"dev": None, "test": None}}


@pytest.fixture
def kaldi(tmp_path) -> Path:
    """A data folder with two recordings, three segments, two speakers."""
    folder = tmp_path / "corpus" / "data" / "train"
    tone(folder / "wav" / "r1.wav", seconds=2)
    tone(folder / "wav" / "r2.flac", 700)
    write(folder / "wav.scp", "r1 wav/r1.wav\nr2 wav/r2.flac\n")
    write(folder / "segments", "b-u2 r1 1.0 1.5\na-u1 r1 0.25 1\nb-u3 r2 0 -1\n")
    write(folder / "text", "a-u1 one  two\nb-u2 three\nb-u3 four\n")
    write(folder / "text.tc.de", "a-u1 eins zwei\nb-u2 drei\n")
    write(folder / "utt2spk", "a-u1 a\nb-u2 b\nb-u3 b\n")
    return folder


def test_data_folders_of_other_names_are_named_one_by_one(tmp_path):
    (tmp_path / "data" / "train_nodup").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no file `.*data/train/wav.scp`") as caught:
        pipeline.prepare(recipe(tmp_path, KALDI | {"splits": {}}))
    assert "correct `data.corpora.theirs.folders.train`" in caught.value.hint and "leave it out" in caught.value.hint
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match="nothing of the corpus is there"):
        pipeline.prepare(recipe(tmp_path, KALDI | {"splits": {}}))


def test_kaldi_segments_come_sorted_with_texts_speakers_and_translations(kaldi, tmp_path):
    found, problems = read(tmp_path / "corpus", KALDI)
    assert problems == []
    assert [(u.id, u.speaker, u.transcript, u.translations, u.start_s, u.duration_s) for u in found] == [
        ("a-u1", "a", "one  two", {"de": ["eins zwei"]}, 0.25, 0.75),
        ("b-u2", "b", "three", {"de": ["drei"]}, 1.0, 0.5),
        ("b-u3", "b", "four", {}, 0.0, None),
    ]
    assert pipeline.prepare(recipe(tmp_path / "corpus", KALDI)).utterances == {"train": 3}


def test_without_segments_each_recording_is_an_utterance_and_languages_come_from_utt2lang(kaldi, tmp_path):
    (kaldi / "segments").unlink()
    for name in ("text", "utt2spk", "utt2lang"):
        write(kaldi / name, "r1 de\nr2 en\n")
    (kaldi / "text.tc.de").write_text("")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert problems == []
    assert [(u.id, u.language, u.duration_s) for u in found] == [("r1", "de", None), ("r2", "en", None)]


def test_several_text_files_of_a_language_are_several_right_answers(kaldi, tmp_path):
    write(kaldi / "text.1.de", "a-u1 eins, zwei\n")
    found, _ = read(tmp_path / "corpus", KALDI | {"translations": {"de": ["text.tc.de", "text.1.de"]}})
    assert [u.translations for u in found] == [{"de": ["eins zwei", "eins, zwei"]}, {"de": ["drei"]}, {}]


def test_reco2file_and_channel_says_which_side_of_a_call_is_heard(kaldi, tmp_path):
    tone(kaldi / "call.wav", 300, channels=2)
    write(kaldi / "wav.scp", "call call.wav\n")
    write(kaldi / "reco2file_and_channel", "call-A call A\ncall-B call B\n")
    write(kaldi / "segments", "a-u1 call-A 0 1\nb-u2 call-B 0 1\n")
    for name in ("text", "utt2spk", "text.tc.de"):
        write(kaldi / name, "a-u1 one\nb-u2 two\n")
    config = recipe(tmp_path / "corpus", KALDI)
    pipeline.prepare(config)
    heard = {}
    for cut in read_cuts(Layout.of(config).cuts("train")):
        spectrum = np.abs(np.fft.rfft(cut.load_audio()[0]))
        heard[tags_of(cut).utterance] = int(spectrum.argmax())
    assert heard == {"theirs/a-u1": 300, "theirs/b-u2": 600}


def test_a_segment_may_name_its_channel_from_0(kaldi, tmp_path):
    tone(kaldi / "call.wav", 300, channels=2)
    write(kaldi / "wav.scp", "call call.wav\nr2 wav/r2.flac\n")
    write(kaldi / "segments", "a-u1 call 0 1 0\nb-u2 call 0 1 1\nb-u3 r2 0 -1 0\n")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert ([(one.id, one.channel) for one in found], problems) == ([("a-u1", 0), ("b-u2", 1), ("b-u3", 0)], [])
    write(kaldi / "reco2file_and_channel", "call call B\nr2 r2 B\n")
    write(kaldi / "segments", "a-u1 call 0 1 0\nb-u2 call 0 1 2\nb-u3 r2 0 -1 0\n")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert [one.id for one in found] == ["b-u3"]
    assert "line 1: channel 0 is wanted of recording `call`, which `" in problems[0]
    assert problems[0].endswith("reco2file_and_channel` line 1 says is channel 1")
    assert problems[1].endswith("line 2: channel 2 is wanted of recording `call`, whose channels are 0 to 1")
    write(kaldi / "segments", "a-u1 call 0 1\nb-u2 call 0 1 -1\nb-u3 r2 0 -1 B\n")
    _, problems = read(tmp_path / "corpus", KALDI)
    assert [problem.partition(": ")[2] for problem in problems] == ["`-1` is no channel", "`B` is no channel"]


def test_empty_lines_at_the_end_of_a_table_of_kaldi_are_no_loss(kaldi, tmp_path):
    for name in ("text", "segments", "wav.scp"):
        write(kaldi / name, (kaldi / name).read_text() + "\n  \n")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert (len(found), problems) == (3, [])


def test_audio_can_start_from_another_folder_than_the_data_folder(kaldi, tmp_path):
    (kaldi / "wav").rename(tmp_path / "corpus" / "wav")
    found, problems = read(tmp_path / "corpus", KALDI | {"audio_root": "."})
    assert (len(found), problems) == (3, [])


KALDI_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a lost text": (lambda f: write(f / "text", "a-u1 one\nb-u2 two\n"), r"`.*segments` line 3: utterance `b-u3` has no line in `.*text`"),
    "a stray text": (lambda f: write(f / "utt2lang", "x en\na-u1 en\nb-u2 en\nb-u3 en\n"), r"`.*utt2lang` line 1 is about utterance `x`"),
    "no start": (lambda f: write(f / "segments", "a-u1 r1 1\nb-u2 r1 0 1\nb-u3 r2 0 1\n"), r"`.*segments` line 1: `r1 1` is no recording"),
    "an end before the start": (
        lambda f: write(f / "segments", "a-u1 r1 1 0.5\nb-u2 r1 0 1\nb-u3 r2 0 nan\n"),
        r"line 1: `r1 1 0.5` is no recording, start and end",
    ),
    "a lost recording": (lambda f: write(f / "wav.scp", "r1 wav/r1.wav\n"), r"line 3: recording `r2` has no line in `.*wav.scp`"),
    "lost audio": (lambda f: (f / "wav" / "r2.flac").unlink(), r"`.*wav.scp` line 2: no audio file"),
    "a key twice": (lambda f: write(f / "utt2spk", "a-u1 a\na-u1 b\nb-u2 b\nb-u3 b\n"), r"`.*utt2spk` line 2: `a-u1` occurs before"),
    "an empty line": (lambda f: write(f / "text", "a-u1 one\n\nb-u2 two\nb-u3 x\n"), r"`.*text` line 2 is empty"),
    "not UTF-8": (lambda f: (f / "text").write_bytes(b"a-u1 \xff\nb-u2 two\nb-u3 x\n"), r"`.*text` line 1 is not UTF-8: byte 0xff at 6"),
    "an archive": (lambda f: write(f / "wav.scp", "r1 wav/r1.wav\nr2 raw.ark:17\n"), r"line 2 names a place in an archive"),
    "a link that leads nowhere": (
        lambda f: ((f / "segments").unlink(), (f / "segments").symlink_to(f / "nowhere")),
        r"no file `.*segments`",
    ),
    "a channel of thousands of digits": (
        lambda f: write(f / "reco2file_and_channel", f"r2 r2 {'1' * 5000}\n"),
        r"`.*reco2file_and_channel` line 1: `r2 1+` is no file and channel",
    ),
    "a time after all recordings": (
        lambda f: write(f / "segments", "a-u1 r1 1e306 1.1e306\nb-u2 r1 0 1\nb-u3 r2 0 1\n"),
        r"line 1: utterance `a-u1` ",
    ),
    "a channel that is none": (
        lambda f: write(f / "reco2file_and_channel", "r2 r2 left\n"),
        r"`.*reco2file_and_channel` line 1: `r2 left` is no file and channel",
    ),
}


@pytest.mark.parametrize("damage", KALDI_DAMAGE)
def test_what_is_wrong_with_a_kaldi_folder_is_said_with_its_place(kaldi, tmp_path, damage):
    harm, message = KALDI_DAMAGE[damage]
    harm(kaldi)
    with pytest.raises(DataError, match=rf"(?s){message}") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", KALDI))
    assert caught.value.hint and not list((tmp_path / "exp").rglob("cuts.*"))


@pytest.mark.parametrize("command", ["touch {0}; cat wav/r2.flac |", "touch {0} |", "| touch {0}"])
def test_a_command_in_wav_scp_is_refused_with_the_cure_and_never_run(kaldi, tmp_path, command):
    marker = tmp_path / "it-ran"
    write(kaldi / "wav.scp", f"r1 wav/r1.wav\nr2 {command.format(marker)}\n")
    with pytest.raises(
        DataError, match=r"wav.scp` line 2 is a command, and commands of a data folder are not run unless you allow it"
    ) as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", KALDI))
    assert "write what it gives to a file once" in caught.value.hint
    assert not marker.exists()


def test_tables_of_kaldi_need_not_be_sorted(kaldi, tmp_path):
    sorted_found, _ = read(tmp_path / "corpus", KALDI)
    for name in ("text", "utt2spk", "text.tc.de", "wav.scp", "segments"):
        lines = (kaldi / name).read_text(encoding="utf-8").splitlines()
        write(kaldi / name, "\n".join(reversed(sorted(lines))) + "\n")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert problems == [] and [(u.id, u.transcript, u.speaker, u.translations) for u in found] == [
        (u.id, u.transcript, u.speaker, u.translations) for u in sorted_found
    ]


def test_lines_about_nobody_are_found_wherever_they_stand(kaldi, tmp_path):
    write(kaldi / "text", "a-u0 zero\na-u1 one\na-u2 x\nb-u2 three\nb-u3 four\nc y\nc z\n")
    found, problems = read(tmp_path / "corpus", KALDI)
    assert [utterance.id for utterance in found] == ["a-u1", "b-u2", "b-u3"]
    strays = [f"line {line} is about utterance `{key}`, which `segments` lacks" for line, key in ((1, "a-u0"), (3, "a-u2"), (6, "c"))]
    assert sorted(problem.partition("` ")[2] for problem in problems) == sorted([*strays, "line 7: `c` occurs before"])


def test_recordings_of_kaldi_do_not_fill_the_memory(kaldi, tmp_path, monkeypatch):
    """They are walked side by side, if sorted as Kaldi sorts them; unsorted ones are held."""
    (kaldi / "segments").unlink()
    keys = [f"speaker-{number:06d}" for number in range(20_000)]
    for name, value in {
        "wav.scp": "wav/r1.wav",
        "text": "a sentence of some length",
        "utt2spk": "speaker",
        "text.tc.de": "ein Satz",
    }.items():
        write(kaldi / name, "".join(f"{key} {value}\n" for key in keys))
    recording = Recording.from_file(kaldi / "wav" / "r1.wav")
    monkeypatch.setattr("smoe_cli.corpora.kaldi.recording_of", lambda *arguments: recording)

    def most_bytes() -> float:
        work = Work("theirs", tmp_path / "corpus", tmp_path / "audio")
        corpus = recipe(tmp_path / "corpus", KALDI).data.corpora["theirs"]
        tracemalloc.start()
        assert sum(1 for _ in read_corpus(corpus, work)) == len(keys) and not work.problems
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / len(keys)

    assert most_bytes() < 50
    write(kaldi / "text", "".join(f"{key} a sentence of some length\n" for key in reversed(keys)))
    assert most_bytes() > 200, "what the measure sees of one table in memory"


@pytest.mark.parametrize(("name", "setting"), [("text", "text"), ("text.tc.de", "translations.de")])
def test_texts_that_have_another_name_are_no_reason_to_correct_the_folder(kaldi, tmp_path, name, setting):
    (kaldi / name).rename(kaldi / "other")
    with pytest.raises(DataError, match=rf"no file `.*train/{name}`") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", KALDI))
    assert caught.value.hint.startswith(f"correct `data.corpora.theirs.{setting}`, or bring the file back; ")


def test_a_damaged_recording_is_said_once_for_all_its_segments(kaldi, tmp_path):
    (kaldi / "wav" / "r1.wav").unlink()
    found, problems = read(tmp_path / "corpus", KALDI)
    assert len(found) == 1 and len(problems) == 2 and len(set(problems)) == 1


# --- NeMo ------------------------------------------------------------------------------------------------

NEMO = {"type": "nemo", "manifests": {"train": "m/train.json"}}


def nemo(root: Path, *rows: object) -> None:
    for name in ("a", "b"):
        tone(root / "m" / "wav" / f"{name}.wav", seconds=2)
    write(root / "m" / "train.json", "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def row(**fields: object) -> dict[str, object]:
    return {"audio_filepath": "wav/a.wav", "duration": 2.0, "text": "one"} | fields


def test_rows_of_nemo_about_the_same_audio_become_one_utterance(tmp_path):
    nemo(
        tmp_path / "corpus",
        row(taskname="asr", source_lang="en", target_lang="en"),
        row(taskname="ast", source_lang="en", target_lang="de", text="eins"),
        row(task="ast", source_lang="en", target_lang="fr", text="one", answer="un"),
        row(audio_filepath="wav/b.wav", lang="de", text="zwei", offset=0.5, duration=1.0, speaker="b", id="b7", german="x"),
    )
    found, problems = read(tmp_path / "corpus", NEMO)
    assert problems == []
    assert [(u.id, u.language, u.transcript, u.translations, u.start_s, u.duration_s, u.speaker) for u in found] == [
        ("m-wav-a", "en", "one", {"de": ["eins"], "fr": ["un"]}, 0.0, None, ""),
        ("b7", "de", "zwei", {}, 0.5, 1.0, "b"),
    ]
    assert pipeline.prepare(recipe(tmp_path / "corpus", NEMO)).utterances == {"train": 2}


def test_rows_about_the_same_audio_may_lie_apart(tmp_path):
    translation = row(source_lang="en", target_lang="de", text="eins")
    root = tmp_path / "corpus"
    nemo(root, row(), *[row(audio_filepath="wav/b.wav", id=f"b{number}") for number in range(50)], translation, row(text="two"))
    found, problems = read(root, NEMO)
    assert [u.id for u in found] == [*(f"b{number}" for number in range(50)), "m-wav-a"]
    assert (found[-1].transcript, found[-1].translations) == ("one", {"de": ["eins"]})
    assert len(problems) == 1 and "line 53: another row about" in problems[0]


def test_the_fields_of_a_nemo_manifest_can_have_other_names(tmp_path):
    nemo(tmp_path / "corpus", row(text="x", words="one", de=["eins", "ein"], who="anna", lang="en", want="buy"))
    fields = {"text_field": "words", "speaker_field": "who", "translations": {"de": "de"}, "label_fields": {"intent": "want"}}
    (found,), problems = read(tmp_path / "corpus", NEMO | fields)
    assert problems == []
    assert (found.transcript, found.translations, found.speaker) == ("one", {"de": ["eins", "ein"]}, "anna")
    assert found.labels == {"intent": "buy"}


def test_segments_of_one_file_have_ids_by_their_offset_and_a_rounded_duration_cuts_nothing_off(tmp_path):
    nemo(tmp_path / "corpus", row(offset=0, duration=1), row(offset=1.0, duration=1), row(audio_filepath="wav/b.wav", duration=1.98))
    found, problems = read(tmp_path / "corpus", NEMO)
    assert problems == []
    assert [(u.id, u.start_s, u.duration_s) for u in found] == [
        ("m-wav-a-00000000", 0, 1),
        ("m-wav-a-00001000", 1, 1),
        ("m-wav-b", 0, None),
    ]


def test_ids_do_not_say_where_the_corpus_lies(tmp_path):
    root = tmp_path / "corpus"
    nemo(root, row(audio_filepath=str(root / "m" / "wav" / "a.wav")), row(audio_filepath="./wav/b.wav"))
    assert [utterance.id for utterance in read(root, NEMO)[0]] == ["m-wav-a", "m-wav-b"]


def test_empty_lines_are_no_rows(tmp_path):
    nemo(tmp_path / "corpus", row(), "", row(audio_filepath="wav/b.wav"), " ")
    found, problems = read(tmp_path / "corpus", NEMO)
    assert (len(found), problems) == (2, [])


def test_a_field_that_is_nearly_the_one_of_nemo_is_named(tmp_path):
    nemo(tmp_path / "corpus", row(audio_file="wav/a.wav", audio_filepath=None))
    work = Work("theirs", tmp_path / "corpus", tmp_path / "exp" / "audio")
    assert not list(read_corpus(recipe(tmp_path / "corpus", NEMO).data.corpora["theirs"], work))
    assert work.problems[0].hint == "it has `audio_file`: call the one that names the file `audio_filepath`"


NEMO_DAMAGE = {
    "no JSON": ("{", r"line 2 is not JSON"),
    "no object": ("[1]", r"line 2 is no JSON object"),
    "no audio named": ({"text": "x"}, r"line 2: the row has no `audio_filepath`"),
    "lost audio": (row(audio_filepath="wav/c.wav"), r"line 2: no audio file"),
    "text that is none": (row(text={"en": 1}), r"line 2: `text` is `\{'en': 1\}`, which is no text"),
    "a duration that is none": (row(duration="long"), r"line 2: `duration` is `\"long\"`, which is no number of seconds"),
    "not a number": (row(offset=float("nan")), r"line 2: `offset` is `NaN`"),
    "a number too large to count with": (row(duration=10**400), r"line 2: `duration` is `10+`, which is no number of seconds from 0 to"),
    "an offset after all recordings": (row(offset=1e306), r"line 2: `offset` is `1e\+306`"),
    "half a character": ('{"audio_filepath": "wav/a.wav", "text": "\\ud800"}', r"line 2 is not UTF-8: it has half a character"),
    "a wrong duration": (row(audio_filepath="wav/b.wav", duration=3.0), r"line 2: `duration` says 3, the audio has 2"),
    "an unknown task": (row(taskname="dance"), r"line 2: the row is of task `dance`; known: asr"),
    "languages against the task": (row(taskname="asr", source_lang="en", target_lang="de"), r"line 2: the row is of task `asr`, from `en`"),
    "a target without a source": (row(target_lang="de"), r"line 2: the row has `target_lang` `de` and no `source_lang`"),
    "a second opinion": (row(text="two"), r"line 2: another row about `wav/a.wav` says `transcript` is `one`, this one `two`"),
}


@pytest.mark.parametrize("damage", NEMO_DAMAGE)
def test_what_is_wrong_with_a_nemo_manifest_is_said_with_its_line(tmp_path, damage):
    harm, message = NEMO_DAMAGE[damage]
    nemo(tmp_path / "corpus", row(), harm)
    with pytest.raises(DataError, match=rf"(?s)train.json` {message}") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", NEMO))
    assert caught.value.hint and not list((tmp_path / "exp").rglob("cuts.*"))


# --- audio folders ---------------------------------------------------------------------------------------

FOLDER = {"type": "audiofolder", "path": "", "splits": {"dev": None, "test": None}}


def audiofolder(root: Path, rows: list[dict[str, object]], table: str = "metadata.csv") -> Path:
    folder = root / "train"
    for name in ("a", "sub/b"):
        tone(folder / f"{name}.wav")
    if table.endswith("l"):
        write(folder / table, "".join(json.dumps(one) + "\n" for one in rows))
    else:
        with (folder / table).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


ROWS: list[dict[str, object]] = [
    {"file_name": "sub/b.wav", "transcription": 'two, "three"\nand so on', "de": "zwei", "who": "b"},
    {"file_name": "a.wav", "transcription": "one", "de": "", "who": "a"},
]


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_an_audio_folder_gives_what_its_table_says_in_its_order(tmp_path, table):
    audiofolder(tmp_path / "corpus", ROWS, table)
    corpus = FOLDER | {"metadata": table, "translations": {"de": "de"}, "speaker_column": "who"}
    found, problems = read(tmp_path / "corpus", corpus)
    assert problems == []
    assert [(u.id, u.transcript, u.translations, u.speaker) for u in found] == [
        ("train-sub-b", 'two, "three"\nand so on', {"de": ["zwei"]}, "b"),
        ("train-a", "one", {}, "a"),
    ]
    assert pipeline.prepare(recipe(tmp_path / "corpus", corpus)).utterances == {"train": 2}


def test_splits_of_an_audio_folder_may_have_files_of_the_same_name(tmp_path):
    audiofolder(tmp_path / "corpus", ROWS)
    shutil.copytree(tmp_path / "corpus" / "train", tmp_path / "corpus" / "test")
    found, problems = read(tmp_path / "corpus", FOLDER | {"splits": {"dev": None}})
    assert problems == [] and [u.id for u in found] == ["train-sub-b", "train-a", "test-sub-b", "test-a"]


def test_a_table_of_the_other_kind_is_pointed_out(tmp_path):
    audiofolder(tmp_path / "corpus", ROWS, "metadata.jsonl")
    with pytest.raises(DataError, match=r"no table `.*metadata.csv`") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", FOLDER))
    assert caught.value.hint == "there is `metadata.jsonl`: say `data.corpora.theirs.metadata: metadata.jsonl`"


def test_audio_that_no_row_of_an_audio_folder_names_is_counted_in_a_note(tmp_path):
    folder = audiofolder(tmp_path / "corpus", [{"file_name": "./sub/b.wav", "transcription": "two"}])
    (folder / "sub" / "notes.txt").write_text("no audio")
    config = recipe(tmp_path / "corpus", FOLDER, tasks={"transcribe": {"languages": ["en"]}})
    said = f"`theirs`: 1 files of audio that no row of `{folder / 'metadata.csv'}` names (the first: `{folder / 'a.wav'}`) left out"
    assert said in pipeline.prepare(config).notes


def damaged(text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "metadata.csv").write_bytes(b"file_name,transcription\na.wav,one\n" + text)


FOLDER_DAMAGE = {
    "lost audio": (damaged(b"c.wav,three\n"), r"metadata.csv` line 3: no audio file"),
    "a stray comma": (damaged(b"sub/b.wav,one,two\n"), r"line 3 has 3 fields, 2 are expected"),
    "an open quote": (damaged(b'sub/b.wav,"two\n'), r"line 3: unexpected end of data"),
    "no name": (damaged(b",two\n"), r"line 3: `file_name` is empty"),
    "not UTF-8": (damaged(b"sub/b.wav,\xff\n"), r"line 3: `transcription` is not UTF-8"),
    "no column": (
        lambda folder: write(folder / "metadata.csv", "file_name,text\n"),
        r"has no column `transcription`; it has: file_name, text",
    ),
    "no table": (lambda folder: (folder / "metadata.csv").unlink(), r"no table `.*metadata.csv`"),
    "no audio in a file": (lambda folder: write(folder / "a.wav", "what"), r"line 3: cannot open audio `.*a.wav`"),
}


@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
def test_what_is_wrong_with_an_audio_folder_is_said_with_its_line(tmp_path, damage):
    harm, message = FOLDER_DAMAGE[damage]
    harm(audiofolder(tmp_path / "corpus", [{"file_name": "sub/b.wav", "transcription": "x"}, {"file_name": "a.wav", "transcription": "y"}]))
    with pytest.raises(DataError, match=rf"(?s){message}") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", FOLDER, tasks={"transcribe": {"languages": ["en"]}}))
    assert caught.value.hint and not list((tmp_path / "exp").rglob("cuts.*"))


def test_one_bad_row_can_be_left_out_but_never_those_that_nobody_can_count(tmp_path):
    folder = audiofolder(tmp_path / "corpus", ROWS)
    config = recipe(tmp_path / "corpus", FOLDER | {"max_unfit": 3}, tasks={"transcribe": {"languages": ["en"]}})
    damaged(b"c.wav,three\n")(folder)
    assert pipeline.prepare(config).utterances == {"train": 1}
    damaged(b'"c.wav,three\nsub/b.wav,two\n')(folder)
    with pytest.raises(DataError, match="line 4: unexpected end of data"):
        pipeline.prepare(config)


def test_a_row_of_json_without_a_column_that_is_asked_for_is_named(tmp_path):
    audiofolder(tmp_path / "corpus", [{"file_name": "a.wav"}, ROWS[0]], "metadata.jsonl")
    found, problems = read(tmp_path / "corpus", FOLDER | {"metadata": "metadata.jsonl"})
    assert len(found) == 1 and problems[0].endswith("metadata.jsonl` line 1: the row has no `transcription`")


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize(
    "named",
    [
        {"translations": {"de": "german"}},
        {"label_columns": {"wish": "wish"}},
        {"tag_columns": {"accent": "dialect"}},
        {"bandwidth_column": "band"},
        {"subset_column": "part"},
    ],
)
def test_a_column_that_no_row_of_an_audio_folder_has_is_refused_whatever_the_table_is(tmp_path, table, named):
    """Nobody would miss the translations or labels of a misspelt column: rows may be without."""
    audiofolder(tmp_path / "corpus", ROWS, table)
    axes = {"accent": ["us"]} if "tag_columns" in named else {}
    ((column,),) = [one.values() if isinstance(one, dict) else [one] for one in named.values()]
    with pytest.raises(DataError, match=rf"^table `.*{table}` has no column `{column}`; it has: file_name, transcription, de, who\n"):
        pipeline.prepare(recipe(tmp_path / "corpus", FOLDER | {"metadata": table} | named, axes=axes))


def test_a_column_that_only_a_late_object_has_is_one(tmp_path):
    rows = [{"file_name": "a.wav", "transcription": "one"}, {"file_name": "sub/b.wav", "transcription": "two", "de": "zwei"}]
    audiofolder(tmp_path / "corpus", rows, "metadata.jsonl")
    found, problems = read(tmp_path / "corpus", FOLDER | {"metadata": "metadata.jsonl", "translations": {"de": "de"}})
    assert problems == [] and [utterance.translations for utterance in found] == [{}, {"de": ["zwei"]}]


# --- all -------------------------------------------------------------------------------------------------


def leaving_kaldi(folder: Path, named: str) -> dict[str, object]:
    write(folder / "data" / "train" / "wav.scp", f"u {named}\n")
    write(folder / "data" / "train" / "text", "u one\n")
    return {"type": "kaldi", "path": "data", "folders": {"train": "train"}, "audio_root": "."}


def leaving_nemo(folder: Path, named: str) -> dict[str, object]:
    write(folder / "train.json", json.dumps({"audio_filepath": named, "text": "one"}) + "\n")
    return {"type": "nemo", "manifests": {"train": "train.json"}}


def leaving_audiofolder(folder: Path, named: str) -> dict[str, object]:
    write(folder / "metadata.jsonl", json.dumps({"file_name": named, "transcription": "one"}) + "\n")
    return {"type": "audiofolder", "path": "", "folders": {"train": "."}, "metadata": "metadata.jsonl"}


@pytest.mark.parametrize("way", ["..", "absolute", "a link", "a manifest that is a link"])
@pytest.mark.parametrize("door", [leaving_kaldi, leaving_nemo, leaving_audiofolder])
def test_what_is_untrusted_may_not_leave_its_folder_through_any_door(tmp_path, door, way):
    root = tmp_path / "corpus"
    root.mkdir()
    tone(tmp_path / "secret.wav")
    tone(root / "own.wav")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    named = {"..": "../secret.wav", "absolute": str(tmp_path / "secret.wav"), "a link": "link.wav"}.get(way, "own.wav")
    corpus = door(root, named)
    if way == "a manifest that is a link":
        manifest = next(path for path in root.rglob("*") if path.suffix in (".scp", ".json", ".jsonl"))
        manifest.rename(tmp_path / "manifest")
        manifest.symlink_to(tmp_path / "manifest")
    tasks = {"transcribe": {"languages": ["en"]}}
    with pytest.raises(DataError, match=r"leads out of `.*corpus`, and what is marked untrusted may not"):
        pipeline.prepare(recipe(root, corpus | {"untrusted": True}, tasks=tasks))
    pipeline.prepare(recipe(root, corpus, tasks=tasks))


def test_every_kind_of_corpus_has_a_reader_and_a_place_in_the_reference():
    kinds = get_args(get_args(Corpus)[0])
    assert len(kinds) >= 7
    reference = (Path(__file__).parents[1] / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    for kind in kinds:
        assert callable(import_module(kind.reader).read)
        assert f"(type: {kind.model_fields['type'].default})" in reference


@pytest.mark.parametrize("door", ["nemo", "audiofolder", "lhotse", "tsv"])
def test_each_recording_can_say_its_own_band_and_what_is_none_is_named_with_its_line(tmp_path, door):
    root, said = tmp_path / "corpus", ("nb", "wb", "", "8 kHz")
    for number in range(4):
        tone(root / f"{number}.wav")
    if door == "nemo":
        corpus = {"type": "nemo", "manifests": {"train": "train.json"}, "bandwidth_field": "band"}
        rows = [row(audio_filepath=f"{number}.wav", duration=1.0, band=one) for number, one in enumerate(said)]
        write(root / "train.json", "".join(json.dumps(one) + "\n" for one in rows))
    elif door == "audiofolder":
        corpus = {"type": "audiofolder", "path": ".", "folders": {"train": "."}, "bandwidth_column": "band"}
        write(root / "metadata.csv", "file_name,transcription,band\n" + "".join(f"{n}.wav,one,{one}\n" for n, one in enumerate(said)))
    elif door == "tsv":
        corpus = {"type": "tsv", "path": "table.tsv", "bandwidth_column": "band"}
        rows = [f"{n}\t{n}.wav\ttrain\tone\t{one}\n" for n, one in enumerate(said)]
        write(root / "table.tsv", "".join(["id\tpath\tsplit\ttranscript\tband\n", *rows]))
    else:
        corpus = {"type": "lhotse", "cuts": {"train": "cuts.jsonl"}, "bandwidth_field": "band"}
        cuts = [lhotse_cut(root / f"{number}.wav", f"c{number}", band=one) for number, one in enumerate(said)]
        write(root / "cuts.jsonl", "".join(json.dumps(cut) + "\n" for cut in cuts))
    found, (problem,) = read(root, corpus)
    assert [(utterance.bandwidth, utterance.bandwidth_by) for utterance in found] == [("nb", "corpus"), ("wb", "corpus"), (None, "")]
    assert re.search(r"line [45]: .*`band` is `8 kHz`, which is no bandwidth; known: nb, wb", problem)
    assert [utterance.bandwidth for utterance in read(root, corpus | {"bandwidth": "nb"})[0]] == ["nb", "wb", "nb"]


def lhotse_cut(path: Path, name: str, **custom: object) -> dict[str, object]:
    recording = Recording.from_file(path, recording_id=f"r-{name}")
    segment = SupervisionSegment(name, recording.id, 0, recording.duration, text="one", language="en", custom={"de": "eins"} | custom)
    return MonoCut(name, 0, recording.duration, 0, supervisions=[segment], recording=recording).to_dict()


LHOTSE = {"type": "lhotse", "translations": {"de": "de"}, "cuts": {split: f"{split}.jsonl" for split in ("train", "dev", "test")}}


def test_manifests_of_lhotse_that_are_missing_are_all_named_and_one_that_is_left_out_is_not_opened(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "a.wav")
    write(root / "train.jsonl", json.dumps(lhotse_cut(root / "a.wav", "c")) + "\n")
    with pytest.raises(DataError) as caught:
        pipeline.prepare(recipe(root, LHOTSE))
    for split in ("dev", "test"):
        assert f"no cut manifest `{root}/{split}.jsonl`" in caught.value.message
        assert f"`data.corpora.theirs.splits: {{{split}: null}}`" in caught.value.hint
    assert pipeline.prepare(recipe(root, LHOTSE | {"splits": {"dev": None, "test": None}})).utterances == {"train": 1}


def test_what_is_wrong_with_a_cut_of_lhotse_is_said_with_its_line(tmp_path):
    root = tmp_path / "corpus"
    for name in ("a", "b", "gone"):
        tone(root / f"{name}.wav")
    named = [("a", "c0"), ("b", "c0"), ("gone", "c1"), ("gone", "c2")]
    write(root / "train.jsonl", "".join(json.dumps(lhotse_cut(root / f"{name}.wav", one)) + "\n" for name, one in named))
    (root / "gone.wav").unlink()
    with pytest.raises(DataError) as caught:
        pipeline.prepare(recipe(root, LHOTSE | {"splits": {"dev": None, "test": None}}))
    said = sorted(caught.value.message.splitlines()[1:])
    assert [line.removeprefix(f"`{root}/train.jsonl` ") for line in said] == [
        "line 2: utterance `c0` of corpus `theirs` occurs twice in split `train`",
        f"line 3: audio `{root}/gone.wav` (recording `r-c1`) does not exist",
    ], "what is wrong with a recording is said once"


def test_manifests_of_lhotse_in_a_locked_folder_are_not_called_missing(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "a.wav")
    write(root / "m" / "train.jsonl", json.dumps(lhotse_cut(root / "a.wav", "c")) + "\n")
    corpus = {"type": "lhotse", "cuts": {"train": "m/train.jsonl"}}
    with without_rights(root / "m"), pytest.raises(DataError, match=r"no right to see `.*train.jsonl`") as caught:
        pipeline.prepare(recipe(root, corpus))
    assert "chmod" in caught.value.hint


def test_a_split_that_is_left_out_is_not_opened_and_one_that_is_lost_is_named(kaldi, tmp_path):
    with pytest.raises(DataError, match=r"no file `.*data/dev/wav.scp`") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", KALDI | {"splits": {"test": None}}))
    assert "`data.corpora.theirs.splits: {dev: null}`" in caught.value.hint


@pytest.mark.parametrize("name", ["text", "segments", "wav.scp", "text.tc.de"])
def test_a_changed_table_makes_prepare_run_again(kaldi, tmp_path, name):
    config = recipe(tmp_path / "corpus", KALDI)
    pipeline.prepare(config)
    assert plan_step(config, "prepare").state == "up to date"
    with (kaldi / name).open("a") as file:
        file.write("\n")
    assert plan_step(config, "prepare").state == "would run"


@pytest.mark.parametrize("corpus", [KALDI, NEMO])
def test_the_same_corpus_gives_the_same_manifest(kaldi, tmp_path, corpus):
    nemo(tmp_path / "corpus", row(source_lang="en", target_lang="de", answer="eins"))
    config = recipe(tmp_path / "corpus", corpus)
    pipeline.prepare(config)
    first = Layout.of(config).cuts("train").read_bytes()
    pipeline.prepare(config)
    assert Layout.of(config).cuts("train").read_bytes() == first


@pytest.mark.parametrize("corpus", [{"type": "kaldi"}, {"type": "nemo"}, {"type": "audiofolder", "path": "", "metadata": "x"}])
def test_settings_that_lack_a_folder_are_refused(tmp_path, corpus):
    with pytest.raises(SmoeError):
        recipe(tmp_path / "corpus", corpus)
