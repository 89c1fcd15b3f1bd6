"""MuST-C: `en-de/data/PART/wav/ted_1.wav`, and in `txt/` a list of segments (`PART.yaml`) with a line of text for each per language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from smoe_cli.corpora.files import Named
from smoe_cli.corpora.segments import PUBLISHED, Segment, Source, merged, number, span_id
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import MustcCorpus
from smoe_cli.errors import DataError


def read(settings: MustcCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per segment, with its translations into all target languages that have the same segment.

    Raises:
        DataError: If the corpus's folder is missing. A missing or damaged file of a part, and files with different numbers of
            lines, go to `work.lost`, segments that name no audio or no time to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path)

    def part(name: str) -> Iterator[Segment]:
        subset = name if name.startswith("tst-") else ""
        for target in settings.targets:
            yield from language_pair(source, folder / f"en-{target}" / "data" / name, ("en", target), ".wav", subset)

    yield from source.utterances(merged(source, source.every_part(part)))


def language_pair(source: Source, folder: Path, languages: Sequence[str], suffix: str, subset: str = "") -> Iterator[Segment]:
    """The segments of one part of one language pair, as MuST-C and Multilingual TEDx have them.

    Args:
        folder: Has `txt/` and `wav/`; its name is that of the part.
        languages: The spoken language, and those that it is translated into.
        suffix: Of the audio files, whatever the list says.

    Raises:
        DataError: If a file of texts is missing or damaged, or has another number of lines than the list.
    """
    part, listed = folder.name, folder / "txt" / f"{folder.name}.yaml"
    entries, named = source.yaml_list(listed), Named()
    transcripts, *translations = source.parallel(listed, len(entries), [folder / "txt" / f"{part}.{lang}" for lang in languages])

    def segment(where: str, row: tuple[dict[str, str], str, tuple[str, ...]]) -> Segment:
        entry, transcript, texts = row
        start_s = number(entry.get("offset"), "`offset`")
        span_s = (start_s, start_s + number(entry.get("duration"), "`duration`"))
        if not entry.get("wav"):
            raise DataError("names no audio as `wav`", PUBLISHED)
        name = entry["wav"].removesuffix(".wav").removesuffix(suffix)
        audio = folder / "wav" / f"{name}{suffix}"
        named.add(audio)
        return Segment(
            id=span_id(part, name, span_s),
            where=where,
            split=part,
            audio=audio,
            language=languages[0],
            transcript=transcript,
            translations={lang: [text] for lang, text in zip(languages[1:], texts, strict=True)},
            speaker=entry.get("speaker_id", ""),
            subset=subset,
            span_s=span_s,
        )

    # Without a translation there are no columns to turn into rows.
    rows = zip(*translations, strict=True) if translations else (() for _ in entries)
    items = enumerate(zip(entries, transcripts, rows, strict=True), start=1)
    yield from source.each(((f"`{listed}` segment {place}", row) for place, row in items), segment)
    named.report_others([folder / "wav"], source.work, f"that `{listed}` does not name")
