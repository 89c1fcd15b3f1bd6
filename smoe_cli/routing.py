"""RoutingPlan: route -> the expert of each stack. Fixed by supervision, saved with the weights."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smoe_cli.config import Config
from smoe_cli.errors import RouteError
from smoe_cli.tags import AXES, Bandwidth, Route

DENSE = "dense"
"""Name of the single expert of a stack that is not routed."""


class StackPlan(BaseModel):
    """How one stack (encoder or decoder) chooses among its named experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str | None = Field(description="Axis of supervision that chooses; null: one dense expert.")
    experts: tuple[str, ...] = Field(min_length=1, description="Names of the experts; each is the tag value it serves.")
    layers: tuple[int, ...] | None = Field(None, min_length=1, description="Layers that choose, counted from 0; null: all.")

    @model_validator(mode="after")
    def _check(self) -> StackPlan:
        if self.by is None and self.experts != (DENSE,):
            raise ValueError(f"experts {list(self.experts)} are chosen by no tag: no route reaches them")
        if self.by is not None and self.by not in AXES:
            raise ValueError(f"`{self.by}` is no axis of supervision; known: {', '.join(AXES)}")
        if len(set(self.experts)) != len(self.experts):
            raise ValueError(f"an expert is named twice in {list(self.experts)}")
        if self.by is None and self.layers is not None:
            raise ValueError(f"layers {list(self.layers)} choose by no tag")
        return self

    def expert(self, route: Route) -> str:
        """Name of the expert that serves a route.

        Raises:
            RouteError: If no expert serves it; nothing is guessed.
        """
        name = DENSE if self.by is None else AXES[self.by](route)
        if name not in self.experts:
            raise RouteError(
                f"route `{route}`: no expert `{name}`; experts by {self.by}: {', '.join(self.experts)}",
                "correct the tag, or train a model that has this expert",
            )
        return name

    def index(self, route: Route) -> int:
        """Position of a route's expert in `experts`."""
        return self.experts.index(self.expert(route))


class RoutingPlan(BaseModel):
    """Every route that a model has, and the expert of each stack that serves it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: StackPlan
    decoder: StackPlan
    routes: tuple[str, ...] = Field(min_length=1, description="Routes the model is trained for, as task/language/bandwidth.")

    @model_validator(mode="after")
    def _check(self) -> RoutingPlan:
        try:
            routes = [Route.parse(route) for route in self.routes]
            reached = {stack: {plan.expert(route) for route in routes} for stack, plan in self._stacks()}
        except RouteError as error:
            raise ValueError(error.message) from None
        for stack, plan in self._stacks():
            idle = [name for name in plan.experts if name not in reached[stack]]
            if idle:
                raise ValueError(f"no route reaches the {stack}'s expert{'s' if len(idle) > 1 else ''} {', '.join(idle)}")
        return self

    def _stacks(self) -> tuple[tuple[str, StackPlan], tuple[str, StackPlan]]:
        return ("encoder", self.encoder), ("decoder", self.decoder)

    def check(self, route: Route) -> Route:
        """Return the route if the model has it.

        Raises:
            RouteError: With the list of those it has.
        """
        if str(route) not in self.routes:
            raise RouteError(f"the model has no route `{route}`; it has: {', '.join(self.routes)}", "choose one of these")
        return route


def make_plan(config: Config, bandwidths: Iterable[Bandwidth] = tuple(Bandwidth)) -> RoutingPlan:
    """Derive the plan from a recipe: one expert per tag value that its routes have."""
    routes = config.routes(bandwidths)

    def stack(name: str, axis: str | None) -> StackPlan:
        if axis is None:
            return StackPlan(by=None, experts=(DENSE,))
        return StackPlan(
            by=axis, experts=tuple(dict.fromkeys(AXES[axis](route) for route in routes)), layers=config.model.routed_layers(name)
        )

    return RoutingPlan(
        encoder=stack("encoder", config.model.encoder_experts_by),
        decoder=stack("decoder", config.model.decoder_experts_by),
        routes=tuple(str(route) for route in routes),
    )
