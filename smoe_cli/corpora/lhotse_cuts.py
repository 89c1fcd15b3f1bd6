"""Existing Lhotse cut manifests, one per split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut

from smoe_cli.audio import UNREADABLE
from smoe_cli.config import LhotseCorpus
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.errors import DataError


def read(settings: LhotseCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per cut; relative audio paths start from `work.root`, as those of the manifests do.

    Raises:
        DataError: If a manifest is missing or damaged, or a cut has not exactly one supervision, or a field that is no text.
    """
    for split, relative in settings.cuts.items():
        path = work.root / relative
        if not path.is_file():
            raise DataError(f"no cut manifest `{path}`", f"correct `data.corpora.{work.name}.cuts.{split}`")
        try:
            cuts = list(CutSet.from_jsonl_lazy(path))
        except UNREADABLE as error:
            raise DataError(f"cannot read cut manifest `{path}`: {error}", "it must be Lhotse cuts as JSON lines") from error
        for done, cut in enumerate(cuts, start=1):
            yield _utterance(cut, split, settings, work.root, str(path))
            work.progress(done, len(cuts), f"{work.name}: {split} cuts")


def _utterance(cut: MonoCut, split: str, settings: LhotseCorpus, root: Path, where: str) -> Utterance:
    if not isinstance(cut, MonoCut) or cut.recording is None:
        raise DataError(
            f"`{where}`: cut `{cut.id}` is not one channel of one recording", "export mixed or feature-only cuts to audio first"
        )
    if len(cut.supervisions) != 1:
        raise DataError(
            f"`{where}`: cut `{cut.id}` has {len(cut.supervisions)} supervisions; exactly one is expected",
            "trim the cuts to their supervisions (`lhotse cut trim-to-supervisions`)",
        )
    segment = cut.supervisions[0]
    custom = segment.custom or {}
    translations = {}
    for lang, field in settings.translations.items():
        value = custom.get(field)
        if value is not None and not isinstance(value, (str, list)):
            raise DataError(f"`{where}`: cut `{cut.id}`: `{field}` is neither a text nor a list of texts", "correct the manifest")
        if value:
            translations[lang] = [value] if isinstance(value, str) else [str(text) for text in value]

    def named(fields: dict[str, str]) -> dict[str, str]:
        """Name -> what its custom field says, where there is one."""
        found = {name: custom[field] for name, field in fields.items() if custom.get(field) not in (None, "")}
        for name, value in found.items():
            if not isinstance(value, str):
                raise DataError(f"`{where}`: cut `{cut.id}`: `{fields[name]}` is `{value}`, which is no text", "correct the manifest")
        return found

    return Utterance(
        id=cut.id,
        recording=cut.recording.with_path_prefix(root.resolve()),
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
    )
