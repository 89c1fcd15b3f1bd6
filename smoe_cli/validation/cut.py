"""Is one cut, on its own, what its tags say it is?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lhotse import MonoCut

from smoe_cli.audio import TOLERANCE_S
from smoe_cli.bandwidth import contradicts
from smoe_cli.config import Config
from smoe_cli.cuts import Tags, contradiction
from smoe_cli.errors import DataError
from smoe_cli.tags import TASK_KINDS, Route, TaskKind
from smoe_cli.validation.languages import other_language
from smoe_cli.validation.texts import FASTEST, SLOWEST, Severity, characters, faults, script_fault, shown

MEND = "correct it in the corpus and prepare again, or leave it out: `smoe validate --fix`"
LOOK = "look at it; if it is right, leave it"
COPIED_WORDS = 4
"""Words from which a translation that equals its transcript was probably not translated; shorter ones can be names."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a cut: the check that found it, `error` or `note`, and what to do."""

    check: str
    severity: Severity
    message: str
    hint: str = MEND


class Rules:
    """What a recipe says of its cuts; without one, what holds of all."""

    def __init__(self, config: Config | None) -> None:
        self.config = config
        self.routes = frozenset(config.routes()) if config is not None else None
        self.targets = config.targets() if config is not None else None

    def kind(self, task: str) -> TaskKind | None:
        """The kind of a task; None: neither the recipe nor smoe knows it."""
        return self.config.kind(task) if self.config is not None and task in self.config.tasks else TASK_KINDS.get(task)


def check_span(what: str, audio: str, span_s: tuple[float, float], whole_s: float, config: Config | None) -> None:
    """Refuse a part of a recording that leaves it, or that is too short or too long for the recipe.

    Args:
        what: Names the cut or utterance.
        audio: Names the recording.
        span_s: Its start and its duration.
        whole_s: Duration of the recording.

    Raises:
        DataError: If it is so.
    """
    start_s, duration_s = span_s
    # Written so that what is no number is refused too.
    if not (0 <= start_s < whole_s and start_s + duration_s <= whole_s + TOLERANCE_S):
        raise DataError(
            f"{what} goes from {start_s:.2f} to {start_s + duration_s:.2f} s, but audio `{audio}` from 0 to {whole_s:.2f} s",
            "correct the cut, or bring back the right audio",
        )
    if config is not None and not config.data.min_duration_s <= duration_s <= config.data.max_duration_s:
        raise DataError(
            f"{what} lasts {duration_s:.2f} s, outside `data.min_duration_s` and `data.max_duration_s`",
            "split or remove it, or change these settings",
        )
    if config is not None and config.features.window_s is not None and duration_s > config.features.window_s:
        raise DataError(
            f"{what} lasts {duration_s:.2f} s, and the model takes {config.features.window_s:g} s (`features.window_s`)",
            "split it at pauses, or remove it",
        )


def ratio_of(cut: MonoCut) -> float:
    """Characters of the text per second of audio."""
    return characters(str(cut.supervisions[0].text or "")) / cut.duration


def faults_of(cut: MonoCut, tags: Tags, route: Route, rules: Rules) -> Iterator[Fault]:
    """Everything that its manifest alone tells against a cut whose tags are complete."""
    kind, text = rules.kind(route.task), cut.supervisions[0].text or ""
    config, recording = rules.config, cut.recording
    if rules.routes is not None and route not in rules.routes:
        yield Fault("tags", "error", f"has the route `{route}`, which the recipe does not have")
    for wrong in (contradiction(cut, route), _against(tags, route, kind, text)):
        if wrong:
            yield Fault("tags", "error", wrong)
    if (heard := tags.estimate) is not None and contradicts(heard.says, route.bandwidth):
        yield Fault(
            "bandwidth", "note", f"is tagged `{route.bandwidth}`, but is `{heard.says}` by its spectrum: {heard.bandwidth_hz} Hz", LOOK
        )
    try:
        check_span("it", recording.sources[0].source, (cut.start, cut.duration), recording.duration, config)
    except DataError as error:
        yield Fault("duration", "error", error.message.removeprefix("it "))
    if cut.channel not in [channel for source in recording.sources for channel in source.channels]:
        yield Fault("audio", "error", f"is channel {cut.channel} of a recording that has none such")
    if config is not None and recording.sampling_rate != config.features.sample_rate_hz:
        yield Fault("rate", "error", f"comes at {recording.sampling_rate} Hz; the recipe brings all to {config.features.sample_rate_hz} Hz")
    if kind is not None and kind.closed:
        if not text.strip():
            yield Fault("text", "error", "has no label")
        return
    yield from _faults_of_text(text, route.lang, cut.duration)
    if kind is not None and kind.target == "translation" and len(text.split()) >= COPIED_WORDS and text == tags.transcript:
        yield Fault("translation", "note", f"has its own transcript as its translation into `{route.lang}`: {shown(text)}", LOOK)


def _faults_of_text(text: str, lang: str, duration_s: float) -> Iterator[Fault]:
    found = list(faults(text))
    yield from (Fault("text", severity, what, MEND if severity == "error" else LOOK) for severity, what in found)
    if script := script_fault(text, lang):
        yield Fault("script", script[0], script[1], MEND if script[0] == "error" else LOOK)
    elif not found and (other := other_language(text, lang)):
        yield Fault("language", "note", f"is tagged `{lang}` and reads like `{other}`: {shown(text)}", LOOK)
    ratio = characters(text) / duration_s
    if ratio > 0 and not SLOWEST <= ratio <= FASTEST:
        yield Fault(
            "ratio",
            "error",
            f"has {characters(text)} letters and digits in {duration_s:.2f} s: {ratio:.3g} a second, "
            f"where speech has {SLOWEST:g} to {FASTEST:g}: {shown(text)}",
        )


def _against(tags: Tags, route: Route, kind: TaskKind | None, text: str) -> str | None:
    """How the tags of a cut contradict each other."""
    if not tags.references:
        return "has no right answer: its `references` are empty"
    if text not in tags.references:
        return f"is to write {shown(text)}, which is none of its right answers"
    if kind is None:
        return None
    if kind.target == "transcript" and route.lang != tags.source_lang:
        return f"is to transcribe speech in `{tags.source_lang}` in `{route.lang}`"
    if kind.target == "transcript" and text != tags.transcript:
        return f"is to transcribe {shown(text)}, but its transcript is {shown(tags.transcript)}"
    if kind.target == "translation" and route.lang == tags.source_lang:
        return f"is to translate speech in `{tags.source_lang}` into the same language"
    if kind.target == "language" and text != tags.source_lang:
        return f"is to be called {shown(text)}, but its speech is tagged `{tags.source_lang}`"
    return None
