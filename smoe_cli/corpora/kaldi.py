"""Data folders of Kaldi and ESPnet: tables of `key value`, one line each. Nothing that they say is run, unless the recipe allows it.

Kaldi sorts its tables, so those about utterances are walked side by side, a line of each in memory. A table that is not sorted is held in
memory whole; so are, beside `segments`, the tables about recordings.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lhotse import Recording

from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.files import recording_of
from smoe_cli.corpora.lines import each_split, found, text_lines, utterances
from smoe_cli.corpora.outside import COMMAND, URL, Named, Outside
from smoe_cli.corpora.utterance import Utterance, Work, placed
from smoe_cli.corpus_settings import KaldiCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within, cure_of

OFFSET = re.compile(r"\.ark:\d+(\[.*\])?$")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
WHOLE = -1.0
"""End of a segment that goes to the end of its recording."""


class _Row(NamedTuple):
    """A line of a table. Its place is put into words only where it is needed."""

    key: str
    number: int
    value: str


@dataclass(frozen=True)
class _Table:
    """One file about utterances, read as often as asked."""

    path: Path
    work: Work

    def rows(self, unfit: Callable[[DataError], None] | None = None) -> Iterator[_Row]:
        """Yield its rows sorted by key, each key once.

        Args:
            unfit: Called for what is wrong with a line, which is left out; None: `work.unfit`.
        """
        unfit = unfit or self.work.unfit
        if self._is_sorted():
            last = ""
            for row in _rows(self.path, unfit):
                if row.key == last:
                    unfit(_twice(self.path, row))
                else:
                    last = row.key
                    yield row
            return
        yield from sorted(_held(self.path, unfit).values())

    def _is_sorted(self) -> bool:
        return all(one.key <= other.key for one, other in pairwise(_rows(self.path, lambda error: None)))

    def count(self) -> int:
        """About how many rows it has."""
        return sum(1 for _ in _rows(self.path, lambda error: None))

    def where(self, row: _Row) -> str:
        return f"`{self.path}` line {row.number}"


class _Beside:
    """A table beside the one that lists the utterances: asked for their keys, which come sorted.

    Args:
        table: What it says of utterances.
        listing: The table that lists them.
    """

    def __init__(self, table: _Table, listing: _Table) -> None:
        self.path, self._table, self._listing = table.path, table, listing
        self._rows = table.rows()
        self._next = next(self._rows, None)

    def of(self, key: str) -> str | None:
        """What it says of an utterance; None: nothing. Lines before it are about utterances that there are none."""
        while self._next is not None and self._next.key < key:
            self._report_stray(self._next)
            self._next = next(self._rows, None)
        if self._next is None or self._next.key != key:
            return None
        value, self._next = self._next.value, next(self._rows, None)
        return value

    def end(self) -> None:
        """No more utterances will come."""
        while self._next is not None:
            self._report_stray(self._next)
            self._next = next(self._rows, None)

    def _report_stray(self, row: _Row) -> None:
        """A line about an utterance that does not exist: most often, something was lost."""
        self._table.work.unfit(
            DataError(
                f"{self._table.where(row)} is about utterance `{row.key}`, which `{self._listing.path.name}` lacks",
                "bring back the line there, or remove this one (`utils/fix_data_dir.sh`)",
            )
        )


@dataclass(frozen=True)
class _Held:
    """One file about recordings, in memory: segments ask for them in any order."""

    path: Path
    rows: dict[str, _Row]

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def where(self, key: str) -> str:
        return f"`{self.path}` line {self.rows[key].number}"


@dataclass(frozen=True)
class _Folder:
    """The tables of one split; with segments, `wav.scp` and the recordings that were opened so far are in memory."""

    path: Path
    split: str
    listing: _Table
    wavs: _Held | None
    channels: _Held | None
    transcripts: _Beside | None
    translations: dict[str, list[_Beside]]
    speakers: _Beside | None
    languages: _Beside | None
    outside: Outside
    opened: dict[tuple[str, bool], tuple[Recording, int] | DataError] = field(default_factory=dict)

    def beside(self) -> list[_Beside]:
        """All tables beside the listing."""
        some = (self.transcripts, *(table for tables in self.translations.values() for table in tables), self.speakers, self.languages)
        return [table for table in some if table is not None]


def read(settings: KaldiCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per segment, or per recording where there are no segments, sorted by id.

    Raises:
        Unwritable: If audio of a command or an address cannot be written. A folder that lacks a file which the settings name goes to
            `work.lost`; a line that is damaged, is a command that the settings do not allow, or names what another file lacks, to
            `work.unfit`.
    """

    def read_folder(split: str, name: str) -> Iterator[Utterance]:
        if work.dry_run:
            for file, cure in {"wav.scp": "", **_texts(settings, work)}.items():
                found(work.root / settings.path / name / file, settings, work, f"folders.{split}", "file", cure)
            return
        folder = _open(split, work.root / settings.path / name, settings, work)
        folder.outside.bring(_outside(folder))
        rows = ((folder.listing.where(row), row) for row in folder.listing.rows())

        def make(where: str, row: _Row) -> Utterance:
            return _utterance(where, row, folder, settings, work)

        yield from utterances(rows, folder.listing.count(), make, work, f"{split} utterances")
        for table in folder.beside():
            table.end()

    yield from each_split(settings, settings.folders, work, "path", read_folder)


