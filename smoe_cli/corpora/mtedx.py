"""Multilingual TEDx: `es-es/data/PART/` (transcripts) and `es-en/data/PART/` (translations too), laid out as MuST-C, with FLAC audio."""

from __future__ import annotations

from collections.abc import Iterator

from smoe_cli.corpora.mustc import language_pair
from smoe_cli.corpora.segments import Segment, Source, merged
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import MtedxCorpus


def read(settings: MtedxCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per segment, with its translations into all target languages that have the same segment.

    Raises:
        DataError: If the corpus's folder is missing. What is wrong with a part goes to `work.lost`, with a segment to `work.unfit`, as with
            MuST-C.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path)

    def part(name: str) -> Iterator[Segment]:
        for pair, target in settings.pairs():
            languages = [settings.spoken, *([target] if target else [])]
            yield from language_pair(source, folder / pair / "data" / name, languages, ".flac")

    yield from source.utterances(merged(source, source.every_part(part)))
