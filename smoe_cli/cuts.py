"""The only reader and writer of tags on Lhotse cuts: utterance x task x bandwidth -> one tagged cut each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smoe_cli.audio import resampled
from smoe_cli.bandwidth import Estimate
from smoe_cli.config import Config
from smoe_cli.corpora.utterance import Utterance
from smoe_cli.errors import DataError, RouteError
from smoe_cli.manifests import manifest_writer, read_manifest
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import TELEPHONE_HZ, Bandwidth, Route, parse_bandwidth
from smoe_cli.telephone import ToWrite, bands_of, send, to_write
from smoe_cli.transforms import chain_of, check_rate

NARROWBAND_HZ = TELEPHONE_HZ
WIDEBAND_HZ = 16000
BARE, UNDETERMINED = "bare", "und"
"""Corpus and spoken language of an audio file that no manifest names; the latter is what ISO 639-2 says where nobody knows."""
Said = Annotated[str, Field(pattern=r"\S")]
"""A tag that must say something: an empty one is a missing one."""
_WRONG = {"string_pattern_mismatch": "is empty"}


class Tags(BaseModel):
    """What the supervision of every cut carries besides text and language. A missing, empty or wrong field is an error.

    `axes` holds the tags on the recipe's own axes; manifests of recipes without such axes may lack it. `line` names the telephone
    line that was simulated, `bandwidth_hz` and `bandwidth_confidence` what the spectrum of the recording says, if that was asked
    for; they are left out where they say nothing.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    utterance: Said
    corpus: Said
    task: Said
    bandwidth: Said
    source_lang: Said
    transcript: str
    references: list[str]
    subset: str
    synthetic: bool
    axes: dict[str, Said] = {}
    line: str | None = None
    bandwidth_hz: int | None = None
    bandwidth_confidence: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """What the spectrum of the recording says, if that was asked for."""
        if self.bandwidth_hz is None or self.bandwidth_confidence is None:
            return None
        return Estimate.kept(self.bandwidth_hz, self.bandwidth_confidence)


def rate_of(recording: Recording) -> int:
    """The lowest sampling rate between a recording's file and its end: what comes after it brings nothing back."""
    return chain_of(recording).lowest_hz


def native_bandwidth(recording: Recording, said: Bandwidth | None, estimate: Estimate | None = None) -> Bandwidth:
    """What a recording carries: the user's word, else a reliable estimate, else what the lowest rate that it passes through allows.

    Raises:
        DataError: If it is called wideband below 16 kHz, or nothing is said and its rate is between telephone and wideband.
    """
    rate, where = rate_of(recording), f"audio `{recording.sources[0].source}`"
    comes = "is sampled at" if rate == recording.sampling_rate else "passes through"
    cure = "call it narrowband: `bandwidth: nb` of its corpus, `--bandwidth nb` for a bare file"
    if said is Bandwidth.WB and rate < WIDEBAND_HZ:
        raise DataError(f"{where} is called wideband, but {comes} {rate} Hz, below {WIDEBAND_HZ} Hz", cure)
    if said is not None:
        return said
    if estimate is not None and estimate.reliable and (estimate.band is Bandwidth.NB or rate >= WIDEBAND_HZ):
        return estimate.band
    if NARROWBAND_HZ < rate < WIDEBAND_HZ:
        raise DataError(
            f"{where} {comes} {rate} Hz: neither telephone ({NARROWBAND_HZ} Hz or less) nor wideband ({WIDEBAND_HZ} Hz or more)",
            f"resample it to {NARROWBAND_HZ} Hz, or {cure}",
        )
    return Bandwidth.NB if rate <= NARROWBAND_HZ else Bandwidth.WB


def band_of(recording: Recording, said: Bandwidth | None, estimate: Estimate | None, rate_hz: int) -> Bandwidth:
    """What is left of a recording at the rate of a model's features: narrowband at 8 kHz and below, else what it carries.

    Raises:
        DataError: As `native_bandwidth`, and if it is called wideband where nothing can be.
    """
    if rate_hz > NARROWBAND_HZ:
        return native_bandwidth(recording, said, estimate)
    if said is Bandwidth.WB:
        raise DataError(
            f"audio `{recording.sources[0].source}` is called wideband, but the model hears all at {rate_hz} Hz",
            "leave the bandwidth out, or call it `nb`",
        )
    return Bandwidth.NB