def _translations(settings: KaldiCorpus) -> dict[str, list[str]]:
    """Target language -> files with the right answers."""
    return {lang: [names] if isinstance(names, str) else names for lang, names in settings.translations.items()}


def _texts(settings: KaldiCorpus, work: Work) -> dict[str, str]:
    """Text file -> what to do if it is not there. The folder is, as it has a list of its recordings."""
    named = [(settings.text, "text", "`null`: there are no transcripts")] if settings.text else []
    for lang, names in _translations(settings).items():
        named += [(name, f"translations.{lang}", "an empty one: nothing is translated here") for name in names]
    return {name: f"correct `data.corpora.{work.name}.{setting}`, or bring the file back; {none}" for name, setting, none in named}


def _open(split: str, path: Path, settings: KaldiCorpus, work: Work) -> _Folder:
    def table(name: str, cure: str = "") -> _Table:
        return _Table(found(path / name, settings, work, f"folders.{split}", "file", cure), work)

    def texts(name: str) -> _Beside:
        return _Beside(table(name, cures[name]), listing)

    def table_if_any(name: str) -> _Table | None:
        # A link that leads nowhere is a file that was lost, not one that never was.
        return table(name) if os.path.lexists(path / name) else None

    def held(table: _Table | None) -> _Held | None:
        return None if table is None else _Held(table.path, _held(table.path, work.unfit))

    wavs, segments = table("wav.scp"), table_if_any("segments")
    listing = wavs if segments is None else segments

    def beside(table: _Table | None) -> _Beside | None:
        return None if table is None else _Beside(table, listing)

    cures = _texts(settings, work)
    return _Folder(
        path=path,
        split=split,
        listing=listing,
        wavs=None if segments is None else held(wavs),
        channels=held(table_if_any("reco2file_and_channel")),
        transcripts=texts(settings.text) if settings.text else None,
        translations={lang: [texts(name) for name in names] for lang, names in _translations(settings).items()},
        speakers=beside(table_if_any("utt2spk")),
        languages=beside(table_if_any("utt2lang")),
        outside=Outside(settings.allow_sources, work, path if settings.audio_root is None else work.root / settings.audio_root),
    )


def _rows(path: Path, unfit: Callable[[DataError], None]) -> Iterator[_Row]:
    empty: list[int] = []  # said only where a row follows: at the end they are no loss
    for number, line in text_lines(path, unfit):
        parts = line.split(None, 1)
        if not parts:
            empty.append(number)
            continue
        for one in empty:
            unfit(DataError(f"`{path}` line {one} is empty", "remove the line"))
        empty.clear()
        yield _Row(parts[0], number, parts[1].strip() if len(parts) > 1 else "")


def _held(path: Path, unfit: Callable[[DataError], None]) -> dict[str, _Row]:
    """Key -> row."""
    rows: dict[str, _Row] = {}
    for row in _rows(path, unfit):
        if row.key in rows:
            unfit(_twice(path, row))
        else:
            rows[row.key] = row
    return rows


def _twice(path: Path, row: _Row) -> DataError:
    return DataError(f"`{path}` line {row.number}: `{row.key}` occurs before", "each key has one line; remove or rename one")


