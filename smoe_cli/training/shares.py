"""What each expert is given to learn from: updates, frames and tokens; and which of them starve.

An expert that is hardly ever updated is how supervised routing fails without a word: the loss of the others falls, and nothing in it
tells. Source: S-MoE, arXiv:2508.10009, which routes by supervision so that no gate can starve an expert; data still can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from smoe_cli.records import Record
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import Route

STARVING = 0.2
"""An expert starves with less than this part of an even share of its stack's updates, or of their frames. Not of tokens: tasks whose
answers are a label have few, however much they train."""
ENOUGH = 10
"""Updates of an even share before an expert is judged: of fewer, one more or less makes the difference."""


class ExpertShare(Record):
    """What one expert of a stack has been given."""

    updates: int = Field(description="Optimiser steps that moved it; none, if it is frozen.")
    share: float = Field(
        description="Of all optimiser steps; where batches have several routes, the shares of a stack add up to more than 1."
    )
    frames: int = Field(description="Feature frames of its utterances, 100 a second.")
    tokens: int = Field(description="Target tokens of its utterances.")
    frozen: bool = Field(default=False, description="Whether `train.freeze` holds all of it still.")


FILLING = ("frames", "frames_padded", "positions", "positions_padded")
"""What `Batch.filling` counts."""
TOGETHER = " + "
"""Between the routes of one step."""


class Shares:
    """Counts by route, from which those of every expert follow.

    Args:
        plan: Which expert serves which route.
        frozen: Experts, as in `decoder.translate`, that no step moves.

    Attributes:
        steps: Routes of a step, joined by `TOGETHER` -> steps.
        frames, tokens: Route -> how many.
        filling: As `FILLING` -> how many.
    """

    def __init__(self, plan: RoutingPlan, frozen: Collection[str] = ()) -> None:
        self.plan, self.frozen = plan, frozen
        self.steps, self.reviewed = Counter[str](), Counter[str]()
        self.frames, self.reviewed_frames = Counter[str](), Counter[str]()
        self.tokens, self.filling = Counter[str](), Counter[str]()

    def note(self, frames: Mapping[str, int], tokens: Mapping[str, int], filling: Sequence[int] = ()) -> None:
        """Account for a step, given what each of its routes had, and `Batch.filling` of all of it."""
        self.steps[TOGETHER.join(route for route in self.plan.routes if route in frames)] += 1
        self.frames.update(frames)
        self.tokens.update(tokens)
        self.filling.update(dict(zip(FILLING, filling, strict=False)))

    @property
    def filled(self) -> dict[str, float]:
        """Shares of the frames of all batches, and of their decoder's positions, that are no padding."""
        return {name: self.filling[name] / max(1, self.filling[f"{name}_padded"]) for name in FILLING[::2]}

    def by_route(self) -> dict[str, int]:
        """Every route of the plan -> steps that it was in."""
        return {route: _steps_with([route], self.steps) for route in self.plan.routes}

    def experts(self) -> dict[str, ExpertShare]:
        """Stack and expert, as in `decoder.translate` -> what it was given; only of stacks that choose."""
        found = {}
        for name, routes in self._experts():
            still = name in self.frozen
            updates, steps = 0 if still else _steps_with(routes, self.steps), self.steps.total()
            frames, tokens = (sum(counts[route] for route in routes) for counts in (self.frames, self.tokens))
            found[name] = ExpertShare(updates=updates, share=updates / max(1, steps), frames=frames, tokens=tokens, frozen=still)
        return found

    def recent_steps(self) -> int:
        """Steps since the last review."""
        return self.steps.total() - self.reviewed.total()

    def recent(self) -> dict[str, tuple[int, int]]:
        """Expert that learns -> its updates since the last review, and their frames."""
        steps, frames = self.steps - self.reviewed, self.frames - self.reviewed_frames
        return {name: (_steps_with(routes, steps), sum(frames[route] for route in routes)) for name, routes in self._learning()}

    def review(self) -> None:
        """Begin to count anew what is recent."""
        self.reviewed, self.reviewed_frames = Counter(self.steps), Counter(self.frames)

    def judged(self, given: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """Experts with too little -> what they had, and what an even share would have been.

        Args:
            given: Expert that learns -> updates and frames, of the whole run or of a part; a stack with too few updates is not judged.
        """
        found: dict[str, str] = {}
        for stack in self._stacks(given):
            if not self.enough(given, stack[0]):
                continue
            for number, unit in enumerate(("frames", "updates")):
                amounts = {name: given[name][1 - number] for name in stack}
                even = sum(amounts.values()) / len(stack)
                found |= {
                    name: f"{amount:,} {unit}, where an even share would be {even:,.0f}"
                    for name, amount in amounts.items()
                    if amount < STARVING * even
                }
        return found

    def enough(self, given: Mapping[str, tuple[int, int]], expert: str) -> bool:
        """Whether there were so many updates in an expert's stack that their shares mean something."""
        stack = [name for name in given if _stack_of(name) == _stack_of(expert)]
        return sum(given[name][0] for name in stack) >= ENOUGH * len(stack)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "steps_by_route": self.steps,
            "frames_by_route": self.frames,
            "tokens_by_route": self.tokens,
            "filling": self.filling,
            "reviewed_by_route": self.reviewed,
            "reviewed_frames_by_route": self.reviewed_frames,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; what a checkpoint of an older version does not count begins at 0."""
        for name, counts in self.state().items():
            counts.update(state.get(name, {}))

    def _learning(self) -> Iterator[tuple[str, list[str]]]:
        """Name of every expert that is chosen and learns, and the routes that it serves."""
        yield from ((name, routes) for name, routes in self._experts() if name not in self.frozen)

    def _stacks(self, names: Iterable[str]) -> Collection[list[str]]:
        """The experts of each stack; one alone has nothing to be compared with."""
        stacks: dict[str, list[str]] = {}
        for name in names:
            stacks.setdefault(_stack_of(name), []).append(name)
        return [stack for stack in stacks.values() if len(stack) > 1]

    def _experts(self) -> Iterator[tuple[str, list[str]]]:
        """Name of every expert that is chosen, and the routes that it serves."""
        for stack, plan in (("encoder", self.plan.encoder), ("decoder", self.plan.decoder)):
            if len(plan.experts) > 1:
                for expert in plan.experts:
                    routes = [route for route in self.plan.routes if plan.expert(Route.parse(route)) == expert]
                    yield f"{stack}.{expert}", routes


def _stack_of(expert: str) -> str:
    return expert.partition(".")[0]


def _steps_with(routes: Collection[str], steps: Mapping[str, int]) -> int:
    """How many of the steps had any of these routes."""
    return sum(count for together, count in steps.items() if not set(together.split(TOGETHER)).isdisjoint(routes))
