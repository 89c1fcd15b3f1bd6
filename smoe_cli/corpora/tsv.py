"""A tab-separated table of utterances: id, path, split, speaker, sample_rate, duration, transcript, translations."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from smoe_cli.audio import TOLERANCE_S, check_readable, describe, write_flac
from smoe_cli.config import TsvCorpus
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.errors import DataError

REFERENCE_SEPARATOR = " ||| "


def read(settings: TsvCorpus, work: Work) -> Iterator[Utterance]:
    """Yield the rows that the settings keep.

    Raises:
        DataError: Naming table and line of a missing column, an empty field or audio that is not as listed.
    """
    table = work.root / settings.path
    rows = list(_rows(table, settings))
    for done, (line, row) in enumerate(rows, start=1):
        where = f"`{table}` line {line}"
        for column in ("id", "split"):
            if not row[column].strip():
                raise DataError(f"{where}: `{column}` is empty", "fill it in, or remove the line")
        if settings.segments_column:
            path = _join_segments(row, settings.segments_column, table.parent, work.audio_dir)
        else:
            path = table.parent / row["path"]
        recording = describe(path, row["id"])
        _compare(row, "sample_rate", recording.sampling_rate, 0.0, where)
        _compare(row, "duration", recording.duration, TOLERANCE_S, where)
        yield Utterance(
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
        )
        work.progress(done, len(rows), f"{work.name}: rows")


def _filled(row: dict[str, str], columns: dict[str, str]) -> dict[str, str]:
    """Name -> what its column says, where it says something."""
    return {name: row[column].strip() for name, column in columns.items() if row[column].strip()}


def _references(text: str) -> list[str]:
    return [part.strip() for part in text.split(REFERENCE_SEPARATOR) if part.strip()]


def _rows(table: Path, settings: TsvCorpus) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of each row that `splits`, `where` and `minimum` keep."""
    try:
        lines = table.read_text(encoding="utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise DataError(
            f"no table `{table}`", "set `data.root` to the folder that holds the corpus, for example --set data.root=FOLDER"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read table `{table}`: {error}", "it must be UTF-8 text, tab-separated") from error
    header = lines[0].split("\t") if lines else []
    audio = (settings.segments_column, "gaps_ms") if settings.segments_column else ("path",)
    texts = (settings.translations, settings.tag_columns, settings.label_columns)
    named = (settings.language_column, settings.subset_column, *(column for some in texts for column in some.values()))
    missing = [
        name
        for name in ("id", "split", "transcript", *audio, *named, *settings.where, *settings.minimum)
        if name is not None and name not in header
    ]
    if missing:
        raise DataError(
            f"table `{table}` has no column {', '.join(f'`{name}`' for name in missing)}; it has: {', '.join(header)}",
            "name the columns in the recipe as the table does",
        )
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(
                f"`{table}` line {number} has {len(fields)} fields, the header {len(header)}", "remove stray tabs or line breaks"
            )
        row = dict(zip(header, fields, strict=True))
        if (
            settings.splits.get(row["split"], row["split"]) is not None
            and all(row[column] in kept for column, kept in settings.where.items())
            and all(_number(row[column], f"`{table}` line {number}: `{column}`") >= least for column, least in settings.minimum.items())
        ):
            yield number, row


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: `{text}` is not a number", "correct the table") from None


def _compare(row: dict[str, str], column: str, found: float, tolerance: float, where: str) -> None:
    listed = row.get(column, "").strip()
    if listed and abs(_number(listed, f"{where}: `{column}`") - found) > tolerance:
        raise DataError(f"{where}: `{column}` says {listed}, the audio has {found:g}", "correct the table, or bring back the right file")


def _join_segments(row: dict[str, str], column: str, source_dir: Path, audio_dir: Path) -> Path:
    """Join recordings with `gaps_ms` of faint noise (about -80 dBFS) before, between and after them.

    The noise is drawn from the id, so the same row always gives the same samples.
    """
    for part in ("id", "split"):
        if Path(row[part]).name != row[part]:
            raise DataError(f"utterance `{row['id']}`: `{part}` names the joined file, and `{row[part]}` cannot", "leave out `/`")
    # The name tells what it was joined from: a corrected row does not find the old audio.
    made_from = zlib.crc32(f"{source_dir.resolve()}\t{row[column]}\t{row['gaps_ms']}".encode())
    target = audio_dir / row["split"] / f"{row['id']}.{made_from:08x}.flac"
    if target.is_file():
        return target
    paths = [source_dir / part for part in row[column].split()]
    gaps_ms = [round(_number(gap, f"utterance `{row['id']}`: `gaps_ms`")) for gap in row["gaps_ms"].split()]
    if len(gaps_ms) != len(paths) + 1:
        raise DataError(
            f"utterance `{row['id']}`: {len(paths)} segments need {len(paths) + 1} gaps, the table has {len(gaps_ms)}", "correct `gaps_ms`"
        )
    segments = [describe(path, row["id"]) for path in paths]
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