def make_cuts(utterance: Utterance, corpus: str, config: Config) -> Iterator[MonoCut]:
    """One cut per task and band that the utterance can serve; audio stays where it is, all resampling is lazy.

    A narrowband twin goes to 8 kHz and back, as in arXiv:2508.10009, section 3.1, and there through the line that
    `data.nb_simulation` has for it. A model at 8 kHz hears it where the line ends, and nothing else of a wideband recording.

    Raises:
        DataError: As `check_utterance`, and if simulated audio is to be written and cannot.
    """
    check_utterance(utterance, corpus, config)
    if utterance.prepared is not None:
        cut, rate = utterance.prepared, config.features.sample_rate_hz
        if cut.sampling_rate != rate:
            check_rate(f"cut `{cut.id}`", cut.sampling_rate, rate)
        yield cut if cut.sampling_rate == rate else cut.resample(rate)
        return
    utterance, native, bands, duration_s = _uses(utterance, corpus, config)
    for band in bands:
        heard, line = (utterance, None) if band is native else send(utterance, corpus, duration_s, config)
        for route, target, references in _targets(heard, band, config):
            yield _cut(heard, corpus, route, target, references, duration_s, line, config)


def lines_to_write(utterance: Utterance, corpus: str, config: Config) -> list[ToWrite]:
    """The simulated audio that the cuts of an utterance will name, if it is to be written and was not yet.

    Raises:
        DataError: If nobody knows what the recording carries.
    """
    if utterance.prepared is not None:
        return []
    utterance, native, bands, duration_s = _uses(utterance, corpus, config)
    sent = native is Bandwidth.WB and Bandwidth.NB in bands
    return to_write(utterance, corpus, duration_s, config) if sent else []


def _uses(utterance: Utterance, corpus: str, config: Config) -> tuple[Utterance, Bandwidth, list[Bandwidth], float]:
    """An utterance as it is cut, what its recording carries, the bands in which it is used, and how long it is at the model's rate."""
    rate_hz, of = config.features.sample_rate_hz, (utterance.recording, utterance.bandwidth, utterance.estimate)
    # What the model hears at 8 kHz comes out of a line too, if it was wideband.
    native = native_bandwidth(*of) if config.data.nb_downsample else band_of(*of, rate_hz)
    bands = [native]
    if native is Bandwidth.WB and config.data.nb_downsample:
        both = Bandwidth.WB in config.bands()
        bands = bands_of(config.data.nb_simulation, f"{corpus}/{utterance.id}", utterance.split) if both else [Bandwidth.NB]
        # Lhotse would round the start on the way to 8 kHz, and so move the twin alone.
        utterance = replace(utterance, start_s=round(utterance.start_s * TELEPHONE_HZ) / TELEPHONE_HZ)
    # Of the recording as it is: on the way to 8 kHz and back, an odd length is rounded.
    rest_s = resampled(utterance.recording, rate_hz).duration - utterance.start_s
    return utterance, native, bands, rest_s if utterance.duration_s is None else min(utterance.duration_s, rest_s)


