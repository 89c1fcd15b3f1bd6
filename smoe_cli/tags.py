"""The supervision that picks experts: task, target language and bandwidth of one utterance, and the recipe's own axes.

A new kind of task is one entry in `TASK_KINDS`; a new axis of supervision is one line under `axes:` of a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from smoe_cli.errors import RouteError

TAG_PATTERN = r"^[a-z][a-z0-9_-]*$"
"""Names of tasks, languages, axes and experts: fit for a file name, a guiding token and the name of a weight."""
VALUE_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"
"""Values of a recipe's own axes: they may begin with a digit, as `8k` does."""
AXES = ("task", "lang", "bandwidth")
"""The axes of supervision that every route has; a recipe may add its own."""
ANY = "any"
"""The language of tasks whose answer is a label: they write the same whatever is spoken."""


TELEPHONE_HZ = 8000
"""Sampling rate of telephones: at this and below, all audio is narrowband."""


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
        target: Where the target text comes from: the utterance's own `transcript`, its `translation`, the name of its spoken
            `language`, or its `label`.
        metrics: Names in the metrics table; the first one ranks systems.
    """

    target: str
    metrics: tuple[str, ...]

    @property
    def monotonic(self) -> bool:
        """Whether the target follows the audio in order, so that CTC can help to decode it."""
        return self.target == "transcript"

    @property
    def closed(self) -> bool:
        """Whether the answer is one of the labels seen in training, and never free text."""
        return self.target in ("language", "label")


TASK_KINDS = {
    "transcribe": TaskKind(target="transcript", metrics=("wer", "cer")),
    "translate": TaskKind(target="translation", metrics=("bleu", "chrf")),
    "identify": TaskKind(target="language", metrics=("accuracy",)),
    "classify": TaskKind(target="label", metrics=("accuracy",)),
}


@dataclass(frozen=True, order=True)
class Route:
    """One utterance's supervision: what to produce, in which language, from which band, and its tags on the recipe's own axes.

    Source: S-MoE, arXiv:2508.10009, section 2: the bandwidth picks the encoder's expert, the
    guiding tokens (task and language) pick the decoder's.

    Attributes:
        extra: (axis, value) pairs of the recipe's own axes; kept in alphabetical order, so that no other order matters.
    """

    task: str
    lang: str
    bandwidth: Bandwidth
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(sorted(self.extra)))

    def __str__(self) -> str:
        return "/".join([self.task, self.lang, self.bandwidth, *(f"{axis}={value}" for axis, value in self.extra)])

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read `task/language/bandwidth` or `task/language/bandwidth/axis=value`, with as many further tags as there are.

        Raises:
            RouteError: If the text has another form, names an axis twice or an unknown bandwidth.
        """
        parts = text.split("/")
        if len(parts) < 3 or not all(parts):
            raise RouteError(
                f"route `{text}` is not of the form task/language/bandwidth",
                "write for example `transcribe/en/nb`, or `transcribe/en/nb/accent=us` with a tag of the recipe's own",
            )
        return cls(parts[0], parts[1], parse_bandwidth(parts[2]), tuple(parse_tags(parts[3:]).items()))

    @property
    def tags(self) -> dict[str, str]:
        """Axis -> value."""
        return {"task": self.task, "lang": self.lang, "bandwidth": str(self.bandwidth), **dict(self.extra)}

    def value(self, by: str) -> str:
        """The route's value on an axis, or on several joined by `+`: `translate-de` on `task+lang`.

        Raises:
            RouteError: If it has no such axis.
        """
        tags = self.tags
        for axis in by.split("+"):
            if axis not in tags:
                raise RouteError(
                    f"`{axis}` is no axis of supervision; known: {', '.join(tags)}, and several joined by `+`",
                    f"correct the name, or add it to the recipe: `axes: {{{axis}: [VALUE, VALUE]}}`",
                )
        return "-".join(tags[axis] for axis in by.split("+"))

    @property
    def guiding_tokens(self) -> tuple[str, str]:
        """The decoder's prefix, e.g. `("<translate>", "<de>")`."""
        return f"<{self.task}>", f"<{self.lang}>"


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """Read tags of a recipe's own axes, each as `accent=us`.

    Raises:
        RouteError: If one has another form, or an axis is named twice.
    """
    tags: dict[str, str] = {}
    for text in texts:
        axis, equals, value = text.partition("=")
        if not equals or not re.match(TAG_PATTERN, axis) or not re.match(VALUE_PATTERN, value):
            raise RouteError(f"tag `{text}` is not of the form axis=value", "write for example `accent=us`")
        if axis in tags or axis in AXES:
            taken = "has a place of its own in a route" if axis in AXES else "is named twice"
            raise RouteError(f"tag `{text}`: `{axis}` {taken}", "name each axis of the recipe once")
        tags[axis] = value
    return tags


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


def shown_tags(tags: Mapping[str, str]) -> str:
    """Tags of a recipe's own axes, for people: `accent=us channel=phone`."""
    return " ".join(f"{axis}={value}" for axis, value in tags.items())


