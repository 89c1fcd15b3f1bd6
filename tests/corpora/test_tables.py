"""Laws of tables: which column is meant is never guessed, and what is listed is a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.errors import SmoeError
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


def test_a_column_that_occurs_twice_in_an_audio_folder_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    table, splits = "file_name,transcription,transcription\na.wav,yes,no\n", {"dev": None, "test": None}
    with pytest.raises(SmoeError, match=r"has several columns named `transcription`"):
        prepare(tmp_path, table, "train/metadata.csv", type="audiofolder", path=".", splits=splits)
