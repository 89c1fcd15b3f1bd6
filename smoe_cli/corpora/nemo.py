"""Manifests of NeMo: one JSON object a line. Rows about the same audio, one per task, become one utterance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smoe_cli.audio import LONGEST_S, TOLERANCE_S
from smoe_cli.corpora.files import recording_of
from smoe_cli.corpora.lines import answers_of, each_split, found, id_of, objects, said_band, text_of, texts_of, utterances
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import NemoCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within
from smoe_cli.records import name_digest
from smoe_cli.tags import Bandwidth

TRANSCRIBES, TRANSLATES = ("asr", "transcribe"), ("ast", "translate", "s2t_translation")
NO_ANSWER = "na"
"""What stands for the answer in manifests that are to be decoded."""


@dataclass(frozen=True)
class _Row:
    """What one row, or all rows about the same audio, say."""

    id: str
    audio: str
    offset_s: float | None
    duration_s: float | None
    speaker: str
    language: str
    transcript: str
    translations: dict[str, list[str]]
    tags: dict[str, str]
    labels: dict[str, str]
    bandwidth: Bandwidth | None

    def key(self) -> bytes:
        """The same for rows about the same audio."""
        return name_digest(repr((self.id, self.audio, self.offset_s, self.duration_s)))


def read(settings: NemoCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per piece of audio, in the order of the manifest, where its last row stands.

    Raises:
        Nothing: a manifest that is missing or unreadable goes to `work.lost`; a line that is no JSON object, lacks a field, contradicts
            itself or another line about the same audio, or names audio that is not there, to `work.unfit`.
    """

    def manifest(split: str, relative: Path) -> Iterator[Utterance]:
        path = found(work.root / relative, settings, work, f"manifests.{split}")
        if work.dry_run:
            return
        # What is wrong is said when the rows are used.
        many = Counter(row.key() for _, row in _rows(path, settings, replace(work, problems=[], losses=[])))
        total, rows = len(many), _merged(path, many, settings, work)

        def make(where: str, row: _Row) -> Utterance:
            return _utterance(where, row, path.parent, split, settings, work)

        yield from utterances(rows, total, make, work, f"{split} rows")

    yield from each_split(settings, settings.manifests, work, "manifests", manifest)


def _merged(path: Path, many: Counter[bytes], settings: NemoCorpus, work: Work) -> Iterator[tuple[str, _Row]]:
    """Rows of a manifest, those about the same audio as one, when the last of them was read; only what is not whole is in memory.

    Args:
        many: How many rows there are about each piece of audio; counted down.
    """
    waiting: dict[bytes, tuple[str, _Row]] = {}
    for where, row in _rows(path, settings, work):
        key = row.key()
        first, merged = waiting.pop(key, (where, row))
        try:
            merged = row if merged is row else _together(merged, row)
        except DataError as error:
            work.unfit(error, where)
        many[key] -= 1
        if many[key] > 0:
            waiting[key] = (first, merged)
        else:
            yield first, merged


def _rows(path: Path, settings: NemoCorpus, work: Work) -> Iterator[tuple[str, _Row]]:
    for where, tree in objects(path, work):
        try:
            yield where, _row(tree, path.parent, settings, work)
        except DataError as error:
            work.unfit(error, where)


def _row(tree: Mapping[str, Any], folder: Path, settings: NemoCorpus, work: Work) -> _Row:
    audio = text_of(tree, "audio_filepath")
    if not audio:
        like = [f"`{name}`" for name in tree if "audio" in name.lower() and name != "audio_filepath"]
        cure = (
            f"it has {', '.join(like)}: call the one that names the file `audio_filepath`"
            if like
            else "name the audio file, or remove the row"
        )
        raise DataError("the row has no `audio_filepath`", cure)
    offset_s, duration_s = _seconds(tree, "offset"), _seconds(tree, "duration")
    if duration_s == 0:
        raise DataError("`duration` is 0", "correct it, or remove the row")
    source = text_of(tree, "source_lang") or text_of(tree, "lang")
    target = text_of(tree, "target_lang") or source
    translating = _translates(tree, source, target)
    text, answer = text_of(tree, settings.text_field), text_of(tree, settings.answer_field)
    answer = "" if answer == NO_ANSWER else answer
    translations = answers_of(tree, settings.translations)
    if translating:
        right = answer or text
        if not right:
            raise DataError(f"the row translates into `{target}` and has no text", f"fill in `{settings.answer_field}`, or remove the row")
        translations = translations | {target: [right]}
        transcript = text if answer and text != answer else ""
    else:
        transcript = answer or text
    start = "" if offset_s is None else f"-{round(1000 * offset_s):08d}"
    return _Row(
        id=text_of(tree, settings.id_field) or id_of(folder / audio, work.root) + start,
        audio=audio,
        offset_s=offset_s,
        duration_s=duration_s,
        speaker=text_of(tree, settings.speaker_field),
        language=source,
        transcript=transcript,
        translations=translations,
        tags=texts_of(tree, settings.tag_fields),
        labels=texts_of(tree, settings.label_fields),
        bandwidth=said_band(tree, settings.bandwidth_field),
    )


