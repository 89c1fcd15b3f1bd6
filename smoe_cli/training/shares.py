"""What each expert is given to learn from: updates, frames and tokens; and which of them starve.

An expert that is hardly ever updated is how supervised routing fails without a word: the loss of the others falls, and nothing in it
tells. Source: S-MoE, arXiv:2508.10009, which routes by supervision so that no gate can starve an expert; data still can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import Field

from smoe_cli.records import Record
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import Route

STARVING = 0.2
"""An expert starves with less than this part of an even share of its stack's updates."""


class ExpertShare(Record):
    """What one expert of a stack has been given."""

    updates: int = Field(description="Optimiser steps that moved it.")
    share: float = Field(
        description="Of all optimiser steps; where batches have several routes, the shares of a stack add up to more than 1."
    )
    frames: int = Field(description="Feature frames of its utterances, 100 a second.")
    tokens: int = Field(description="Target tokens of its utterances.")


TOGETHER = " + "
"""Between the routes of one step."""


class Shares:
    """Counts by route, from which those of every expert follow.

    Args:
        plan: Which expert serves which route.

    Attributes:
        steps: Routes of a step, joined by `TOGETHER` -> steps.
        frames, tokens: Route -> how many.
    """

    def __init__(self, plan: RoutingPlan) -> None:
        self.plan = plan
        self.steps, self.reviewed = Counter[str](), Counter[str]()
        self.frames, self.tokens = Counter[str](), Counter[str]()

    def note(self, frames: Mapping[str, int], tokens: Mapping[str, int]) -> None:
        """Account for a step, given what each of its routes had."""
        self.steps[TOGETHER.join(route for route in self.plan.routes if route in frames)] += 1
        self.frames.update(frames)
        self.tokens.update(tokens)

    def by_route(self) -> dict[str, int]:
        """Every route of the plan -> steps that it was in."""
        return {route: _steps_with([route], self.steps) for route in self.plan.routes}

    def experts(self) -> dict[str, ExpertShare]:
        """Stack and expert, as in `decoder.translate` -> what it was given; only of stacks that choose."""
        found = {}
        for name, routes, _ in self._experts():
            updates, steps = _steps_with(routes, self.steps), self.steps.total()
            frames, tokens = (sum(counts[route] for route in routes) for counts in (self.frames, self.tokens))
            found[name] = ExpertShare(updates=updates, share=updates / max(1, steps), frames=frames, tokens=tokens)
        return found

    def recent(self) -> dict[str, int]:
        """Expert -> its updates since the last review."""
        return {name: _steps_with(routes, self.steps) - _steps_with(routes, self.reviewed) for name, routes, _ in self._experts()}

    def review(self) -> None:
        """Begin to count anew what is recent."""
        self.reviewed = Counter(self.steps)

    def starving(self, updates: dict[str, int]) -> dict[str, float]:
        """Experts with too few of some updates -> the even share that they would have had.

        Args:
            updates: Expert -> updates, of the whole run or of a part. Where not even one would have come to each, nothing is said.
        """
        # Every step updates one expert of each stack, or several, if it has several routes.
        steps: dict[str, int] = {}
        for name, _, _ in self._experts():
            stack = name.partition(".")[0]
            steps[stack] = steps.get(stack, 0) + updates[name]
        even = {name: steps[name.partition(".")[0]] / count for name, _, count in self._experts()}
        return {name: share for name, share in even.items() if share >= 1.0 and updates[name] < STARVING * share}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "steps_by_route": self.steps,
            "frames_by_route": self.frames,
            "tokens_by_route": self.tokens,
            "reviewed_by_route": self.reviewed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; what a checkpoint of an older version does not count begins at 0."""
        for counts, name in ((self.steps, "steps"), (self.frames, "frames"), (self.tokens, "tokens"), (self.reviewed, "reviewed")):
            counts.update(state.get(f"{name}_by_route", {}))

    def _experts(self) -> Iterator[tuple[str, list[str], int]]:
        """Name of every expert that is chosen, the routes that it serves, and how many there are in its stack."""
        for stack, plan in (("encoder", self.plan.encoder), ("decoder", self.plan.decoder)):
            if len(plan.experts) > 1:
                for expert in plan.experts:
                    routes = [route for route in self.plan.routes if plan.expert(Route.parse(route)) == expert]
                    yield f"{stack}.{expert}", routes, len(plan.experts)


def _steps_with(routes: Collection[str], steps: Mapping[str, int]) -> int:
    """How many of the steps had any of these routes."""
    return sum(count for together, count in steps.items() if not set(together.split(TOGETHER)).isdisjoint(routes))
