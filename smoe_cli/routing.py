"""RoutingPlan: route -> the expert of each stack. Fixed by supervision, saved with the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smoe_cli.config import Config
from smoe_cli.errors import RouteError
from smoe_cli.tags import Route, experts_of

DENSE = "dense"
"""Name of the single expert of a stack that is not routed."""


class StackPlan(BaseModel):
    """How one stack (encoder or decoder) chooses among its named experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str | None = Field(description="Axis of supervision that chooses, or several joined by `+`; null: one dense expert.")
    experts: tuple[str, ...] = Field(min_length=1, description="Names of the experts; each is the tag value it serves, or a group.")
    groups: dict[str, tuple[str, ...]] = Field({}, description="Expert -> the tag values that it serves, where it is a group.")
    layers: tuple[int, ...] | None = Field(None, min_length=1, description="Layers that choose, counted from 0; null: all.")

    @model_validator(mode="after")
    def _check(self) -> StackPlan:
        if self.by is None and self.experts != (DENSE,):
            raise ValueError(f"experts {list(self.experts)} are chosen by no tag: no route reaches them")
        if self.by is None and self.groups:
            raise ValueError(f"groups {list(self.groups)} are chosen by no tag")
        for group, values in self.groups.items():
            taken = [value for value in values if value != group and value in self.experts]
            if group not in self.experts or taken:
                raise ValueError(f"group `{group}` " + (f"and expert `{taken[0]}` serve the same tag" if taken else "is no expert"))
        grouped = [value for values in self.groups.values() for value in values]
        if len(set(grouped)) != len(grouped):
            raise ValueError(f"two groups serve the same tag: {self.groups}")
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
        value = DENSE if self.by is None else route.value(self.by)
        name = next((group for group, values in self.groups.items() if value in values), value)
        if name not in self.experts:
            raise RouteError(
                f"route `{route}`: no expert `{name}`; experts by {self.by}: {', '.join(self.experts)}",
                "correct the tag, or train a model that has this expert",
            )
        return name

    def index(self, route: Route) -> int:
        """Position of a route's expert in `experts`."""
        return self.experts.index(self.expert(route))

    def tags(self, expert: str, routes: Iterable[Route]) -> dict[str, set[str]]:
        """Axis that chooses -> its values on those of the routes that an expert serves."""
        axes = self.by.split("+") if self.by else []
        served = [route for route in routes if self.expert(route) == expert]
        return {axis: {route.tags[axis] for route in served} for axis in axes}


class RoutingPlan(BaseModel):
    """Every route that a model has, and the expert of each stack that serves it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: StackPlan
    decoder: StackPlan
    routes: tuple[str, ...] = Field(min_length=1, description="Routes the model is trained for, as task/language/bandwidth and tags.")
    labels: dict[str, tuple[str, ...]] = Field({}, description="Task whose answer is a label -> the labels seen in training.")

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
            missing = [axis for axis, _ in Route.parse(self.routes[0]).extra if axis not in route.tags]
            lack = f" (it lacks a value for {', '.join(f'`{axis}`' for axis in missing)})" if missing else ""
            raise RouteError(f"the model has no route `{route}`{lack}; it has: {', '.join(self.routes)}", "choose one of these")
        return route

    def differences(self, other: RoutingPlan) -> list[str]:
        """What another plan has otherwise; empty: they are the same."""
        found = [f"{name}: {one} -> {two}" for name, one, two in _pairs(self, other, ("routes",)) if one != two]
        fields = tuple(StackPlan.model_fields)
        for stack, mine, theirs in (("encoder", self.encoder, other.encoder), ("decoder", self.decoder, other.decoder)):
            found += [f"{stack} {name}: {one} -> {two}" for name, one, two in _pairs(mine, theirs, fields) if one != two]
        tasks = [task for task in {**self.labels, **other.labels} if self.labels.get(task) != other.labels.get(task)]
        found += [f"labels of `{task}`: {_listed(self.labels.get(task))} -> {_listed(other.labels.get(task))}" for task in tasks]
        return found

    def labels_of(self, task: str) -> tuple[str, ...]:
        """The answers that a task whose answer is a label can give.

        Raises:
            RouteError: If the model knows none.
        """
        if not self.labels.get(task):
            raise RouteError(f"the model knows no label for task `{task}`", "train it on a split with labels for this task")
        return self.labels[task]


def _pairs(one: BaseModel, other: BaseModel, names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(name, _listed(getattr(one, name)), _listed(getattr(other, name))) for name in names]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def make_plan(config: Config, routes: Iterable[Route] | None = None, labels: Mapping[str, Sequence[str]] | None = None) -> RoutingPlan:
    """Derive the plan from a recipe: one expert per tag value, or group of values, that its routes have.

    Args:
        routes: Those of the recipe that the model is trained for; None: all.
        labels: Task whose answer is a label -> the labels it is trained on.
    """
    everything = config.routes()
    wanted = set(everything if routes is None else routes)
    kept = [route for route in everything if route in wanted]

    def stack(name: str, by: str | None, groups: Mapping[str, Sequence[str]]) -> StackPlan:
        if by is None:
            return StackPlan(by=None, experts=(DENSE,))
        reached = {route.value(by) for route in kept}
        # In the order of the whole recipe, whatever part of it there is data for.
        served = {value: expert for value, expert in experts_of(by, groups, everything).items() if value in reached}
        return StackPlan(
            by=by,
            experts=tuple(dict.fromkeys(served.values())),
            groups={group: values for group in groups if (values := tuple(value for value in served if served[value] == group))},
            layers=config.model.routed_layers(name),
        )

    return RoutingPlan(
        encoder=stack("encoder", config.model.encoder_experts_by, config.model.encoder_expert_groups),
        decoder=stack("decoder", config.model.decoder_experts_by, config.model.decoder_expert_groups),
        routes=tuple(map(str, kept)),
        labels={task: tuple(some) for task, some in (labels or {}).items()},
    )
