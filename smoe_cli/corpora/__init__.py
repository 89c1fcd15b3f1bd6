"""Corpora: raw files -> utterances. One file each, which the corpus's settings name."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from importlib import import_module

from smoe_cli.config import SPLITS
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import CorpusSettings
from smoe_cli.errors import DataError


def look_for(settings: CorpusSettings, work: Work) -> None:
    """Look for what a corpus starts from; what is not there goes to `work.lost`, as reading says it.

    It is read as far as to its first utterance; readers end before, in a dry run, where that would be far.

    Args:
        work: With `dry_run`.
    """
    with closing(read_corpus(settings, work)) as utterances:
        try:
            next(utterances, None)
        except DataError as error:
            work.lost(error)


def read_corpus(settings: CorpusSettings, work: Work) -> Generator[Utterance, None, None]:
    """Yield a corpus's utterances with the recipe's split names, and what its settings say of all of them.

    What is wrong with one utterance, such as a split that is none of train, dev, test, goes to `work.unfit`; what is wrong with
    several at once, such as a part that is missing, to `work.lost`.

    Raises:
        DataError: For a damaged or missing source that nothing can be read without.
    """
    for utterance in import_module(settings.reader).read(settings, work):
        split = settings.split_of(utterance.split)
        if split is None:
            continue
        if split not in SPLITS:
            work.unfit(
                DataError(
                    f"utterance `{utterance.id}` of corpus `{work.name}` is in split `{split}`; known: {', '.join(SPLITS)}",
                    f"rename or leave it out: `data.corpora.{work.name}.splits: {{{split}: dev}}` (or train, test, null)",
                ),
                utterance.source,
            )
            continue
        yield utterance.placed(split, settings)
