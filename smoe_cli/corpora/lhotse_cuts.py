"""Existing Lhotse cut manifests, one per split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from lhotse import MonoCut

from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.lines import each_split, found, said_band, utterances
from smoe_cli.corpora.outside import Named, Outside
from smoe_cli.corpora.utterance import Utterance, Work, placed
from smoe_cli.corpus_settings import LhotseCorpus, LhotseRecipeCorpus, SupervisedCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import make_cut, read_lines, read_object, refuse_parts

Sourced: TypeAlias = LhotseCorpus | LhotseRecipeCorpus
Tree: TypeAlias = dict[str, Any] | DataError
"""An object that should describe a cut, or why there is none."""
TOGETHER = 64
"""Lines in memory whose commands and addresses are brought in at once."""


def read(settings: LhotseCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per cut; relative audio paths start from `work.root`, as those of the manifests do.

    Features that cuts may have are not used, and refused in a corpus that is not trusted.

    Raises:
        Unwritable: If audio cannot be brought in. A manifest that is missing or damaged goes to `work.lost`; a line that is no cut of one
            recording, has not exactly one supervision, names audio that is no file and not allowed, or has a field that is no text,
            to `work.unfit`.
    """

    def manifest(split: str, relative: Path) -> Iterator[Utterance]:
        path = found(work.root / relative, settings, work, f"cuts.{split}", "cut manifest")
        if work.dry_run:
            return
        yield from utterances_of(_trees(path), sum(1 for _ in read_lines(path)), split, settings, work)

    yield from each_split(settings, settings.cuts, work, "cuts", manifest)


def _trees(path: Path) -> Iterator[tuple[str, Tree]]:
    """(place, object) of each line of a manifest."""
    for number, raw in read_lines(path):
        where = f"`{path}` line {number}"
        try:
            tree: Tree = read_object(raw, where)
        except DataError as error:
            tree = error
        if number == 1 and isinstance(tree, dict):
            refuse_parts(tree, path)
        yield where, tree


def utterances_of(trees: Iterable[tuple[str, Tree]], total: int, split: str, settings: Sourced, work: Work) -> Iterator[Utterance]:
    """Yield one utterance for each object that describes a cut; what is wrong with one goes to `work.unfit`.

    Args:
        trees: (place, object or why there is none).
        total: How many there are, for the progress.

    Raises:
        Unwritable: As `read`.
    """

    def make(where: str, cut: MonoCut | DataError) -> Utterance:
        if isinstance(cut, DataError):
            raise cut
        return utterance_of(cut, split, settings, work, where)

    yield from utterances(_cuts(iter(trees), settings, work), total, make, work, f"{split} cuts")


def _cuts(trees: Iterator[tuple[str, Tree]], settings: Sourced, work: Work) -> Iterator[tuple[str, MonoCut | DataError]]:
    """The cut that each object describes; audio of commands and addresses that the settings allow is a file in it."""
    outside = Outside(settings.allow_sources, work, work.root)
    within = work.root if settings.untrusted else None
    while some := list(islice(trees, TOGETHER if outside.allowed else 1)):
        outside.bring(named for _, tree in some if isinstance(tree, dict) for _, named in _outside(tree, outside))
        for where, tree in some:
            try:
                if isinstance(tree, DataError):
                    raise tree
                for source, named in _outside(tree, outside):
                    source |= {"type": "file", "source": str(outside.file_of(named).resolve())}
                yield where, make_cut(tree, where, within, archives=not settings.untrusted, start=work.root)
            except Unwritable:
                raise
            except DataError as error:
                yield where, placed(error, where)


def _outside(tree: dict[str, Any], outside: Outside) -> list[tuple[dict[str, Any], Named]]:
    """Sources of a cut's recording that are no files, and allowed; nothing of the object was checked yet."""
    recording = tree.get("recording")
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(recording, dict) or not isinstance(sources, list):
        return []
    rate, samples = recording.get("sampling_rate"), recording.get("num_samples")
    # What a transform makes of it may have another length.
    promised = (rate, samples) if isinstance(rate, int) and isinstance(samples, int) and not recording.get("transforms") else None
    ours = [one for one in sources if isinstance(one, dict) and one.get("type") in outside.allowed and isinstance(one.get("source"), str)]
    return [(one, Named(one["type"], one["source"], promised)) for one in ours]


def utterance_of(cut: MonoCut, split: str, settings: SupervisedCorpus, work: Work, where: str) -> Utterance:
    """What a cut of one supervision says.

    Raises:
        DataError: If it has not exactly one, or a field that is no text.
    """
    if len(cut.supervisions) != 1:
        raise DataError(
            f"{where}: cut `{cut.id}` has {len(cut.supervisions)} supervisions; exactly one is expected",
            "trim the cuts to their supervisions (`lhotse cut trim-to-supervisions --discard-overlapping`)",
        )
    segment = cut.supervisions[0]
    custom = segment.custom or {}
    translations = {}
    for lang, field in settings.translations.items():
        value = custom.get(field)
        if value is not None and not isinstance(value, (str, list)):
            raise DataError(f"{where}: cut `{cut.id}`: `{field}` is neither a text nor a list of texts", "correct the manifest")
        if value:
            translations[lang] = [value] if isinstance(value, str) else [str(text) for text in value]

    def named(fields: dict[str, str]) -> dict[str, str]:
        """Name -> what its custom field says, where there is one."""
        said = {name: custom[field] for name, field in fields.items() if custom.get(field) not in (None, "")}
        for name, value in said.items():
            if not isinstance(value, str):
                raise DataError(f"{where}: cut `{cut.id}`: `{fields[name]}` is `{value}`, which is no text", "correct the manifest")
        return said

    return Utterance(
        id=cut.id,
        recording=cut.recording.with_path_prefix(work.root.resolve()),
        split=split,
        speaker=segment.speaker or "",
        language=segment.language or "",
        transcript=segment.text or "",
        translations=translations,
        start_s=cut.start,
        duration_s=cut.duration,
        channel=cut.channel,
        tags=named(settings.tag_fields),
        labels=named(settings.label_fields),
        bandwidth=said_band(custom, settings.bandwidth_field),
        source=where,
    )