def check_utterance(utterance: Utterance, corpus: str, config: Config) -> None:
    """Refuse an utterance without a known value on every axis of the recipe, without what a task must know of it, or at an odd rate.

    One that was prepared before must have a route of the recipe, and a text that the recipe would leave as it is.

    Raises:
        DataError: Naming the utterance and what it lacks; nothing is guessed.
    """
    if utterance.prepared is not None:
        _check_prepared(utterance.prepared, utterance.source and utterance.source + ": ", config)
        return
    where = f"{utterance.source and utterance.source + ': '}utterance `{utterance.id}` of corpus `{corpus}`"
    for rate in (config.features.sample_rate_hz, *([TELEPHONE_HZ] if config.data.nb_downsample else [])):
        check_rate(where, utterance.recording.sampling_rate, rate)
    for task, lang in config.targets():
        target = config.kind(task).target
        if target == "transcript" and lang == utterance.language and not utterance.transcript.strip():
            raise DataError(
                f"{where} has no transcript, and task `{task}` writes `{lang}`", "fill it in, or leave the utterance or the task out"
            )
        if target == "language" and utterance.language_assumed:
            raise DataError(
                f"{where}: nobody named its language, and task `{task}` is to learn it", f"name it: `data.corpora.{corpus}.language`"
            )
    wrong: dict[str, str] = {}
    for axis, values in config.axes.items():
        found = utterance.tags.get(axis)
        if found is None:
            wrong[f"no value on axis `{axis}`; known: {', '.join(values)}"] = (
                f"name the value for all of the corpus (`data.corpora.{corpus}.tags: {{{axis}: VALUE}}`), or where to find it "
                "(`tag_columns` of a table, `tag_fields` of Lhotse manifests)"
            )
        elif found not in values:
            cure = f"write it `{found.lower()}`" if found.lower() in values else f"correct it, or add it to `axes.{axis}`"
            wrong[f"the unknown value `{found}` on axis `{axis}`; known: {', '.join(values)}"] = cure
    if wrong:
        raise DataError(f"{where} has {'; and '.join(wrong)}", "; ".join(wrong.values()))


def _check_prepared(cut: MonoCut, where: str, config: Config) -> None:
    try:
        route = route_of(cut)
    except (DataError, RouteError) as error:
        raise DataError(where + error.message, "pack it again from a manifest that `smoe prepare` wrote") from error
    if route not in config.routes():
        routes = ", ".join(dict.fromkeys(f"{task}/{lang}" for task, lang in config.targets()))
        raise DataError(
            f"{where}cut `{cut.id}` was prepared for the route `{route}`, which the recipe does not have; it has: {routes}"
            + (f", and the axes {', '.join(config.axes)}" if config.axes else ""),
            "give the recipe the tasks and axes that it was prepared with, or pack only what this recipe has",
        )
    text = str(cut.supervisions[0].text)
    if not config.kind(route.task).closed and config.text_policy(route.task).clean(text) != text:
        raise DataError(
            f"{where}cut `{cut.id}` was prepared with another case or punctuation than the recipe's: `{text}`",
            "set `lowercase` and `strip_punctuation` as they were, or prepare and pack it again",
        )


def _targets(utterance: Utterance, band: Bandwidth, config: Config) -> Iterator[tuple[Route, str, list[str]]]:
    """(route, text to train on, all right answers) for every task the utterance can serve."""
    extra = tuple((axis, utterance.tags[axis]) for axis in config.axes)
    for task, lang in config.targets():
        right: list[str] = []
        kind = config.kind(task)
        if kind.target == "transcript":
            right = [utterance.transcript] if lang == utterance.language else []
        elif kind.target == "translation":
            right = utterance.translations.get(lang, []) if lang != utterance.language else []
        elif kind.target == "language":
            right = [utterance.language]
        elif label := utterance.labels.get(config.label(task)):
            right = [label]
        if right:
            # A label is a name, not text: it stays as it is written.
            right = right if kind.closed else [config.text_policy(task).clean(text) for text in right]
            yield Route(task, lang, band, extra), right[0], right


def _cut(
    utterance: Utterance,
    corpus: str,
    route: Route,
    target: str,
    references: list[str],
    duration: float,
    line: str | None,
    config: Config,
) -> MonoCut:
    tags = Tags(
        utterance=f"{corpus}/{utterance.id}",
        corpus=corpus,
        task=route.task,
        bandwidth=str(route.bandwidth),
        source_lang=utterance.language,
        transcript=config.transcript_policy(route.task).clean(utterance.transcript),
        references=references,
        subset=utterance.subset,
        synthetic=utterance.synthetic,
        axes=dict(route.extra),
        line=line,
        bandwidth_hz=utterance.estimate.bandwidth_hz if utterance.estimate else None,
        bandwidth_confidence=utterance.estimate.confidence if utterance.estimate else None,
    )
    recording = resampled(utterance.recording, config.features.sample_rate_hz)
    cut_id = f"{corpus}-{utterance.id}-{route.task}-{route.lang}-{route.bandwidth}"
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        channel=utterance.channel,
        text=target,
        language=route.lang,
        speaker=utterance.speaker,
        custom=tags.model_dump(exclude_none=True),
    )
    return MonoCut(
        id=cut_id, start=utterance.start_s, duration=duration, channel=utterance.channel, supervisions=[supervision], recording=recording
    )


