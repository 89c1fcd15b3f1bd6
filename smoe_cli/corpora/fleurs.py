"""FLEURS: `en_us/train.tsv`, its audio in `en_us/audio/train/`; the same sentence has the same number in every language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smoe_cli.audio import LONGEST_S
from smoe_cli.corpora.files import Named, is_dir, is_file
from smoe_cli.corpora.segments import Segment, Source, number
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import FleursCorpus

RATE_HZ = 16000
"""Of the published audio, whose samples the tables count."""
COLUMNS = ("id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender")


def read(settings: FleursCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per recording, with what the same sentence is in the target languages; texts have case and punctuation.

    Nobody knows who speaks. The tables may also lie in `metadata/en_us/`, and the audio in `en_us/train/`, where Lhotse puts them.

    Raises:
        DataError: If the folder of a language is missing. A missing table goes to `work.lost`, a line with other than seven fields, and
            audio that is not as long as its table says, to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path / settings.spoken)
    language = settings.language or settings.spoken.split("_")[0]
    read_by_others = {target: _sentences(source, settings.path, code) for target, code in settings.translations.items()}

    def part(name: str) -> Iterator[Segment]:
        audio = folder / name if is_dir(folder / name) else folder / "audio" / name
        table, named = _table(source, settings.path, settings.spoken, name), Named()

        def segment(where: str, row: dict[str, str]) -> Segment:
            named.add(audio / row["file_name"])
            others = {target: sentences.get(row["id"], []) for target, sentences in read_by_others.items()}
            return Segment(
                id=f"{row['id']}-{Path(row['file_name']).stem}",
                where=where,
                split=name,
                audio=audio / row["file_name"],
                language=language,
                transcript=row["raw_transcription"],
                translations={target: texts for target, texts in others.items() if texts},
                lasts_s=number(row["num_samples"], "`num_samples`", LONGEST_S * RATE_HZ) / RATE_HZ,
            )

        yield from source.each(source.table(table, (), COLUMNS), segment)
        named.report_others([audio], work, f"that `{table}` does not name")

    yield from source.utterances(source.every_part(part))


def _table(source: Source, folder: Path, code: str, part: str) -> Path:
    downloaded = source.work.root / folder / "metadata" / code / f"{part}.tsv"
    return downloaded if is_file(downloaded) else source.work.root / folder / code / f"{part}.tsv"


def _sentences(source: Source, folder: Path, code: str) -> dict[str, list[str]]:
    """Number of a sentence -> how it is written in a language; each is read by several people."""
    source.folder(folder / code)
    found: dict[str, list[str]] = {}
    for part in source.settings.parts:
        for _, row in source.table(_table(source, folder, code, part), (), COLUMNS):
            texts = found.setdefault(row["id"], [])
            if row["raw_transcription"] not in texts:
                texts.append(row["raw_transcription"])
    return found
