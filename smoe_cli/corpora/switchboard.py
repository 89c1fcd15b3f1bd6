"""Switchboard-1: telephone calls of the LDC with the transcripts of Mississippi State, one file per side of a call."""

from __future__ import annotations

import re
from collections.abc import Iterator

from smoe_cli.corpora.files import files_below
from smoe_cli.corpora.segments import PUBLISHED, Segment, Source, number
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import SwitchboardCorpus
from smoe_cli.errors import DataError

TRANSCRIPT = re.compile(r"sw(\d{4})([AB])-ms98-a-trans\.text")
RULES = [
    (re.compile(r"^<[be]_aside>$", re.IGNORECASE), ""),
    (re.compile(r"^\[(?:silence|noise|laughter|vocalized-noise)\]$", re.IGNORECASE), ""),
    (re.compile(r"^(-?)\[laughter-(.+)\](-?)$", re.IGNORECASE), r"\1\2\3"),  # [laughter-really]
    (re.compile(r"^\[(.+)/.+\]-?$"), r"\1"),  # [it'n/isn't]: what was said, then what was meant
    (re.compile(r"^\{(.+)\}$"), r"\1"),  # {yuppiedom}: a word of the speaker's own
    (re.compile(r"^-?\[[^\]]+\]"), "-"),  # -[an]y: the part in brackets was not spoken
    (re.compile(r"\[[^\]]+\]-?"), "-"),  # ab[solute]-
    (re.compile(r"_\d$"), ""),  # them_1: another pronunciation
]
"""What each word of a transcript goes through, in this order, to become what is heard."""


def read(settings: SwitchboardCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per line of the transcripts, each on its speaker's channel; lines of noise and silence are left out.

    Raises:
        DataError: If a folder is missing, or there is no transcript in it. A transcript that cannot be read goes to `work.lost`,
            lines that are damaged or have no recording to `work.unfit`.
    """
    source = Source(settings, work)
    speech = source.folder(settings.path)
    transcripts = source.folder(settings.transcripts, "transcripts")
    recordings = source.calls(speech)
    files = files_below(transcripts, work.lost)
    sides = sorted((found[1], found[2], path) for path in files if (found := TRANSCRIPT.fullmatch(path.name)))
    if not sides:
        raise DataError(f"no transcripts, such as `sw2001A-ms98-a-trans.text`, below `{transcripts}`", "unpack them there")
    calls = sorted({call for call, _, _ in sides})
    transcribed = {f"{name}{call}" for call in calls for name in ("sw", "sw0")}
    source.report_calls([path for name, path in recordings.items() if name not in transcribed], f"no transcript below `{transcripts}`")
    held_out = settings.dev_calls + settings.test_calls
    splits = {call: "dev" if place < settings.dev_calls else "test" if place < held_out else "train" for place, call in enumerate(calls)}

    def segment(where: str, item: tuple[str, str, str]) -> Segment:
        call, side, line = item
        fields = line.split(maxsplit=3)
        if len(fields) != 4:
            raise DataError(f"`{line}` is not an id, a start, an end and a text", PUBLISHED)
        return Segment(
            id=fields[0],
            where=where,
            split=splits[call],
            audio=recordings.get(f"sw0{call}") or recordings.get(f"sw{call}") or speech / f"sw0{call}.sph",
            language="en",
            transcript=plain(fields[3]),
            speaker=f"sw{call}-{side}",
            span_s=(number(fields[1], "start"), number(fields[2], "end")),
            channel="AB".index(side),
            channels=2,
        )

    def segments() -> Iterator[Segment]:
        for call, side, path in source.follow(sides, "transcripts", len(sides)):
            if settings.split_of(splits[call]) is None:
                continue
            try:
                lines = source.lines(path)
            except DataError as error:
                work.lost(error)
                continue
            yield from source.each(((f"`{path}` line {place}", (call, side, line)) for place, line in enumerate(lines, start=1)), segment)

    yield from source.utterances(segments())


def plain(text: str) -> str:
    """A transcript without its marks: words as they were spoken, and broken-off ones with a hyphen."""
    words = text.split()
    for pattern, instead in RULES:
        words = [pattern.sub(instead, word) for word in words]
    return " ".join(word for word in words if word not in ("", "-"))