def tags_of(cut: MonoCut) -> Tags:
    """The tags of a cut.

    Raises:
        DataError: If the cut has not one supervision with its language and all tags; nothing is assumed.
    """
    if len(cut.supervisions) != 1:
        raise DataError(
            f"cut `{cut.id}` has {len(cut.supervisions)} supervisions, expected one", "prepare the manifest with `smoe prepare`"
        )
    supervision, problems = cut.supervisions[0], list[str]()
    if not (supervision.language or "").strip():
        problems.append("`language`: is empty")
    try:
        tags = Tags.model_validate(supervision.custom or {})
    except ValidationError as error:
        problems += [f"`{'.'.join(map(str, item['loc']))}`: {_WRONG.get(item['type'], item['msg'].lower())}" for item in error.errors()]
    if problems:
        raise DataError(f"cut `{cut.id}` lacks supervision: {', '.join(problems)}", "prepare the manifest with `smoe prepare`")
    return tags


def route_of(cut: MonoCut, plan: RoutingPlan | None = None, tags: Tags | None = None) -> Route:
    """The route of a cut, from its tags alone.

    Args:
        plan: Must have the route.
        tags: The cut's, if they were read before.

    Raises:
        DataError: If a tag is missing.
        RouteError: If the bandwidth is unknown, or the plan lacks the route.
    """
    tags = tags or tags_of(cut)
    try:
        route = Route(tags.task, str(cut.supervisions[0].language), parse_bandwidth(tags.bandwidth), tuple(tags.axes.items()))
        return plan.check(route) if plan else route
    except RouteError as error:
        raise RouteError(f"cut `{cut.id}`: {error.message}", "correct its tags in the manifest, or prepare it again") from None


def contradiction(cut: MonoCut, route: Route) -> str | None:
    """What the recording's own history says against its bandwidth tag.

    Only wideband can be refuted: telephone speech may rightly be stored at any rate.
    """
    lowest = chain_of(cut.recording).lowest_hz
    if route.bandwidth is Bandwidth.WB and lowest <= NARROWBAND_HZ:
        return f"tagged wideband, but its audio passes through {lowest} Hz: nothing above {lowest // 2} Hz is left"
    return None


def write_cuts(path: Path, cuts: Iterable[MonoCut]) -> None:
    """Write a whole manifest or nothing; the same cuts always give the same bytes.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    with manifest_writer(path) as write:
        for cut in cuts:
            write(line_of_cut(cut))


def line_of_cut(cut: MonoCut) -> bytes:
    """A cut as a line of a manifest."""
    return (json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode()


def stream_manifest(path: Path) -> Iterator[MonoCut]:
    """Yield a manifest's cuts one by one, whatever their tags.

    Raises:
        DataError: If the manifest is missing, damaged or empty, or a cut's audio is not a file.
    """
    item = None
    for item in read_manifest(path):
        if item.cut is None:
            raise item.problem or AssertionError
        yield item.cut
    if item is None:
        raise DataError(f"manifest `{path}` is empty", "prepare it again with `smoe prepare`")


def open_manifest(path: Path) -> CutSet:
    """Read a manifest into memory, whatever its tags.

    Raises:
        DataError: As `stream_manifest`.
    """
    return CutSet.from_cuts(list(stream_manifest(path)))


def read_cuts(path: Path) -> CutSet:
    """Read a tagged manifest into memory.

    Raises:
        DataError: As `open_manifest`, and if a cut lacks a tag.
    """
    cuts = open_manifest(path)
    for cut in cuts:
        tags_of(cut)
    return cuts
