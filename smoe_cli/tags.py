"""The supervision that picks experts: task, target language and bandwidth of one utterance.

A new kind of task is one entry in `TASK_KINDS`; a new axis of supervision is one field of `Route`
and its entry in `AXES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from smoe_cli.errors import RouteError


class Bandwidth(StrEnum):
    """How much of the spectrum a recording carries, whatever its sampling rate is now."""

    NB = "nb"
    """Narrowband: telephone speech, nothing above 4 kHz."""
    WB = "wb"
    """Wideband: speech sampled at 16 kHz or more."""


@dataclass(frozen=True)
class TaskKind:
    """What a task asks for.

    Attributes:
        target: Where the target text comes from: the utterance's own `transcript` or its `translation`.
        metrics: Names in the metrics table; the first one ranks systems.
    """

    target: str
    metrics: tuple[str, ...]

    @property
    def monotonic(self) -> bool:
        """Whether the target follows the audio in order, so that CTC can help to decode it."""
        return self.target == "transcript"


TASK_KINDS = {
    "transcribe": TaskKind(target="transcript", metrics=("wer", "cer")),
    "translate": TaskKind(target="translation", metrics=("bleu", "chrf")),
}


@dataclass(frozen=True, order=True)
class Route:
    """One utterance's supervision: what to produce, in which language, from which band.

    Source: S-MoE, arXiv:2508.10009, section 2: the bandwidth picks the encoder's expert, the
    guiding tokens (task and language) pick the decoder's.
    """

    task: str
    lang: str
    bandwidth: Bandwidth

    def __str__(self) -> str:
        return f"{self.task}/{self.lang}/{self.bandwidth}"

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read `task/lang/bandwidth`.

        Raises:
            RouteError: If the text has another form or names an unknown bandwidth.
        """
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise RouteError(
                f"route `{text}` is not of the form task/language/bandwidth",
                "write for example `transcribe/en/nb`",
            )
        return cls(parts[0], parts[1], parse_bandwidth(parts[2]))

    @property
    def guiding_tokens(self) -> tuple[str, str]:
        """The decoder's prefix, e.g. `("<translate>", "<de>")`."""
        return f"<{self.task}>", f"<{self.lang}>"


def parse_bandwidth(text: str) -> Bandwidth:
    """Read a bandwidth tag.

    Raises:
        RouteError: If the tag is neither `nb` nor `wb`; nothing is guessed.
    """
    try:
        return Bandwidth(text)
    except ValueError:
        known = ", ".join(Bandwidth)
        raise RouteError(f"unknown bandwidth `{text}`; known: {known}", "correct the tag; it must be written exactly") from None


AXES: dict[str, Callable[[Route], str]] = {
    "task": lambda route: route.task,
    "lang": lambda route: route.lang,
    "task+lang": lambda route: f"{route.task}-{route.lang}",
    "bandwidth": lambda route: str(route.bandwidth),
}
"""Axis of supervision -> the tag value of a route on that axis; the value is also the expert's name."""


class Choice(NamedTuple):
    """Tags that routes are chosen by; None: any."""

    task: str | None = None
    lang: str | None = None
    bandwidth: str | None = None

    def __str__(self) -> str:
        return "/".join(part or "*" for part in self)

    def has(self, route: Route) -> bool:
        """Whether a route is among those chosen."""
        return self.task in (None, route.task) and self.lang in (None, route.lang) and self.bandwidth in (None, str(route.bandwidth))


def check_routes(choice: Choice, routes: Iterable[Route], whose: str) -> None:
    """Refuse tags that no route has.

    Raises:
        RouteError: With the list of the routes there are.
    """
    routes = list(routes)
    if not any(choice.has(route) for route in routes):
        raise RouteError(
            f"{whose} has no route `{choice}`; it has: {', '.join(str(route) for route in routes)}",
            "choose one of these with --task, --lang and --bandwidth",
        )