def _outside(folder: _Folder) -> Iterator[Named]:
    """Commands and addresses that the utterances need, and that are allowed."""
    if not folder.outside.allowed:
        return
    for row in folder.listing.rows(lambda error: None):
        value = row.value
        if folder.wavs is not None:
            try:
                value = folder.wavs.rows[_line_of(next(iter(row.value.split()), ""), folder, folder.wavs)[0]].value
            except DataError:  # said where the utterance is made
                continue
        named = _named(value)
        if named is not None and named.kind in folder.outside.allowed:
            yield named


def _utterance(where: str, row: _Row, folder: _Folder, settings: KaldiCorpus, work: Work) -> Utterance:
    # First, and whatever else is wrong: each table goes on to the next utterance.
    told = {id(table): table.of(row.key) for table in folder.beside()}
    start_s, end_s = 0.0, WHOLE
    if folder.wavs is None:
        recording, channel = _alone(where, row, folder, settings, work)
    else:
        recording_id, start_s, end_s, side = _segment(row.value)
        recording, channel = _recording(recording_id, side, folder, folder.wavs, settings, work)

    def said(table: _Beside | None) -> str:
        if table is None:
            return ""
        value = told[id(table)]
        if value is None:
            raise DataError(f"utterance `{row.key}` has no line in `{table.path}`", "write it, or remove the utterance everywhere")
        return value

    right = {lang: [text for table in tables if (text := told[id(table)])] for lang, tables in folder.translations.items()}
    return Utterance(
        id=row.key,
        recording=recording,
        split=folder.split,
        speaker=said(folder.speakers),
        language=said(folder.languages),
        transcript=said(folder.transcripts),
        translations={lang: texts for lang, texts in right.items() if texts},
        start_s=start_s,
        duration_s=None if end_s == WHOLE else end_s - start_s,
        channel=channel,
        source=where,
    )


def _segment(value: str) -> tuple[str, float, float, int | None]:
    """Recording, start, end and, as Kaldi's `extract-segments` has it, perhaps a channel from 0."""
    parts = value.split()
    try:
        recording_id, start_s, end_s = parts[0], float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        parts = []
    if len(parts) not in (3, 4) or not (math.isfinite(start_s) and start_s >= 0 and (end_s == WHOLE or start_s < end_s < math.inf)):
        raise DataError(f"`{value}` is no recording, start and end in seconds", "write `UTTERANCE RECORDING START END`; END may be -1")
    channel = parts[3] if len(parts) == 4 else None
    if channel is not None and not (channel.isascii() and channel.isdecimal() and len(channel) <= 2):
        raise DataError(f"`{channel}` is no channel", "write a number from 0 behind the end, or nothing if the recording has one channel")
    return recording_id, start_s, end_s, None if channel is None else int(channel)


def _alone(where: str, row: _Row, folder: _Folder, settings: KaldiCorpus, work: Work) -> tuple[Recording, int]:
    """The recording that is an utterance, and the channel of it."""
    channel = None
    if folder.channels is not None and row.key in folder.channels:
        _, channel = _file_and_channel(folder.channels.rows[row.key].value, folder.channels.where(row.key))
    return _described(row.key, where, row.value, channel, folder, settings, work)


def _recording(
    recording_id: str, side: int | None, folder: _Folder, wavs: _Held, settings: KaldiCorpus, work: Work
) -> tuple[Recording, int]:
    """A recording and the channel of it; its header is read once for all its segments.

    Args:
        side: The channel that the segment names; None: none.
    """
    key = recording_id, side is None
    if key not in folder.opened:
        try:
            name, channel = _line_of(recording_id, folder, wavs)
            # A segment that names its channel may be of a recording with several.
            channel = 0 if channel is None and side is not None else channel
            line = wavs.rows[name].value
            folder.opened[key] = _described(recording_id, wavs.where(name), line, channel, folder, settings, work)
        except Unwritable:
            raise
        except DataError as error:
            folder.opened[key] = error
    opened = folder.opened[key]
    if isinstance(opened, DataError):
        raise opened
    recording, channel = opened
    if side is None:
        return opened
    if side >= recording.num_channels:
        raise DataError(
            f"channel {side} is wanted of recording `{recording_id}`, whose channels are 0 to {recording.num_channels - 1}",
            "correct the channel behind the end of the segment, or bring back the right file",
        )
    if folder.channels is not None and recording_id in folder.channels and recording.num_channels > 1 and side != channel:
        told = folder.channels.where(recording_id)
        raise DataError(
            f"channel {side} is wanted of recording `{recording_id}`, which {told} says is channel {channel}",
            "correct one of them; `segments` counts from 0, A is 0",
        )
    return recording, side


