"""Audio folders as Hugging Face has them: a folder per split, in it `metadata.csv` or `metadata.jsonl` and the files that it names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from smoe_cli.corpora.files import Named, is_file, recording_of
from smoe_cli.corpora.lines import (
    answers_of,
    bounded,
    each_split,
    found,
    id_of,
    lacking,
    objects,
    row_of,
    said_band,
    text_of,
    texts_of,
    utterances,
)
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import AudioFolderCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within, refuse_other_bytes

FILE = "file_name"
TABLES = ("metadata.csv", "metadata.jsonl")


def read(settings: AudioFolderCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per row, in the order of the table.

    Raises:
        Nothing: a table that is missing or unreadable, or lacks a column, goes to `work.lost`; a row that is damaged, or names audio
            that is not there, to `work.unfit`. Audio that no row names is counted in `work.left_out`.
    """

    def folder(split: str, name: str) -> Iterator[Utterance]:
        table = _table(split, name, settings, work)
        rows: Iterator[tuple[str, Mapping[str, Any]]]
        rows = _objects(table, settings, work) if table.suffix == ".jsonl" else _csv_rows(table, settings, work)
        if work.dry_run:
            if table.suffix == ".csv":
                next(rows, None)
            return
        with table.open("rb") as file:
            total = sum(1 for _ in bounded(file, table)) - (table.suffix == ".csv")

        named = Named()

        def make(where: str, row: Mapping[str, Any]) -> Utterance:
            return _utterance(where, row, table.parent, split, settings, work, named)

        yield from utterances(rows, total, make, work, f"{split} rows")
        named.report_others([table.parent], work, f"that no row of `{table}` names")

    yield from each_split(settings, settings.folders, work, "path", folder)


def _table(split: str, name: str, settings: AudioFolderCorpus, work: Work) -> Path:
    """The table of a folder.

    Raises:
        DataError: If it is missing.
    """
    place = work.root / settings.path / name
    others = [other for other in TABLES if other != settings.metadata and is_file(place / other)]
    cure = f"there is `{others[0]}`: say `data.corpora.{work.name}.metadata: {others[0]}`" if others else ""
    if not others and is_file(place.parent / settings.metadata):
        cure = f"there is one for all splits, `{place.parent / settings.metadata}`: write one in each split's folder, paths starting there"
    return found(place / settings.metadata, settings, work, f"folders.{split}", "table", cure)


def _columns(settings: AudioFolderCorpus) -> list[str]:
    """Every column that the settings name."""
    whose = (settings.id_column, settings.speaker_column, settings.language_column, settings.subset_column, settings.bandwidth_column)
    several = (settings.translations, settings.tag_columns, settings.label_columns)
    return [FILE, settings.transcript_column, *(name for name in whose if name), *(name for some in several for name in some.values())]


def _objects(table: Path, settings: AudioFolderCorpus, work: Work) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a table that has no header: a column is what at least one of them has. Most often the first has all."""
    first: list[str] = []
    columns = dict.fromkeys(_columns(settings), False)
    for _, row in objects(table, replace(work, problems=[])):
        first = first or list(row)
        columns |= {name: True for name in columns if name in row}
        if all(columns.values()):
            break
    if first:
        lacking(columns, list(dict.fromkeys([*first, *(name for name, there in columns.items() if there)])), table)
    yield from objects(table, work)


def _csv_rows(table: Path, settings: AudioFolderCorpus, work: Work) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with table.open("rb") as head:
            refuse_other_bytes(head.read(2), table, "convert the table to UTF-8")
        # Bytes that are not UTF-8 are kept as they are, and refused in their row: the others can still be looked at.
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(bounded(file, table), strict=True)
            header = next(rows, [])
            lacking(_columns(settings), header, table)
            start = rows.line_num + 1
            for fields in rows:
                where, start = f"`{table}` line {start}", rows.line_num + 1
                if fields and (
                    row := row_of(header, fields, where, work, "quote fields that hold commas or line breaks, or remove the line")
                ):
                    yield where, row
    except csv.Error as error:
        # Nobody can tell how many rows follow: no single one can be left out.
        raise DataError(f"`{table}` line {rows.line_num}: {error}", "it must be a table with commas, quoted as in RFC 4180") from error
    except OSError as error:
        raise DataError(f"cannot read table `{table}`: {error.strerror}", "check the file and its rights") from error


def _utterance(
    where: str, row: Mapping[str, Any], folder: Path, split: str, settings: AudioFolderCorpus, work: Work, named: Named
) -> Utterance:
    def said(column: str | None) -> str:
        if column is None:
            return ""
        if column not in row:
            raise DataError(f"the row has no `{column}`", "fill it in, or name the column in the recipe as the table does")
        return text_of(row, column)

    name = said(FILE)
    if not name:
        raise DataError(f"`{FILE}` is empty", "name the audio file, or remove the line")
    named.add(folder / name)
    if settings.untrusted:
        check_within(folder / name, work.root, where)
    utterance_id = said(settings.id_column) or id_of(folder / name, work.root / settings.path)
    return Utterance(
        id=utterance_id,
        recording=recording_of(folder / name, utterance_id),
        split=split,
        speaker=said(settings.speaker_column),
        language=said(settings.language_column),
        transcript=said(settings.transcript_column),
        translations=answers_of(row, settings.translations),
        subset=said(settings.subset_column),
        tags=texts_of(row, settings.tag_columns),
        labels=texts_of(row, settings.label_columns),
        bandwidth=said_band(row, settings.bandwidth_column),
        source=where,
    )
