"""Existing Lhotse cut manifests, one per split."""

from __future__ import annotations

from collections.abc import Iterator

from lhotse import MonoCut

from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import LhotseCorpus, SharCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within, read_lines, read_manifest


def read(settings: LhotseCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per cut; relative audio paths start from `work.root`, as those of the manifests do.

    Features that cuts may have are not used, and refused in a corpus that is not trusted.

    Raises:
        DataError: If a manifest is missing or damaged. A line that is no cut of one recording, has not exactly one supervision,
            names audio that is no file, or has a field that is no text, goes to `work.unfit`.
    """
    for split, relative in settings.cuts.items():
        path = work.root / relative
        if not path.is_file():
            raise DataError(f"no cut manifest `{path}`", f"correct `data.corpora.{work.name}.cuts.{split}`")
        if settings.untrusted:
            check_within(path, work.root, f"`data.corpora.{work.name}.cuts.{split}`")
        total = sum(1 for _ in read_lines(path))
        for item in read_manifest(path, work.root if settings.untrusted else None, archives=not settings.untrusted):
            try:
                if item.cut is None:
                    raise item.problem or AssertionError
                utterance = utterance_of(item.cut, split, settings, work, f"`{path}` line {item.number}")
            except DataError as error:
                work.unfit(error)
                continue
            yield utterance
            work.progress(item.number, total, f"{work.name}: {split} cuts")


def utterance_of(cut: MonoCut, split: str, settings: LhotseCorpus | SharCorpus, work: Work, where: str) -> Utterance:
    """What a cut of one supervision says.

    Raises:
        DataError: If it has not exactly one, or a field that is no text.
    """
    if len(cut.supervisions) != 1:
        raise DataError(
            f"{where}: cut `{cut.id}` has {len(cut.supervisions)} supervisions; exactly one is expected",
            "trim the cuts to their supervisions (`lhotse cut trim-to-supervisions`)",
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
        found = {name: custom[field] for name, field in fields.items() if custom.get(field) not in (None, "")}
        for name, value in found.items():
            if not isinstance(value, str):
                raise DataError(f"{where}: cut `{cut.id}`: `{fields[name]}` is `{value}`, which is no text", "correct the manifest")
        return found

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
    )
