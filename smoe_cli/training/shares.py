"""What each expert is given to learn from: updates, frames and tokens; and which of them starve.

An expert that is hardly ever updated is how supervised routing fails without a word: the loss of the others falls, and nothing in it
tells. Source: S-MoE, arXiv:2508.10009, which routes by supervision so that no gate can starve an expert; data still can.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    share: float = Field(description="Of the updates of its stack.")
    frames: int = Field(description="Feature frames of its utterances, 100 a second.")
    tokens: int = Field(description="Target tokens of its utterances.")


class Shares:
    """Counts by route, from which those of every expert follow.

    Args:
        plan: Which expert serves which route.
    """

    def __init__(self, plan: RoutingPlan) -> None:
        self.plan = plan
        self.steps, self.frames, self.tokens, self.reviewed = (dict.fromkeys(plan.routes, 0) for _ in range(4))

    def note(self, route: str, frames: int, tokens: int) -> None:
        """Account for a step."""
        self.steps[route] += 1
        self.frames[route] += frames
        self.tokens[route] += tokens

    def experts(self) -> dict[str, ExpertShare]:
        """Stack and expert, as in `decoder.translate` -> what it was given; only of stacks that choose."""
        found = {}
        for name, routes, _ in self._experts():
            updates, frames, tokens = (sum(counts[route] for route in routes) for counts in (self.steps, self.frames, self.tokens))
            found[name] = ExpertShare(updates=updates, share=updates / max(1, sum(self.steps.values())), frames=frames, tokens=tokens)
        return found

    def recent(self) -> dict[str, int]:
        """Expert -> its updates since the last review."""
        return {name: sum(self.steps[route] - self.reviewed[route] for route in routes) for name, routes, _ in self._experts()}

    def review(self) -> None:
        """Begin to count anew what is recent."""
        self.reviewed = dict(self.steps)

    def starving(self, updates: dict[str, int]) -> dict[str, float]:
        """Experts with too few of some updates -> the even share that they would have had.

        Args:
            updates: Expert -> updates, of the whole run or of a part. Where not even one would have come to each, nothing is said.
        """
        # Every step updates one expert of each stack.
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
