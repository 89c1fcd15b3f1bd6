"""VoxPopuli as its own scripts cut it: `en/asr_train.tsv`, and a file per segment in a folder per year, `en/2009/ID.ogg`."""

from __future__ import annotations

from collections.abc import Iterator

from smoe_cli.corpora.files import Named
from smoe_cli.corpora.segments import Segment, Source
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import VoxpopuliCorpus

UNKNOWN = "None"
"""What the tables say of a speaker whom nobody knows."""


def read(settings: VoxpopuliCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per line of the tables; the text is the normalized one.

    Raises:
        DataError: If the folder of the language is missing. A missing table or column goes to `work.lost`, a damaged line to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path / settings.spoken)
    language = settings.language or settings.spoken.split("_")[0]

    named = Named()

    def part(name: str) -> Iterator[Segment]:
        for where, row in source.table(folder / f"asr_{name}.tsv", ("id", "normalized_text", "speaker_id")):
            audio = folder / row["id"][:4] / f"{row['id']}.ogg"
            named.add(audio)
            yield Segment(
                id=row["id"],
                where=where,
                split=name,
                audio=audio,
                language=language,
                transcript=row["normalized_text"],
                speaker="" if row["speaker_id"] == UNKNOWN else row["speaker_id"],
            )

    yield from source.utterances(source.every_part(part))
    # Splits share the folders of years: without the table of one, nobody knows whose a file is.
    if settings.kept_parts() == list(settings.parts):
        named.report_others([folder], work, f"that no `asr_*.tsv` in `{folder}` names")
