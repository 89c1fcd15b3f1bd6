"""What the readers of published corpora share: recordings, segments and texts that lie in files of their own -> utterances.

Lhotse has recipes for most of these corpora (`lhotse_recipe.py` runs them); tests compare them with these readers, which exist because
the recipes pass over audio and segments that lack their other half (`fix_manifests`), have transcripts or translations but not both, and
some write files, start processes or reach the network. What each of them has otherwise: `docs/how-to/corpora.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lhotse import Recording

from smoe_cli.audio import LONGEST_S, TOLERANCE_S
from smoe_cli.corpora.files import CALL_SUFFIXES, files_below, is_dir, is_file, recording_of, refuse
from smoe_cli.corpora.lines import table_rows, text_lines, where_it_lies
from smoe_cli.corpora.utterance import Utterance, Work, foreseen
from smoe_cli.corpus_settings import PublishedCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within

T = TypeVar("T")
PUBLISHED = "bring back the file as it was published"
LOST = "bring it back, or unpack the corpus again"
LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Only its parser is used, and everything stays text: some ids of talks look like numbers. It cannot be made to call anything."""
AT_ONCE = 1000
"""Segments of a YAML list that are parsed together: a list of 200,000 would fill the memory."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a recording with its texts.

    Attributes:
        id: Unique in the corpus.
        where: Names the place that says all this, for messages.
        split: As the corpus names it.
        audio: The recording.
        transcript: What is said.
        translations: Target language -> right answers.
        language, speaker, subset: As in `Utterance`.
        span_s: Start and end; None: the whole recording.
        lasts_s: How long the whole recording lasts, as the corpus says; None: it does not.
        channel, channels: Whose voice it is, and how many there are.
    """

    id: str
    where: str
    split: str
    audio: Path
    transcript: str
    language: str = ""
    translations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    speaker: str = ""
    subset: str = ""
    span_s: tuple[float, float] | None = None
    lasts_s: float | None = None
    channel: int = 0
    channels: int = 1


