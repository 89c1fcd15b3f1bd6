"""A tab-separated table of utterances: id, path, split, speaker, sample_rate, duration, transcript, translations."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from smoe_cli.audio import TOLERANCE_S, check_readable, write_flac
from smoe_cli.corpora.files import can_name_a_file, is_file, recording_of
from smoe_cli.corpora.lines import found, made_at_once, said_band, table_rows, text_lines
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import TsvCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within

REFERENCE_SEPARATOR = " ||| "
LONGEST_GAP_MS = 60_000
"""Between joined recordings; more is a mistake, and could fill the memory."""


def read(settings: TsvCorpus, work: Work) -> Iterator[Utterance]:
    """Yield the rows that the settings keep; `work.jobs` threads open their audio, and join it where it has segments.

    Raises:
        DataError: If the table is missing or unreadable or lacks a column. A line with an empty or superfluous field, or audio
            that is not as listed, goes to `work.unfit`.
    """
    table = found(work.root / settings.path, settings, work, "path", "table")
    # Lines are read ahead of the rows that are made, and what is wrong with one is said when it is its turn.
    ahead, total = replace(work, problems=[]), 0 if work.dry_run else sum(1 for _ in _lines(table, lambda _: None)) - 1
    under_way: deque[int] = deque()

    def rows() -> Iterator[tuple[str, dict[str, str] | DataError]]:
        for number, where, row in _rows(table, settings, ahead):
            under_way.extend([number] * (len(ahead.problems) + 1))
            yield from (("", problem) for problem in ahead.problems)
            ahead.problems.clear()
            yield where, row

    def make(where: str, row: dict[str, str] | DataError) -> Utterance:
        if isinstance(row, DataError):
            raise row
        return _utterance(row, settings, work, table.parent, where)

    try:
        for utterance in made_at_once(rows(), make, work):
            work.progress(under_way.popleft(), total, f"{work.name}: rows")
            if utterance is not None:
                yield utterance
    finally:
        work.problems.extend(ahead.problems)
    work.progress(total, total, f"{work.name}: rows")


def _utterance(row: dict[str, str], settings: TsvCorpus, work: Work, folder: Path, where: str) -> Utterance:
    for column in ("id", "split", settings.segments_column or "path"):
        if not row[column].strip():
            raise DataError(f"{where}: `{column}` is empty", "fill it in, or remove the line")
    paths = [folder / part for part in (row[settings.segments_column].split() if settings.segments_column else [row["path"]])]
    if settings.untrusted:
        for path in paths:
            check_within(path, work.root, where)
    path = _join_segments(row, settings.segments_column, folder, work.audio_dir) if settings.segments_column else paths[0]
    recording = recording_of(path, row["id"])
    _compare(row, "sample_rate", recording.sampling_rate, 0.0, where)
    _compare(row, "duration", recording.duration, TOLERANCE_S, where)
    return Utterance(
        id=row["id"],
        recording=recording,
        split=row["split"],
        speaker=row.get("speaker", ""),
        language=row[settings.language_column].strip() if settings.language_column else "",
        transcript=row["transcript"],
        translations={lang: _references(row[column]) for lang, column in settings.translations.items() if row[column].strip()},
        subset=row[settings.subset_column] if settings.subset_column else "",
        tags=_filled(row, settings.tag_columns),
        labels=_filled(row, settings.label_columns),
        bandwidth=said_band(row, settings.bandwidth_column),
        source=where,
    )


def _filled(row: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """Name -> what its column says, where it says something."""
    return {name: row[column].strip() for name, column in columns.items() if row[column].strip()}


def _references(text: str) -> list[str]:
    return [part.strip() for part in text.split(REFERENCE_SEPARATOR) if part.strip()]


def _lines(table: Path, unfit: Callable[[DataError], None]) -> Iterator[tuple[int, str]]:
    """The lines of a table; empty ones at its end are none."""
    empty: list[tuple[int, str]] = []
    for number, line in text_lines(table, unfit, cure="convert the table to UTF-8"):
        empty.append((number, line))
        if line:
            yield from empty
            empty.clear()


def _rows(table: Path, settings: TsvCorpus, work: Work) -> Iterator[tuple[int, str, dict[str, str]]]:
    """(how many rows were read, place, row) of each row that `splits`, `where` and `minimum` keep."""
    audio = (settings.segments_column, "gaps_ms") if settings.segments_column else ("path",)
    texts = (settings.translations, settings.tag_columns, settings.label_columns)
    named = (
        settings.language_column,
        settings.subset_column,
        settings.bandwidth_column,
        *(column for some in texts for column in some.values()),
    )
    needed = ("id", "split", "transcript", *audio, *named, *settings.where, *settings.minimum)
    lines = islice(_lines(table, work.unfit), 1 if work.dry_run else None)
    for done, (where, row) in enumerate(table_rows(table, lines, needed, work), start=1):
        try:
            kept = (
                settings.split_of(row["split"]) is not None
                and all(row[column] in kept for column, kept in settings.where.items())
                and all(_number(row[column], f"{where}: `{column}`") >= least for column, least in settings.minimum.items())
            )
        except DataError as error:
            work.unfit(error)
            continue
        if kept:
            yield done, where, row


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{where}: `{text}` is not a number", "correct the table")
    return value


def _compare(row: dict[str, str], column: str, heard: float, tolerance: float, where: str) -> None:
    listed = row.get(column, "").strip()
    if listed and abs(_number(listed, f"{where}: `{column}`") - heard) > tolerance:
        raise DataError(f"{where}: `{column}` says {listed}, the audio has {heard:g}", "correct the table, or bring back the right file")


def _gap_ms(text: str, where: str) -> int:
    value = _number(text, where)
    if not 0 <= value <= LONGEST_GAP_MS:
        raise DataError(f"{where}: `{text}` is no gap of 0 to {LONGEST_GAP_MS:,} ms", "correct the table")
    return round(value)


def _join_segments(row: dict[str, str], column: str, folder: Path, audio_dir: Path) -> Path:
    """Join recordings with `gaps_ms` of faint noise (about -80 dBFS) before, between and after them.

    The noise is drawn from the id, so the same row always gives the same samples.
    """
    for part in ("id", "split"):
        if not can_name_a_file(row[part]):
            raise DataError(
                f"utterance {row['id']!r}: `{part}` names the joined file, and {row[part]!r} cannot",
                "leave out `/`, `..` and control characters, and shorten what is longer than 200 bytes",
            )
    # The name tells what it was joined from: a corrected row does not find the old audio.
    made_from = zlib.crc32(f"{folder.resolve()}\t{row[column]}\t{row['gaps_ms']}".encode())
    target = audio_dir / row["split"] / f"{row['id']}.{made_from:08x}.flac"
    if is_file(target):
        return target
    paths = [folder / part for part in row[column].split()]
    gaps_ms = [_gap_ms(gap, f"utterance `{row['id']}`: `gaps_ms`") for gap in row["gaps_ms"].split()]
    if len(gaps_ms) != len(paths) + 1:
        raise DataError(
            f"utterance `{row['id']}`: {len(paths)} segments need {len(paths) + 1} gaps, the table has {len(gaps_ms)}", "correct `gaps_ms`"
        )
    segments = [recording_of(path, row["id"]) for path in paths]
    for segment in segments:
        check_readable(segment)
    rates = {segment.sampling_rate for segment in segments}
    if len(rates) != 1:
        raise DataError(f"utterance `{row['id']}` joins segments of different sampling rates {sorted(rates)}", "resample them first")
    rate = rates.pop()
    generator = np.random.default_rng(zlib.crc32(row["id"].encode()))
    parts: list[np.ndarray] = []
    for gap, path in zip(gaps_ms, [*paths, None], strict=True):
        parts.append(generator.integers(-3, 4, gap * rate // 1000).astype(np.int16))
        if path is not None:
            parts.append(soundfile.read(path, dtype="int16")[0])
    write_flac(target, np.concatenate(parts), rate)
    return target
