"""LibriSpeech and mini LibriSpeech: `PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`, one `.trans.txt` per chapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smoe_cli.corpora.files import entries, is_dir
from smoe_cli.corpora.segments import PUBLISHED, Segment, Source
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import LibrispeechCorpus, MiniLibrispeechCorpus
from smoe_cli.errors import DataError


def read(settings: LibrispeechCorpus | MiniLibrispeechCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per line of the transcripts.

    Raises:
        DataError: If the corpus's folder is missing. A missing part and a chapter without transcripts go to `work.lost`, audio or a
            transcript that has no other half to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path)

    def part(name: str) -> Iterator[Segment]:
        if not is_dir(folder / name):
            raise DataError(
                f"no folder `{folder / name}`", f"unpack it, or leave the part out: `data.corpora.{work.name}.splits: {{{name}: null}}`"
            )
        speakers = [path for path in entries(folder / name, work.lost) if is_dir(path)]
        chapters = [path for speaker in speakers for path in entries(speaker, work.lost) if is_dir(path)]
        for chapter in source.follow(chapters, name, len(chapters)):
            try:
                yield from _chapter(source, chapter, name)
            except DataError as error:
                work.lost(error)

    yield from source.utterances(source.every_part(part))


def _chapter(source: Source, folder: Path, part: str) -> Iterator[Segment]:
    speaker = folder.parent.name
    listed = folder / f"{speaker}-{folder.name}.trans.txt"
    named = set()
    for number, line in enumerate(source.lines(listed), start=1):
        name, _, text = line.strip().partition(" ")
        named.add(name)
        if not text:
            source.work.unfit(DataError(f"`{listed}` line {number} has no transcript", PUBLISHED))
            continue
        kind = next((kind for kind in ("clean", "other") if kind in part.split("-")), "")
        where = f"`{listed}` line {number}"
        yield Segment(name, where, part, folder / f"{name}.flac", text, language="en", speaker=speaker, subset=kind)
    for path in entries(folder, source.work.lost):
        if path.suffix == ".flac" and path.stem not in named:
            source.work.unfit(DataError(f"`{listed}` has no transcript of `{path.name}`", "bring back the whole file, or remove the audio"))
