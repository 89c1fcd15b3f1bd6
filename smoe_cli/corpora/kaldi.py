"""Data folders of Kaldi and ESPnet: tables of `key value`, one line each. Nothing that they say is run, unless the recipe allows it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import Recording

from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.files import recording_of
from smoe_cli.corpora.lines import each_split, found, placed, text_lines, utterances
from smoe_cli.corpora.outside import COMMAND, URL, Named, Outside
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import KaldiCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within, cure_of

OFFSET = re.compile(r"\.ark:\d+(\[.*\])?$")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
WHOLE = -1.0
"""End of a segment that goes to the end of its recording."""


@dataclass(frozen=True)
class _Table:
    """One file: key -> number of its line, and value. A place is put into words only where it is needed: a table may have millions."""

    path: Path
    rows: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> str:
        return self.rows[key][1]

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def where(self, key: str) -> str:
        return f"`{self.path}` line {self.rows[key][0]}"


@dataclass(frozen=True)
class _Folder:
    """The tables of one split, and the recordings that were opened so far."""

    path: Path
    split: str
    wavs: _Table
    segments: _Table | None
    channels: _Table | None
    transcripts: _Table | None
    translations: dict[str, list[_Table]]
    speakers: _Table | None
    languages: _Table | None
    outside: Outside
    opened: dict[str, tuple[Recording, int] | DataError] = field(default_factory=dict)


def read(settings: KaldiCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per segment, or per recording where there are no segments, sorted by id.

    Raises:
        DataError: If a folder lacks a file that the settings name. A line that is damaged, is a command that the settings do not
            allow, or names what another file lacks, goes to `work.unfit`.
    """

    def read_folder(split: str, name: str) -> Iterator[Utterance]:
        folder = _open(split, work.root / settings.path / name, settings, work)
        keys = folder.segments if folder.segments is not None else folder.wavs
        _report_strays(folder, keys, settings, work)
        folder.outside.bring(_outside(folder, keys))
        rows = ((keys.where(key), key) for key in sorted(keys.rows))

        def make(where: str, key: str) -> Utterance:
            return _utterance(where, key, folder, settings, work)

        yield from utterances(rows, len(keys.rows), make, work, f"{split} utterances")

    yield from each_split(settings, settings.folders, work, read_folder)


def _open(split: str, path: Path, settings: KaldiCorpus, work: Work) -> _Folder:
    def table(name: str) -> _Table:
        return _table(found(path / name, settings, work, f"folders.{split}", "file"), work)

    def table_if_any(name: str) -> _Table | None:
        # A link that leads nowhere is a file that was lost, not one that never was.
        return table(name) if os.path.lexists(path / name) else None

    named = {lang: [names] if isinstance(names, str) else names for lang, names in settings.translations.items()}
    return _Folder(
        path=path,
        split=split,
        wavs=table("wav.scp"),
        segments=table_if_any("segments"),
        channels=table_if_any("reco2file_and_channel"),
        transcripts=table(settings.text) if settings.text else None,
        translations={lang: [table(name) for name in names] for lang, names in named.items()},
        speakers=table_if_any("utt2spk"),
        languages=table_if_any("utt2lang"),
        outside=Outside(settings.allow_sources, work, path if settings.audio_root is None else work.root / settings.audio_root),
    )


def _table(path: Path, work: Work) -> _Table:
    table = _Table(path)
    for number, line in text_lines(path, work.unfit):
        key, *rest = line.split(None, 1)[:2] if line.strip() else [""]
        if not key:
            work.unfit(DataError(f"`{path}` line {number} is empty", "remove the line"))
        elif key in table:
            work.unfit(DataError(f"`{path}` line {number}: `{key}` occurs before", "each key has one line; remove or rename one"))
        else:
            table.rows[key] = (number, rest[0].strip() if rest else "")
    return table


