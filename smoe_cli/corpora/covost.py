"""CoVoST 2: tables of translations (`covost_v2.en_de.tsv`) over the clips of Common Voice (`validated.tsv`, `clips/`)."""

from __future__ import annotations

from collections.abc import Iterator

from smoe_cli.corpora.segments import PUBLISHED, Segment, Source
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import CovostCorpus
from smoe_cli.errors import DataError

EXTENDED_TRAIN = "train_covost"
"""CoVoST 2 adds these rows to the train split of Common Voice. Its `dev_covost` and `test_covost` belong to no split."""


def read(settings: CovostCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per clip that has a translation, with its translations into all target languages.

    Raises:
        DataError: If the folder of Common Voice, a table or a column is missing. Damaged lines, and translations of clips that
            `validated.tsv` does not have, go to `work.unfit`.
    """
    source = Source(settings, work)
    folder = source.folder(settings.path)
    splits: dict[str, str] = {}
    translations: dict[str, dict[str, list[str]]] = {}
    places: dict[str, str] = {}
    for target, table in settings.translations.items():
        for where, row in source.table(work.root / table, ("path", "translation", "split"), escaped=True):
            name, split = row["path"], "train" if row["split"] == EXTENDED_TRAIN else row["split"]
            if split not in settings.parts:
                work.left_out[f"translations into `{target}` of split `{split}`, which CoVoST 2 does not use,"] += 1
            elif settings.split_of(split) is not None:
                if splits.setdefault(name, split) != split:
                    work.unfit(DataError(f"{where}: clip `{name}` is in split `{split}`, and elsewhere in `{splits[name]}`", PUBLISHED))
                    continue
                translations.setdefault(name, {}).setdefault(target, []).append(row["translation"])
                places.setdefault(name, where)
    validated = folder / "validated.tsv"
    spoken = {
        row["path"]: row for _, row in source.table(validated, ("path", "sentence", "client_id"), escaped=True) if row["path"] in splits
    }

    def clips() -> Iterator[Segment]:
        for name in source.follow(sorted(splits), "clips"):
            row = spoken.get(name)
            if row is None:
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
                transcript=row["sentence"],
                translations=translations[name],
                speaker=row["client_id"],
            )

    yield from source.utterances(clips())
