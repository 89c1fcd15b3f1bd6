"""Is there what a corpus starts from? For `smoe prepare --dry-run`: nothing is read, and what is missing is said as reading says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from smoe_cli.corpora.files import is_file
from smoe_cli.corpora.librispeech import part_folder
from smoe_cli.corpora.lines import each_split, found
from smoe_cli.corpora.segments import LOST, Source
from smoe_cli.corpora.utterance import Work
from smoe_cli.corpus_settings import (
    CorpusSettings,
    CovostCorpus,
    EuroparlStCorpus,
    FisherCallhomeCorpus,
    FleursCorpus,
    FolderCorpus,
    LhotseCorpus,
    LhotseRecipeCorpus,
    LibrispeechCorpus,
    MiniLibrispeechCorpus,
    MtedxCorpus,
    MustcCorpus,
    NemoCorpus,
    PublishedCorpus,
    SwitchboardCorpus,
    TsvCorpus,
    VoxpopuliCorpus,
)
from smoe_cli.errors import DataError

P = TypeVar("P", Path, str)


def look_for(settings: CorpusSettings, work: Work) -> None:
    """Look for the tables, manifests and folders that a corpus starts from; what is not there goes to `work.lost`.

    A kind of corpus that is not named here is looked for when it is read.
    """

    def manifest(what: str, key: str) -> Callable[[str, Path], object]:
        return lambda split, path: found(work.root / path, settings, work, f"{key}.{split}", what)

    try:
        match settings:
            case TsvCorpus():
                found(work.root / settings.path, settings, work, "path", "table")
            case NemoCorpus():
                _each(settings, settings.manifests, work, "manifests", manifest("manifest", "manifests"))
            case LhotseCorpus():
                _each(settings, settings.cuts, work, "cuts", manifest("cut manifest", "cuts"))
            case LhotseRecipeCorpus():
                import_module(settings.reader).look(settings, work)
            case FolderCorpus():
                look = import_module(settings.reader).look
                _each(settings, settings.folders, work, "path", lambda split, name: look(split, name, settings, work))
            case PublishedCorpus():
                _published(settings, work)
    except DataError as error:
        work.lost(error)


def _each(settings: CorpusSettings, parts: Mapping[str, P], work: Work, key: str, look: Callable[[str, P], object]) -> None:
    """Look for each split, as `each_split` reads it."""

    def nothing(split: str, part: P) -> tuple[()]:
        look(split, part)
        return ()

    for _ in each_split(settings, parts, work, key, nothing):
        pass


def _published(settings: PublishedCorpus, work: Work) -> None:
    """Look for the folders of a published corpus, and for its parts or lists of segments if they are there.

    Raises:
        DataError: If a folder is missing: nothing else of the corpus can then be there.
    """
    source = Source(settings, work)
    for folder, setting in _folders(settings):
        source.folder(folder, setting)
    for path in settings.sources():
        if not is_file(work.root / path):
            work.lost(DataError(f"no file `{work.root / path}`", LOST))
    if isinstance(settings, LibrispeechCorpus | MiniLibrispeechCorpus):
        for part in settings.kept_parts():
            try:
                part_folder(work.root / settings.path, part, work)
            except DataError as error:
                work.lost(error)


def _folders(settings: PublishedCorpus) -> list[tuple[Path, str]]:
    """(folder, its setting), in the order in which readers ask for them."""
    match settings:
        case FleursCorpus() | EuroparlStCorpus() | VoxpopuliCorpus():
            return [(settings.path / settings.spoken, "path")]
        case SwitchboardCorpus():
            return [(settings.path, "path"), (settings.transcripts, "transcripts")]
        case FisherCallhomeCorpus():
            collections = sorted({part.split("_")[0] for part in settings.kept_parts()})
            kinds = [f"{name}_{kind}" for name in collections for kind in ("speech", "transcripts")]
            texts = [(settings.path / "mapping", "path"), (settings.path / "corpus" / "ldc", "path")]
            return texts + [(getattr(settings, kind), kind) for kind in kinds]
        case LibrispeechCorpus() | MiniLibrispeechCorpus() | MustcCorpus() | CovostCorpus() | MtedxCorpus():
            return [(settings.path, "path")]
    return []
