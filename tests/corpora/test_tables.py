"""Laws of tables: which column is meant is never guessed, and what is listed is a number."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.corpora import audiofolder, tsv
from smoe_cli.corpora.segments import Source
from smoe_cli.corpora.utterance import Work
from smoe_cli.corpus_settings import AudioFolderCorpus, CovostCorpus
from smoe_cli.errors import SmoeError
from smoe_cli.manifests import LONGEST_LINE
from tests.conftest import tiny_config


def prepare(folder: Path, table: str, name: str, **corpus: object) -> None:
    soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    (folder / name).write_text(table, encoding="utf-8")
    pipeline.prepare(tiny_config(folder / "exp", data={"root": str(folder), "corpora": {"calls": corpus}}))


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("id\tpath\tsplit\ttranscript\ttranscript", "a\ta.wav\ttrain\tyes\tno", r"has several columns named `transcript`"),
        ("id\tpath\tsplit\ttranscript\tduration", "a\ta.wav\ttrain\tyes\tnan", r"line 2: `duration`: `nan` is not a number"),
        ("id\tpath\tsplit\ttranscript\tsample_rate", "a\ta.wav\ttrain\tyes\tNaN", r"line 2: `sample_rate`: `NaN` is not a number"),
        ("", "", r"is empty, or its first line is"),
    ],
)
def test_a_table_that_does_not_say_what_is_meant_is_refused(tmp_path, header, row, said):
    with pytest.raises(SmoeError, match=said):
        prepare(tmp_path, f"{header}\n{row}\n", "calls.tsv", type="tsv", path="calls.tsv")


@pytest.mark.parametrize(
    ("field", "said"),
    [("inf 0", "`inf` is no gap of 0 to 60,000 ms"), ("0 -5", "`-5` is no gap"), ("0 99999999999999", "`99999999999999` is no gap")],
)
def test_a_gap_that_no_pause_lasts_is_refused(tmp_path, field, said):
    table = f"id\tsegments\tgaps_ms\tsplit\ttranscript\na\ta.wav\t{field}\ttrain\tyes\n"
    with pytest.raises(SmoeError, match=rf"line 2: utterance `a`: `gaps_ms`: {said}"):
        prepare(tmp_path, table, "calls.tsv", type="tsv", path="calls.tsv", segments_column="segments")


def test_audio_that_has_no_header_is_refused_in_its_row(tmp_path):
    (tmp_path / "b.raw").write_bytes(bytes(3200))
    table = "id\tpath\tsplit\ttranscript\na\ta.wav\ttrain\tyes\nb\tb.raw\ttrain\tno\n"
    with pytest.raises(SmoeError, match=r"1 of 2 utterances .*\n`[^`]*calls.tsv` line 3: cannot open audio `[^`]*b.raw` \(utterance `b`\)"):
        prepare(tmp_path, table, "calls.tsv", type="tsv", path="calls.tsv")


@pytest.mark.parametrize("name", ["calls.tsv", "train/metadata.csv"])
def test_a_line_without_end_is_not_read_into_memory(tmp_path, name):
    (tmp_path / "train").mkdir()
    kind = (
        {"type": "tsv", "path": name}
        if name == "calls.tsv"
        else {"type": "audiofolder", "path": ".", "splits": {"dev": None, "test": None}}
    )
    with pytest.raises(SmoeError, match=rf"{name}` line 2 is longer than 4,194,304 bytes"):
        prepare(tmp_path, "id\tpath\n" + "x" * (LONGEST_LINE + 2), name, **kind)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_table_of_an_audio_folder_in_utf_16_is_called_what_it_is(tmp_path, encoding):
    (tmp_path / "train").mkdir()
    soundfile.write(tmp_path / "train" / "a.wav", np.ones(16000) / 9, 16000)
    (tmp_path / "train" / "metadata.csv").write_bytes("\ufefffile_name,transcription\na.wav,yes\n".encode(encoding))
    corpus = {"type": "audiofolder", "path": ".", "splits": {"dev": None, "test": None}}
    with pytest.raises(SmoeError, match=r"metadata.csv` is UTF-16\n\nhint: convert the table to UTF-8"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(tmp_path), "corpora": {"calls": corpus}}))


def test_a_table_that_is_packed_is_called_that(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000)) / 9, 16000)
    for name, said in (("t.tsv", r"t.tsv` is packed with gzip"), ("other.tsv", r"there is `other.tsv.gz`: unpack it")):
        (tmp_path / (name if name == "t.tsv" else "other.tsv.gz")).write_bytes(gzip.compress(b"id\tpath\n"))
        corpus = {"type": "tsv", "path": name}
        with pytest.raises(SmoeError, match=said):
            pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(tmp_path), "corpora": {"calls": corpus}}))


def test_one_table_above_the_folders_of_all_splits_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "metadata.csv").write_text("file_name,transcription\ntrain/a.wav,yes\n")
    corpus = {"type": "audiofolder", "path": ".", "splits": {"dev": None, "test": None}}
    with pytest.raises(SmoeError, match=r"no table `.*train/metadata.csv`\n\nhint: there is one for all splits, `.*metadata.csv`"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(tmp_path), "corpora": {"calls": corpus}}))


def test_empty_lines_of_a_table_of_an_audio_folder_are_no_rows(tmp_path):
    (tmp_path / "train").mkdir()
    soundfile.write(tmp_path / "train" / "a.wav", np.sin(np.arange(16000)) / 9, 16000)
    table = tmp_path / "train" / "metadata.csv"
    config = {"type": "audiofolder", "path": ".", "splits": {"dev": None, "test": None}}
    work = Work("clips", tmp_path, tmp_path / "audio")
    table.write_bytes(b"file_name,transcription\r\n\r\na.wav,yes\r\n\r\n")
    assert [one.id for one in audiofolder.read(AudioFolderCorpus.model_validate(config), work)] == ["train-a"]
    assert not work.problems and not work.losses
    table.write_bytes(b"file_name,transcription\n  \na.wav,yes\n")
    assert len(list(audiofolder.read(AudioFolderCorpus.model_validate(config), work))) == 1
    assert [problem.message.partition(" line ")[2] for problem in work.problems] == ["2 is empty"]


def test_a_row_that_nobody_foresaw_is_a_line_and_the_others_are_read(tmp_path, monkeypatch):
    """A fault of smoe is called one, with its place; it ends no run."""
    compare = tsv._compare

    def faulty(row: dict[str, str], *rest: object) -> None:
        if row["id"] == "b":
            raise OverflowError("int too large")
        compare(row, *rest)

    monkeypatch.setattr(tsv, "_compare", faulty)
    table = "id\tpath\tsplit\ttranscript\n" + "".join(f"{name}\ta.wav\ttrain\tyes\n" for name in "abc")
    said = r"1 of 3 utterances .*\n`[^`]*` line 3: smoe failed unexpectedly on this row: OverflowError: int too large \(test_tables.py"
    with pytest.raises(SmoeError, match=said) as caught:
        prepare(tmp_path, table, "calls.tsv", type="tsv", path="calls.tsv")
    assert "this is a fault in smoe" in caught.value.hint


def test_a_fault_that_no_row_can_cause_is_not_taken_for_one_of_a_row(tmp_path, monkeypatch):
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tsv, "_compare", out_of_memory)
    with pytest.raises(MemoryError):
        prepare(tmp_path, "id\tpath\tsplit\ttranscript\na\ta.wav\ttrain\tyes\n", "calls.tsv", type="tsv", path="calls.tsv")


def test_a_column_that_occurs_twice_in_an_audio_folder_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    table, splits = "file_name,transcription,transcription\na.wav,yes,no\n", {"dev": None, "test": None}
    with pytest.raises(SmoeError, match=r"has several columns named `transcription`"):
        prepare(tmp_path, table, "train/metadata.csv", type="audiofolder", path=".", splits=splits)


def test_a_table_of_a_published_corpus_is_not_held_in_memory(tmp_path):
    """CoVoST 2 needs a few rows of Common Voice's table of all clips."""
    (tmp_path / "validated.tsv").write_text(
        "path\tsentence\n" + "".join(f"{n}.mp3\t{'word ' * 20}\n" for n in range(20_000)), encoding="utf-8"
    )
    source = Source(
        CovostCorpus(type="covost", path=Path(), language="en", translations={"de": "de.tsv"}), Work("covost", tmp_path, tmp_path)
    )
    tracemalloc.start()
    rows = sum(1 for _ in source.table(tmp_path / "validated.tsv", ("path", "sentence")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 20_000
    assert peak < 500_000 < (tmp_path / "validated.tsv").stat().st_size / 4
