"""CoVoST 2: tables of translations (`covost_v2.en_de.tsv`) over the clips of Common Voice (`validated.tsv`, `clips/`)."""

from __future__ import annotations

from collections.abc import Iterator

from smoe_cli.corpora.segments import PUBLISHED, Segment, Source
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import CovostCorpus
from smoe_cli.errors import DataError

SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test", "dev_covost": None, "test_covost": None}
"""Split as the tables name it -> split of CoVoST 2, which adds to the train split of Common Voice; None: of none."""
STRUCK_OUT = "REMOVE"
"""What stands where a translator found nothing to translate."""


def read(settings: CovostCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per clip that has a translation, with its translations into all target languages.

    Raises:
        DataError: If the folder of Common Voice, a table or a column is missing. Damaged lines, a clip that a table has twice, and
            translations of clips that `validated.tsv` does not have, go to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path)
    splits: dict[str, str] = {}
    translations: dict[str, dict[str, list[str]]] = {}
    places: dict[str, str] = {}
    for target, where, row in _translations(source, settings):
        name, split = row["path"], SPLITS[row["split"]]
        if split is None:
            work.left_out[f"translations into `{target}` of split `{row['split']}`, which CoVoST 2 does not use,"] += 1
        elif row["translation"].strip() == STRUCK_OUT:
            work.left_out[f"translations into `{target}` that say `{STRUCK_OUT}`"] += 1
        elif splits.setdefault(name, split) != split:
            work.unfit(DataError(f"{where}: clip `{name}` is in split `{split}`, and elsewhere in `{splits[name]}`", PUBLISHED))
        elif target in translations.get(name, {}):
            work.unfit(DataError(f"{where}: clip `{name}` occurs before", PUBLISHED))
        elif settings.split_of(split) is not None:
            translations.setdefault(name, {})[target] = [row["translation"]]
            places.setdefault(name, where)
    validated = folder / "validated.tsv"
    spoken: dict[str, tuple[str, str]] = {}
    doubtful: set[str] = set()
    for where, row in source.table(validated, ("path", "sentence", "client_id"), escaped=True):
        said = row["sentence"], row["client_id"]
        if row["path"] in places and spoken.setdefault(row["path"], said) != said:
            work.unfit(DataError(f"{where}: clip `{row['path']}` occurs before, with another sentence or speaker", PUBLISHED))
            doubtful.add(row["path"])

    def clips() -> Iterator[Segment]:
        for name in source.follow(sorted(places.keys() - doubtful), "clips", len(places)):
            said = spoken.get(name)
            if said is None:
                work.unfit(
                    DataError(
                        f"{places[name]}: clip `{name}` is not in `{validated}`",
                        "take the release of Common Voice that CoVoST 2 was made from, version 4 (2019-12-10)",
                    )
                )
                continue
            yield Segment(
                id=name.rsplit(".", 1)[0],
                where=places[name],
                split=splits[name],
                audio=folder / "clips" / name,
                language=settings.language,
                transcript=said[0],
                translations=translations[name],
                speaker=said[1],
            )

    yield from source.utterances(clips())


def _translations(source: Source, settings: CovostCorpus) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(target language, table and line, row) of every translation in a split that there is; other rows go to `work.unfit`."""
    for target, table in settings.translations.items():
        for where, row in source.table(source.work.root / table, ("path", "translation", "split"), escaped=True):
            if row["split"] in SPLITS:
                yield target, where, row
            else:
                source.work.unfit(DataError(f"{where} is in split `{row['split']}`; known: {', '.join(SPLITS)}", PUBLISHED))