def _translates(tree: Mapping[str, Any], source: str, target: str) -> bool:
    """Whether a row translates: its languages tell, and its task must not say otherwise."""
    task = text_of(tree, "taskname") or text_of(tree, "task")
    if task and task not in TRANSCRIBES + TRANSLATES:
        known = ", ".join(TRANSCRIBES + TRANSLATES)
        raise DataError(
            f"the row is of task `{task}`; known: {known}", "leave such rows out, or give their answers as labels (`label_fields`)"
        )
    if target and not source:
        raise DataError(f"the row has `target_lang` `{target}` and no `source_lang`", "name the spoken language in `source_lang`")
    if task and (task in TRANSLATES) != (source != target):
        raise DataError(f"the row is of task `{task}`, from `{source}` into `{target}`", "correct `taskname` or the languages")
    return source != target


def _seconds(tree: Mapping[str, Any], field: str) -> float | None:
    value = tree.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
        most = f"from 0 to {LONGEST_S:g}"
        raise DataError(f"`{field}` is `{json.dumps(value)}`, which is no number of seconds {most}", "correct the manifest")
    return float(value)


def _together(one: _Row, other: _Row) -> _Row:
    """What two rows about the same audio say together.

    Raises:
        DataError: If they contradict each other.
    """
    for name in ("transcript", "language", "speaker", "bandwidth"):
        said, also = getattr(one, name), getattr(other, name)
        if said and also and said != also:
            raise DataError(
                f"another row about `{other.audio}` says `{name}` is `{said}`, this one `{also}`",
                "correct one of them, or give the rows different ids",
            )
    for lang in one.translations.keys() & other.translations.keys():
        if one.translations[lang] != other.translations[lang]:
            raise DataError(
                f"another row about `{other.audio}` translates it into `{lang}` too, in other words",
                "keep one of them, or give the rows different ids",
            )
    return replace(
        one,
        transcript=one.transcript or other.transcript,
        language=one.language or other.language,
        speaker=one.speaker or other.speaker,
        translations=one.translations | other.translations,
        tags=one.tags | other.tags,
        labels=one.labels | other.labels,
        bandwidth=one.bandwidth or other.bandwidth,
    )


def _utterance(where: str, row: _Row, folder: Path, split: str, settings: NemoCorpus, work: Work) -> Utterance:
    path = folder / row.audio
    if settings.untrusted:
        check_within(path, work.root, where)
    recording = recording_of(path, row.id)
    duration_s = row.duration_s
    if duration_s is not None and row.offset_s is None:
        if duration_s > recording.duration + TOLERANCE_S:
            raise DataError(
                f"`duration` says {duration_s:g}, the audio has {recording.duration:g}",
                "correct the manifest, or bring back the right file",
            )
        # A rounded duration of the whole file cuts nothing off.
        duration_s = None if abs(duration_s - recording.duration) <= TOLERANCE_S else duration_s
    return Utterance(
        id=row.id,
        recording=recording,
        split=split,
        speaker=row.speaker,
        language=row.language,
        transcript=row.transcript,
        translations=row.translations,
        start_s=row.offset_s or 0.0,
        duration_s=duration_s,
        tags=row.tags,
        labels=row.labels,
        bandwidth=row.bandwidth,
        source=where,
    )
