"""Europarl-ST: speeches in `en/audios/`; in `en/de/train/` the list of segments, and a line of text for each in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smoe_cli.corpora.files import is_file
from smoe_cli.corpora.segments import PUBLISHED, Segment, Source, merged, number, span_id
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import EuroparlStCorpus
from smoe_cli.errors import DataError

AUDIO = (".flac", ".wav", ".m4a")
"""Suffixes of speeches, the preferred one first. Published are `.m4a` files, which libsndfile does not read."""


def read(settings: EuroparlStCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per segment, with its translations into all target languages that have the same segment.

    Raises:
        DataError: If the folder of the spoken language is missing. A missing list or text, and files with different numbers of
            lines, go to `work.lost`, segments without a sound time to `work.unfit`, as do speeches that were not converted to FLAC or WAV.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path / settings.spoken)

    def part(name: str) -> Iterator[Segment]:
        for target in settings.targets:
            yield from _language_pair(source, folder, (settings.spoken, target), name)

    yield from source.utterances(merged(source, source.every_part(part)))


def _language_pair(source: Source, folder: Path, languages: tuple[str, str], part: str) -> Iterator[Segment]:
    texts = folder / languages[1] / part
    listed = texts / "segments.lst"
    entries = source.lines(listed)
    speeches = source.lines(texts / "speeches.lst")
    (people,) = source.parallel(texts / "speeches.lst", len(speeches), [texts / "speakers.lst"])
    speakers = dict(zip(speeches, people, strict=True))
    transcripts, translations = source.parallel(listed, len(entries), [texts / f"segments.{lang}" for lang in languages])

    def segment(where: str, row: tuple[str, str, str]) -> Segment:
        entry, transcript, translation = row
        fields = entry.split()
        if len(fields) != 3:
            raise DataError(f"`{entry}` is not a speech, a start and an end", PUBLISHED)
        if fields[0] not in speakers:
            raise DataError(f"speech `{fields[0]}` is not in `{texts / 'speeches.lst'}`", PUBLISHED)
        span_s = (number(fields[1], "start"), number(fields[2], "end"))
        paths = [folder / "audios" / f"{fields[0]}{suffix}" for suffix in AUDIO]
        return Segment(
            id=span_id(part, fields[0], span_s),
            where=where,
            split=part,
            audio=next((path for path in paths if is_file(path)), paths[0]),
            language=languages[0],
            transcript=transcript,
            translations={languages[1]: [translation]},
            speaker=speakers[fields[0]],
            span_s=span_s,
        )

    items = enumerate(zip(entries, transcripts, translations, strict=True), start=1)
    yield from source.each(((f"`{listed}` line {place}", row) for place, row in items), segment)