def _report_strays(folder: _Folder, keys: _Table, settings: KaldiCorpus, work: Work) -> None:
    """Lines about utterances that do not exist: most often, something was lost."""
    listing = "segments" if folder.segments is not None else "wav.scp"
    texts = [folder.transcripts, *(table for tables in folder.translations.values() for table in tables)]
    for table in (table for table in [*texts, folder.speakers, folder.languages] if table is not None):
        for key in table.rows:
            if key not in keys:
                work.unfit(
                    DataError(
                        f"{table.where(key)} is about utterance `{key}`, which `{listing}` lacks",
                        "bring back the line there, or remove this one (`utils/fix_data_dir.sh`)",
                    )
                )


def _outside(folder: _Folder, keys: _Table) -> Iterator[Named]:
    """Commands and addresses that the utterances need, and that are allowed."""
    if not folder.outside.allowed:
        return
    for key in sorted(keys.rows):
        recording_id = next(iter(folder.segments[key].split()), "") if folder.segments is not None else key
        try:
            name, _ = _line_of(recording_id, folder)
        except DataError:  # said where the utterance is made
            continue
        named = _named(folder.wavs[name])
        if named is not None and named.kind in folder.outside.allowed:
            yield named


def _utterance(where: str, key: str, folder: _Folder, settings: KaldiCorpus, work: Work) -> Utterance:
    recording_id, start_s, end_s = key, 0.0, WHOLE
    if folder.segments is not None:
        recording_id, start_s, end_s = _segment(folder.segments[key])
    recording, channel = _recording(recording_id, folder, settings, work)

    def said(table: _Table | None) -> str:
        if table is None:
            return ""
        if key not in table:
            raise DataError(f"utterance `{key}` has no line in `{table.path}`", "write it, or remove the utterance everywhere")
        return table[key]

    right = {lang: [table[key] for table in tables if key in table] for lang, tables in folder.translations.items()}
    return Utterance(
        id=key,
        recording=recording,
        split=folder.split,
        speaker=said(folder.speakers),
        language=said(folder.languages),
        transcript=said(folder.transcripts),
        translations={lang: kept for lang, texts in right.items() if (kept := [text for text in texts if text])},
        start_s=start_s,
        duration_s=None if end_s == WHOLE else end_s - start_s,
        channel=channel,
        source=where,
    )


def _segment(value: str) -> tuple[str, float, float]:
    parts = value.split()
    try:
        recording_id, start_s, end_s = parts[0], float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        parts = []
    if len(parts) != 3 or not (math.isfinite(start_s) and start_s >= 0 and (end_s == WHOLE or start_s < end_s < math.inf)):
        raise DataError(f"`{value}` is no recording, start and end in seconds", "write `UTTERANCE RECORDING START END`; END may be -1")
    return recording_id, start_s, end_s


def _recording(recording_id: str, folder: _Folder, settings: KaldiCorpus, work: Work) -> tuple[Recording, int]:
    """A recording and the channel of it; its header is read once for all its segments."""
    if recording_id not in folder.opened:
        try:
            folder.opened[recording_id] = _described(recording_id, folder, settings, work)
        except DataError as error:
            folder.opened[recording_id] = error
    opened = folder.opened[recording_id]
    if isinstance(opened, DataError):
        raise opened
    return opened


def _described(recording_id: str, folder: _Folder, settings: KaldiCorpus, work: Work) -> tuple[Recording, int]:
    name, channel = _line_of(recording_id, folder)
    where, value = folder.wavs.where(name), folder.wavs[name]
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


def _line_of(recording_id: str, folder: _Folder) -> tuple[str, int | None]:
    """Which line of `wav.scp` a recording has, and its channel; None: the only one."""
    file_id, channel = recording_id, None
    if folder.channels is not None and recording_id in folder.channels:
        file_id, channel = _file_and_channel(folder.channels[recording_id], folder.channels.where(recording_id))
    name = recording_id if recording_id in folder.wavs else file_id
    if name not in folder.wavs:
        raise DataError(f"recording `{recording_id}` has no line in `{folder.wavs.path}`", "write it, or remove the recording's utterances")
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
    if name.isdecimal() and 1 <= int(name) <= 99:
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