def _described(
    recording_id: str, where: str, value: str, channel: int | None, folder: _Folder, settings: KaldiCorpus, work: Work
) -> tuple[Recording, int]:
    """What a line of `wav.scp` names."""
    try:
        path = _path(value, where, folder, settings, work)
        recording = recording_of(path, recording_id, 1 if channel is None else None)
        if channel is not None and 1 < recording.num_channels <= channel:
            raise DataError(
                f"audio `{path}` has {recording.num_channels} channels, and number {channel + 1} is wanted",
                "correct `reco2file_and_channel`, or bring back the right file",
            )
    except Unwritable:
        raise
    except DataError as error:
        raise placed(error, where) from error
    # A file of one channel was taken apart already.
    return recording, (channel or 0) if recording.num_channels > 1 else 0


def _line_of(recording_id: str, folder: _Folder, wavs: _Held) -> tuple[str, int | None]:
    """Which line of `wav.scp` a recording has, and its channel; None: the only one."""
    file_id, channel = recording_id, None
    if folder.channels is not None and recording_id in folder.channels:
        file_id, channel = _file_and_channel(folder.channels.rows[recording_id].value, folder.channels.where(recording_id))
    name = recording_id if recording_id in wavs else file_id
    if name not in wavs:
        raise DataError(f"recording `{recording_id}` has no line in `{wavs.path}`", "write it, or remove the recording's utterances")
    return name, channel


def _path(value: str, where: str, folder: _Folder, settings: KaldiCorpus, work: Work) -> Path:
    """The file of a line of `wav.scp`."""
    named = _named(value)
    if named is not None and named.kind in folder.outside.allowed:
        return folder.outside.file_of(named)
    _check_names_a_file(value, where, settings)
    path = (folder.path if settings.audio_root is None else work.root / settings.audio_root) / value
    if settings.untrusted:
        check_within(path, work.root, where)
    return path


def _named(value: str) -> Named | None:
    """The command or the address that a line is; None: it is neither."""
    if value.endswith("|") and not value.startswith("|"):
        return Named(COMMAND, value.removesuffix("|").strip())
    return Named(URL, value) if ADDRESS.match(value) else None


def _file_and_channel(value: str, where: str) -> tuple[str, int]:
    """What `reco2file_and_channel` says: the file, and its channel from 0; Kaldi writes A and B, or counts from 1."""
    parts = value.split()
    name = parts[1].upper() if len(parts) == 2 else ""
    if name in ("A", "B"):
        return parts[0], "AB".index(name)
    if name.isdecimal() and len(name) <= 2 and int(name) >= 1:
        return parts[0], int(name) - 1
    raise DataError(f"{where}: `{value}` is no file and channel", "write `RECORDING FILE A`; channels are A and B, or 1, 2, ...")


def _check_names_a_file(value: str, where: str, settings: KaldiCorpus) -> None:
    """Refuse what Kaldi would run, or read from within an archive, and what is on another machine.

    Raises:
        DataError: If it is no plain path.
    """
    if value.endswith("|") or value.startswith("|"):
        once = "write what it gives to a file once (COMMAND > FILE.wav) and name that file in `wav.scp`"
        allow = "let `smoe prepare --allow-sources command` run it once and keep the audio, or "
        raise DataError(
            f"{where} is a command, and commands of a data folder are not run unless you allow it: `{value}`",
            f"look at the command; if it is sound, {'' if settings.untrusted or value.startswith('|') else allow}{once}",
        )
    if ADDRESS.match(value):
        raise DataError(f"{where} is an address, and nothing is fetched unless you allow it: `{value}`", cure_of(URL))
    if not value or value == "-":
        raise DataError(f"{where} names no audio file", "write `RECORDING PATH`")
    if OFFSET.search(value):
        raise DataError(f"{where} names a place in an archive, `{value}`", "write the audio to files (`wav-copy`), and name these")
