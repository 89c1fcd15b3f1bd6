"""A trained S-MoE model -> the dense model of one of its routes, which computes the same and is all that a device needs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from smoe_cli import checkpoint
from smoe_cli.checkpoint import System
from smoe_cli.config import Config
from smoe_cli.errors import RouteError
from smoe_cli.layout import WEIGHTS, model_digest
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.records import Origin, SlimReport
from smoe_cli.routing import DENSE, RoutingPlan, StackPlan
from smoe_cli.tags import HOW_TO_CHOOSE, Choice, Route, check_routes
from smoe_cli.upcycling import EXPERTS


def slim(folder: Path, out: Path, choice: Choice) -> SlimReport:
    """Write the model of one route as a checkpoint of its own.

    Args:
        folder: The trained model.
        out: Folder to write; what an earlier `slim` left there is replaced, nothing else.
        choice: The route; a tag that all of the model's routes share may be left out.

    Raises:
        CheckpointError: If the folder is no checkpoint, or a damaged one.
        RouteError: If the model has no such route, or several.
        ConfigError: If something else lies at `out`.
        DataError: If `out` cannot be written.
    """
    route = check(folder, out, choice)
    whole = checkpoint.load(folder)
    slimmed = one_route(whole, route)
    checkpoint.save(out, slimmed)
    counts = count_parameters(slimmed.model)
    return SlimReport(
        checkpoint=out,
        model=model_digest(out),
        taken_from=whole.digest,
        route=str(route),
        parameters=counts["total"],
        ctc_head=counts["ctc_head"],
        parameters_before=count_parameters(whole.model)["total"],
        bytes=(out / WEIGHTS).stat().st_size,
    )


def check(folder: Path, out: Path, choice: Choice) -> Route:
    """Find out whether there is such a route and a place for its model; arguments and errors as of `slim`."""
    route = choose_route(checkpoint.read_parts(folder, tensors=True).plan, choice)
    checkpoint.check_free(out, "slim")
    return route


def choose_route(plan: RoutingPlan, choice: Choice) -> Route:
    """The one route of a plan that has these tags.

    Raises:
        RouteError: If there is none, or more than one; with the list.
    """
    routes = [Route.parse(name) for name in plan.routes]
    check_routes(choice, routes, "the model")
    found = [route for route in routes if choice.has(route)]
    if len(found) == 1:
        return found[0]
    which = f"{len(found)} routes are `{choice}`" if any(choice) else f"the model has {len(found)} routes"
    raise RouteError(f"a model of one route is wanted, and {which}: {', '.join(map(str, found))}", HOW_TO_CHOOSE)


def one_route(whole: System, route: Route) -> System:
    """The dense system of one route; it shares its tensors with the whole one.

    The tokenizer stays as it is, guiding tokens included, so that every id keeps its meaning. The CTC head stays where decoding
    uses it: for tasks that follow the audio.
    """
    config = whole.config
    ctc = config.model.ctc and config.kind(route.task).monotonic
    dense = {f"{stack}_{what}": None for stack in ("encoder", "decoder") for what in ("experts_by", "routed_layers")}
    groups: dict[str, dict[str, list[str]]] = {f"{stack}_expert_groups": {} for stack in ("encoder", "decoder")}
    dense_model = config.model.model_copy(update={"preset": "base", "ctc": ctc, **dense, **groups})
    task = config.tasks[route.task]
    if not config.kind(route.task).closed:
        task = task.model_copy(update={"languages": [route.lang]})
    routes = config.routes()
    kept = {name: weight for name, weight in config.train.route_weights.items() if Choice.among(name, routes).has(route)}
    train = config.train.model_copy(update={"route_weights": kept})
    # Checked anew: what the whole recipe may say, one of a single task may not.
    config = Config.model_validate(
        config.model_copy(update={"model": dense_model, "tasks": {route.task: task}, "train": train}).model_dump()
    )
    stack = StackPlan(by=None, experts=(DENSE,))
    labels = {name: known for name, known in whole.plan.labels.items() if name == route.task}
    plan = RoutingPlan(encoder=stack, decoder=stack, routes=(str(route),), labels=labels)
    model = checkpoint.on_meta(config, plan, whole.tokenizer.vocab_size)
    weights = _weights(whole, route)
    if not ctc:
        weights = {name: value for name, value in weights.items() if not name.startswith("ctc.")}
    checkpoint.load_weights(model, weights, config.model.tie_embeddings, str(whole.folder))
    origin = Origin(how="slim", model=whole.digest, route=str(route))
    return System(model.eval(), config, plan, whole.tokenizer, origin=origin)


def _weights(whole: System, route: Route) -> dict[str, Tensor]:
    """The weights of the whole model, but of every routed network only the route's expert, under the name of a dense one."""
    weights = whole.model.state_dict()
    plans = {"encoder": whole.plan.encoder, "decoder": whole.plan.decoder}
    for stack, number, part, moe in whole.model.routed_networks():
        experts = f"{stack}.layers.{number}.{part}{EXPERTS}"
        kept = moe.experts[plans[stack].expert(route)].state_dict()
        weights = {name: value for name, value in weights.items() if not name.startswith(experts)}
        weights |= {f"{experts}{DENSE}.{name}": value for name, value in kept.items()}
    return weights
