"""Fisher and CALLHOME Spanish: telephone calls and transcripts of the LDC, with English translations that name their lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smoe_cli.corpora.files import files_below
from smoe_cli.corpora.segments import PUBLISHED, Segment, Source, number
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import FisherCallhomeCorpus
from smoe_cli.errors import DataError

FOUR_TRANSLATIONS = ("fisher_dev", "fisher_dev2", "fisher_test")
"""Parts that four people translated."""
LONGEST_NUMBER = 9
"""Digits of a line's number; Python makes no numbers of thousands of digits."""
MARKS = re.compile(r"[()+*/#]")
TAGS = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]")
CALLHOME_LINE = re.compile(r"(\S+) (\S+) ([AB])\S*\s?(.*)")


@dataclass(frozen=True)
class Line:
    """One line of a transcript: `text` is what remains without marks of noise and of foreign words."""

    span_s: tuple[float, float]
    channel: int
    text: str


def read(settings: FisherCallhomeCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per line of the mappings: one or several lines of one speaker, who has a channel of a call.

    Raises:
        DataError: If a folder is missing. Texts that do not fit the mapping, and transcripts that a mapping names and that are missing
            or damaged, go to `work.lost`, calls and lines of that kind to `work.unfit`.
    """
    source = Source(settings, work)
    mappings = source.folder(settings.path / "mapping")
    texts = source.folder(settings.path / "corpus" / "ldc")
    collections = {part.split("_")[0] for part in settings.kept_parts()}
    named = {name: _Collection(source, name) for name in sorted(collections)}

    def part(name: str) -> Iterator[Segment]:
        listed = mappings / name
        lines = source.lines(listed)
        references = [f"{name}.en.{translator}" for translator in range(4)] if name in FOUR_TRANSLATIONS else [f"{name}.en"]
        translations = source.parallel(listed, len(lines), [texts / reference for reference in references])
        collection = named[name.split("_")[0]]
        missing = collection.load(line.partition(" ")[0] for line in lines)

        def segment(where: str, row: tuple[str, ...]) -> Segment:
            call, _, numbers = row[0].partition(" ")
            spoken = collection.spoken(call, numbers.split("_"))
            channels = {line.channel for line in spoken}
            if len(channels) != 1:
                raise DataError(f"`{row[0]}` joins lines of both speakers", "bring back mapping and transcripts as they were published")
            channel = channels.pop()
            return Segment(
                id=f"{call}-{'AB'[channel]}-{numbers}",
                where=where,
                split=name,
                audio=collection.audio(call),
                language="es",
                transcript=" ".join(" ".join(line.text for line in spoken).split()),
                translations={"en": row[1:]},
                speaker=collection.speaker(call, channel),
                subset=collection.name,
                span_s=(min(line.span_s[0] for line in spoken), max(line.span_s[1] for line in spoken)),
                channel=channel,
                channels=2,
            )

        rows = enumerate(zip(source.follow(lines, name, len(lines)), *translations, strict=True), start=1)
        items = ((f"`{listed}` line {place}", row) for place, row in rows if row[0].partition(" ")[0] not in missing)
        yield from source.each(items, segment)

    yield from source.utterances(source.every_part(part))
    for collection in named.values():
        # Which part a call is of only the part's mapping tells.
        parts = [part for part in settings.parts if part.startswith(f"{collection.name}_")]
        if set(parts) <= set(settings.kept_parts()):
            source.report_calls(collection.unnamed(), f"no line in `{mappings}`")


class _Collection:
    """The calls and transcripts of one of the two."""

    def __init__(self, source: Source, name: str) -> None:
        settings = source.settings
        assert isinstance(settings, FisherCallhomeCorpus)
        self.name, self.source = name, source
        fisher = name == "fisher"
        self.speech = source.folder(settings.fisher_speech if fisher else settings.callhome_speech, f"{name}_speech")
        self.transcripts = source.folder(settings.fisher_transcripts if fisher else settings.callhome_transcripts, f"{name}_transcripts")
        self._calls = source.calls(self.speech)
        self._files = source.calls(self.transcripts, [".tdf"] if fisher else [".txt"])
        self._people = self._table_of_calls() if fisher else {}
        self._lines: dict[str, list[str]] = {}
        self._asked: set[str] = set()

    def load(self, calls: Iterable[str]) -> set[str]:
        """Read the transcripts of some calls; those that cannot be read go to `work.lost`, once each, and are returned."""
        missing = set()
        calls = list(dict.fromkeys(calls))
        self._asked.update(call.lower() for call in calls)
        for call in calls:
            try:
                self._lines[call] = self._transcript(call)
            except DataError as error:
                self.source.work.lost(error)
                missing.add(call)
        return missing

    def unnamed(self) -> list[Path]:
        """Calls that no mapping named."""
        return [path for call, path in self._calls.items() if call not in self._asked]

    def _transcript(self, call: str) -> list[str]:
        path = self._files.get(call)
        if path is None:
            raise DataError(f"no transcript of call `{call}` below `{self.transcripts}`", "bring it back")
        if self.name != "fisher":
            return self.source.lines(path, "iso8859-1")
        if _number_of(call) not in self._people:
            raise DataError(f"call `{call}` is not in the table of calls, `*_call.tbl`", PUBLISHED)
        # The lines that a mapping names are counted from the first one that is no header.
        return [line for line in self.source.lines(path) if ";;MM" not in line and "file;unicode" not in line]

    def audio(self, call: str) -> Path:
        """The recording of a call, or where it is expected."""
        return self._calls.get(call) or self.speech / f"{call}.sph"

    def speaker(self, call: str, channel: int) -> str:
        """Who speaks: Fisher numbers people, in CALLHOME each side of a call is somebody of its own."""
        return f"fsp-{self._people[_number_of(call)][channel]}" if self.name == "fisher" else f"{call}-{'AB'[channel]}"

    def spoken(self, call: str, numbers: list[str]) -> list[Line]:
        """Some lines of a call's transcript, by their numbers.

        Raises:
            DataError: If there is no such line, or it is damaged.
        """
        lines = self._lines[call]
        found = []
        for text in numbers:
            if not text.isdecimal() or len(text) > LONGEST_NUMBER or not 0 < int(text) <= len(lines):
                raise DataError(f"the transcript of call `{call}` has no line `{text}`", PUBLISHED)
            found.append((_fisher_line if self.name == "fisher" else _callhome_line)(lines[int(text) - 1]))
        return found

    def _table_of_calls(self) -> dict[str, tuple[str, str]]:
        """Number of a call -> who speaks on each channel."""
        files = [path for folder in (self.speech, self.transcripts) for path in files_below(folder, self.source.work.lost)]
        tables = sorted(path for path in files if path.name.endswith("_call.tbl"))
        if not tables:
            raise DataError(
                f"no table of calls, `*_call.tbl`, below `{self.speech}` and `{self.transcripts}`", "unpack the folder `docs` of the corpus"
            )
        rows = (line.split(",") for line in self.source.lines(tables[0]))
        return {row[0]: (row[2], row[8]) for row in rows if len(row) > 8}


def _number_of(call: str) -> str:
    """The number of a call of Fisher, as its table of calls has it: 22 of `20050908_182943_22_fsp`."""
    return (call.split("_") + [""] * 3)[2]


def _fisher_line(line: str) -> Line:
    fields = line.split("\t")
    if len(fields) < 8 or fields[1] not in ("0", "1"):
        raise DataError(f"`{line}` is not a file, a channel, a start, an end and a text", PUBLISHED)
    return Line((number(fields[2], "start"), number(fields[3], "end")), int(fields[1]), _plain(fields[7]))


def _callhome_line(line: str) -> Line:
    found = CALLHOME_LINE.match(line)
    if found is None:
        raise DataError(f"`{line}` is not a start, an end, a speaker and a text", PUBLISHED)
    return Line((number(found[1], "start"), number(found[2], "end")), "AB".index(found[3]), _plain(found[4]))


def _plain(text: str) -> str:
    """A transcript as the translators saw it, by the rules of their own script: marks go first, tags and comments after them."""
    return TAGS.sub("", MARKS.sub("", text))