class Source:
    """The files of one corpus. Those of a corpus that is not trusted must lie in `data.root`, symbolic links followed.

    In a dry run they are looked for, and all seem empty but for the headers of tables.
    """

    def __init__(self, settings: PublishedCorpus, work: Work) -> None:
        self.settings, self.work = settings, work
        self._recordings: dict[Path, Recording | DataError] = {}

    def folder(self, path: Path, setting: str = "path") -> Path:
        """A folder of the corpus, named by one of its settings.

        Raises:
            DataError: If it is not there.
        """
        folder = self.work.root / path
        if not is_dir(folder):
            name = f"data.corpora.{self.work.name}"
            raise DataError(
                f"no folder `{folder}`, where `{name}.{setting}` says that the corpus lies",
                where_it_lies("it", f"{name}.{setting}"),
            )
        return folder

    def lines(self, path: Path, encoding: str = "utf-8") -> list[str]:
        """The lines of a text file, as they are: only a line feed ends one.

        Raises:
            DataError: If it is missing, unreadable or in another encoding, or leads out of an untrusted corpus.
        """
        found = self._found(path)
        return [] if self.work.dry_run else [line for _, line in text_lines(found, refuse, encoding, PUBLISHED)]

    def _found(self, path: Path) -> Path:
        """A file of texts that is there; raises as `lines`."""
        if self.settings.untrusted:
            check_within(path, self.work.root, f"corpus `{self.work.name}`")
        if not is_file(path):
            raise DataError(f"no file `{path}`", LOST)
        return path

    def parallel(self, listed: Path, count: int, texts: Sequence[Path]) -> list[list[str]]:
        """The lines of files that have one line for each entry of a list.

        Raises:
            DataError: As `lines`, and if a file has more or fewer lines.
        """
        found = [self.lines(path) for path in texts]
        for path, lines in zip(texts, found, strict=True):
            if len(lines) != count:
                raise DataError(
                    f"`{path}` has {len(lines)} lines, `{listed}` {count}: which belongs to which cannot be told",
                    "bring back both files, whole",
                )
        return found

    def table(
        self, path: Path, needed: Sequence[str], columns: Sequence[str] = (), escaped: bool = False
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """(file and line, row) of a tab-separated table, one at a time; a line with more or fewer fields goes to `work.unfit`.

        Args:
            needed: Columns that it must have.
            columns: All of them, where the table has no header.
            escaped: Whether a backslash takes away the meaning of what follows, as CoVoST's own scripts read it.

        Raises:
            DataError: As `lines`, and if a column is missing.
        """
        lines = text_lines(self._found(path), refuse, cure=PUBLISHED)
        if self.work.dry_run:
            lines = islice(lines, 0 if columns else 1)
        else:
            lines = self.follow(lines, path.name, sum(1 for _ in text_lines(path, refuse, cure=PUBLISHED)))
        return table_rows(path, lines, needed, self.work, columns, escaped, PUBLISHED)

    def yaml_list(self, path: Path) -> list[dict[str, str]]:
        """The mappings of a YAML list as MuST-C has it, where each begins with a hyphen at the start of a line.

        Raises:
            DataError: As `lines`, and if it is no such list.
        """
        lines = self.lines(path)
        if self.work.dry_run:
            return []
        starts = [number for number, line in enumerate(lines) if line.startswith("- ")]
        found: list[dict[str, str]] = []
        for first, last in pairwise([0, *starts[AT_ONCE::AT_ONCE], len(lines)]):
            try:
                entries = _flat_mappings(yaml.parse("\n".join(lines[first:last]), LOADER))
            except yaml.YAMLError as error:
                line = first + (error.problem_mark.line if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 0) + 1
                problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else "characters that it cannot have"
                raise DataError(f"`{path}` line {line} is not YAML: {problem}", PUBLISHED) from error
            if entries is None:
                raise DataError(f"`{path}` is no list of segments from line {first + 1} on", PUBLISHED)
            found += entries
        return found

    def calls(self, folder: Path, suffixes: Sequence[str] = CALL_SUFFIXES) -> dict[str, Path]:
        """Name of a file, in small letters and without its suffix -> the file, from anywhere below a folder."""
        files = [path for path in files_below(folder, self.work.lost) if path.suffix.lower() in suffixes]
        # The preferred suffix comes last, and stays.
        files.sort(key=lambda path: -suffixes.index(path.suffix.lower()))
        return {path.stem.lower(): path for path in files}

    def report_calls(self, others: Sequence[Path], lacking: str) -> None:
        """Count calls that nothing is known about, for a note of `smoe prepare`.

        Args:
            lacking: What there is not, e.g. `no transcript below ...`.
        """
        if others:
            self.work.left_out[f"calls of which there is {lacking} (the first: `{others[0]}`)"] += len(others)

    def every_part(self, read: Callable[[str], Iterable[Segment]]) -> Iterator[Segment]:
        """The segments of every part that is not left out; what keeps one part from being read goes to `work.lost`."""
        for part in self.settings.kept_parts():
            try:
                yield from read(part)
            except DataError as error:
                self.work.lost(error)

    def each(self, items: Iterable[tuple[str, Any]], read: Callable[[str, Any], Segment]) -> Iterator[Segment]:
        """What is read of each (place, item); an item that cannot be read goes to `work.unfit`, with its place."""
        for where, item in items:
            try:
                with foreseen():
                    segment = read(where, item)
            except DataError as error:
                self.work.unfit(DataError(f"{where}: {error.message}", error.hint))
                continue
            yield segment

    def utterances(self, segments: Iterable[Segment]) -> Iterator[Utterance]:
        """The segments as utterances; no audio is read.

        Left out, and counted: segments and translations without a letter or digit, and what `train_within_s` says.
        """
        for segment in segments:
            try:
                with foreseen(segment.where):
                    utterance = self._utterance(segment)
            except DataError as error:
                self.work.unfit(error)
                continue
            if utterance is not None:
                yield utterance

    def follow(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Yield the items, and report how many of all are done; none in a dry run."""
        for done, item in enumerate(() if self.work.dry_run else items, start=1):
            yield item
            self.work.progress(done, total, f"{self.work.name}: {what}")

    def _utterance(self, segment: Segment) -> Utterance | None:
        if not _says_something(segment.transcript):
            self.work.left_out["segments without a word"] += 1
            return None
        translations = {lang: [text for text in texts if _says_something(text)] for lang, texts in segment.translations.items()}
        for lang, texts in translations.items():
            if not texts:
                self.work.left_out[f"translations into `{lang}` without a word"] += 1
        recording = self._recording(segment)
        if segment.lasts_s is not None and abs(segment.lasts_s - recording.duration) > TOLERANCE_S:
            raise DataError(
                f"{segment.where} says that `{segment.audio}` lasts {segment.lasts_s:g} s; it lasts {recording.duration:g}", PUBLISHED
            )
        start_s, end_s = segment.span_s or (0.0, recording.duration)
        within = self.settings.train_within_s if self.settings.split_of(segment.split) == "train" else None
        # A time that cannot be is damage, however long.
        sound = 0 <= start_s <= end_s <= recording.duration + TOLERANCE_S
        if within and sound and not within[0] <= end_s - start_s <= within[1]:
            self.work.left_out[f"train segments outside {within[0]:g} to {within[1]:g} s"] += 1
            return None
        return Utterance(
            id=segment.id,
            recording=recording,
            split=segment.split,
            speaker=segment.speaker,
            language=segment.language,
            transcript=segment.transcript,
            translations={lang: texts for lang, texts in translations.items() if texts},
            subset=segment.subset,
            start_s=start_s,
            duration_s=None if segment.span_s is None else end_s - start_s,
            channel=segment.channel,
            source=segment.where,
        )

    def _recording(self, segment: Segment) -> Recording:
        """The recording of a segment; the header of one that several share is read once.

        Raises:
            DataError: The same for each of its segments.
        """
        found = self._recordings.get(segment.audio) or self._described(segment)
        if segment.span_s is not None:
            self._recordings[segment.audio] = found
        if isinstance(found, DataError):
            raise found
        return found

    def _described(self, segment: Segment) -> Recording | DataError:
        try:
            if self.settings.untrusted:
                check_within(segment.audio, self.work.root, f"corpus `{self.work.name}`")
            return recording_of(segment.audio, segment.audio.stem, segment.channels)
        except DataError as error:
            return error


def merged(source: Source, segments: Iterable[Segment]) -> Iterator[Segment]:
    """One segment where several language pairs have the same part of the same recording with the same transcript.

    Where their transcripts differ, each stays, the later ones with the target language at the end of their ids. A segment that one pair
    has twice goes to `work.unfit`, whatever its texts: it would be learned twice, or have two right answers.
    """
    found: dict[tuple[object, ...], Segment] = {}
    ids: set[str] = set()
    pairs: set[tuple[str, ...]] = set()
    for segment in segments:
        pair = (segment.id, *segment.translations)
        if pair in pairs:
            source.work.unfit(DataError(f"{segment.where}: segment `{segment.id}` occurs before", PUBLISHED))
            continue
        pairs.add(pair)
        key = (segment.split, segment.audio.stem, segment.span_s, segment.transcript)
        if (same := found.get(key)) is not None:
            found[key] = replace(same, translations={**same.translations, **segment.translations})
            continue
        if segment.id in ids:
            segment = replace(segment, id="-".join(pair))
        ids.add(segment.id)
        found[key] = segment
    yield from source.follow(found.values(), "segments", len(found))


def number(text: str | None, what: str, most: float = LONGEST_S) -> float:
    """A number of a table or list: seconds, unless `most` says otherwise.

    Raises:
        DataError: If it is none, or is larger than any can be.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{what} `{text}` is not a number", PUBLISHED)
    if abs(value) > most:
        raise DataError(f"{what} `{text}` is out of all bounds: at most {most:,.0f}", PUBLISHED)
    return value


def span_id(split: str, recording: str, span_s: tuple[float, float]) -> str:
    """The id of a part of a recording, in milliseconds."""
    return f"{split}-{recording}-{round(1000 * span_s[0]):08d}-{round(1000 * span_s[1]):08d}"


def _flat_mappings(events: Iterator[yaml.Event]) -> list[dict[str, str]] | None:
    """What a parser finds, if that is one list of mappings of plain values; None: it is anything else.

    Nothing is built of what is deeper: libyaml's own builder calls itself for each level, and a line of brackets would end the process.
    """
    found: list[dict[str, str]] = []
    inside: list[str] | None = None
    outer = [type(event) for event in islice(events, 3)]
    if outer != [yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.SequenceStartEvent]:
        return None
    for event in events:
        match event:
            case yaml.MappingStartEvent() if inside is None:
                inside = []
            case yaml.ScalarEvent(value=value) if inside is not None:
                inside.append(value)
            case yaml.MappingEndEvent() if inside is not None:
                found.append(dict(zip(inside[::2], inside[1::2], strict=True)))
                inside = None
            case yaml.SequenceEndEvent():
                break
            case _:
                return None
    ends = [type(event) for event in events]
    return found if ends == [yaml.DocumentEndEvent, yaml.StreamEndEvent] else None


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)