def experts_of(by: str, groups: Mapping[str, Sequence[str]], routes: Iterable[Route]) -> dict[str, str]:
    """Every value that routes have on an axis -> the name of the expert that serves it, in the order of the routes.

    Args:
        by: An axis, or several joined by `+`.
        groups: Expert -> the values that it serves; a value in no group has an expert of its own name.
        routes: All routes of a recipe.

    Raises:
        RouteError: If an axis is unknown or named twice, two different combinations of tags would share a name, or a group names
            an unknown value, a value of another group, or an expert that another value has.
    """
    axes = by.split("+")
    if len(set(axes)) != len(axes):
        raise RouteError(f"`{by}` names an axis twice", "name each axis once")
    parts: dict[str, tuple[str, ...]] = {}
    for route in routes:
        value = route.value(by)
        these = tuple(route.tags[axis] for axis in axes)
        if parts.setdefault(value, these) != these:
            both = " and ".join(" + ".join(some) for some in (parts[value], these))
            raise RouteError(f"by `{by}`, {both} would share one expert `{value}`", "rename a tag, so that the joined names differ")
    expert: dict[str, str] = {}
    for group, values in groups.items():
        for value in values:
            if value not in parts:
                raise RouteError(f"group `{group}` names `{value}`; values of `{by}`: {', '.join(parts)}", "name one of these")
            if value in expert:
                where = "twice" if expert[value] == group else f"and so does group `{expert[value]}`"
                raise RouteError(f"group `{group}` names `{value}` {where}", "a value has one expert: name it once")
            expert[value] = group
        if group in parts and group not in values:
            raise RouteError(f"group `{group}` has the name of a value that is not in it", f"rename the group, or add `{group}` to it")
    return {value: expert.get(value, value) for value in parts}


HOW_TO_CHOOSE = "choose one of these with --task, --lang, --bandwidth and --tag"


class Choice(NamedTuple):
    """Tags that routes are chosen by; None, and an axis that is not among `tags`: any."""

    task: str | None = None
    lang: str | None = None
    bandwidth: str | None = None
    tags: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls, task: str | None = None, lang: str | None = None, bandwidth: str | None = None, tags: Iterable[str] | None = None
    ) -> Choice:
        """What the options of a command choose.

        Args:
            tags: Each as `accent=us`.

        Raises:
            RouteError: If one has another form, or an axis is named twice.
        """
        return cls(task, lang, bandwidth, tuple(parse_tags(tags or ()).items()))

    @classmethod
    def among(cls, key: str, routes: Iterable[Route]) -> Choice:
        """What a part of a route's name chooses: `nb`, `translate/de`, `us`; `lang=nb` where a value is one of two axes.

        Raises:
            RouteError: If none of the routes is of that name, or a value is one of two axes.
        """
        routes = list(routes)
        known: dict[str, dict[str, None]] = {}
        axes: dict[str, dict[tuple[str, str], None]] = {}
        for axis, value in (tag for route in routes for tag in route.tags.items()):
            known.setdefault(axis, {})[value] = None
            for name in (value, f"{axis}={value}"):
                axes.setdefault(name, {})[axis, value] = None
        tags: dict[str, str] = {}
        for part in key.split("/"):
            found = sorted(axes.get(part, ()), key=lambda tag: list(known).index(tag[0]))
            if len(found) > 1:
                named = " or ".join(f"`{axis}={value}`" for axis, value in found)
                raise RouteError(f"`{part}` is a value of {' and of '.join(axis for axis, _ in found)}", f"write {named}")
            if not found or found[0][0] in tags:
                there = "; ".join(f"{axis}: {', '.join(values)}" for axis, values in known.items())
                raise RouteError(
                    f"`{key}` names no route; there are {there}", "write one value, or one of each of several axes, as `nb/de`"
                )
            tags.update(found)
        choice = cls(tags.pop("task", None), tags.pop("lang", None), tags.pop("bandwidth", None), tuple(tags.items()))
        if not any(choice.has(route) for route in routes):
            raise RouteError(f"`{key}` names no route; there are {', '.join(map(str, routes))}", "correct the name")
        return choice

    def __str__(self) -> str:
        named = [part or "*" for part in (self.task, self.lang, self.bandwidth)]
        return "/".join([*named, *(f"{axis}={value}" for axis, value in self.tags)])

    def has(self, route: Route) -> bool:
        """Whether a route is among those chosen."""
        wanted = {"task": self.task, "lang": self.lang, "bandwidth": self.bandwidth, **dict(self.tags)}
        return all(value in (None, route.tags.get(axis)) for axis, value in wanted.items())


EVERY_ROUTE = Choice()


def check_routes(choice: Choice, routes: Iterable[Route], whose: str) -> None:
    """Refuse tags that no route has.

    Raises:
        RouteError: With the list of the routes there are; or if there is no such bandwidth at all.
    """
    if choice.bandwidth is not None:
        parse_bandwidth(choice.bandwidth)
    routes = list(routes)
    own = [axis for axis in routes[0].tags if axis not in AXES]
    if unknown := [axis for axis, _ in choice.tags if axis not in own]:
        raise RouteError(
            f"`{unknown[0]}` is no axis of {whose}; {'its axes for --tag: ' + ', '.join(own) if own else 'it has none for --tag'}",
            "correct the name" if own else "leave --tag out",
        )
    for axis, value in (*zip(AXES, choice[:3], strict=True), *choice.tags):
        values = list(dict.fromkeys(route.tags[axis] for route in routes))
        if value is not None and value not in values:
            raise RouteError(
                f"{whose} has no route `{choice}`: of {axis} it has {', '.join(f'`{known}`' for known in values)}", "name one of these"
            )
    if not any(choice.has(route) for route in routes):
        raise RouteError(f"{whose} has no route `{choice}`; it has: {', '.join(str(route) for route in routes)}", HOW_TO_CHOOSE)
