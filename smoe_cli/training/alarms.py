"""What training refuses to begin with, what it warns of, and what it stops at."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NoReturn

from lhotse import CutSet, MonoCut

from smoe_cli.batching import Batch, check_tokens
from smoe_cli.config import CHECKPOINTS, Config
from smoe_cli.cut_table import has_text, text_bytes_of
from smoe_cli.cut_table import whole as whole_cut
from smoe_cli.errors import CheckpointError, ConfigError, DataError, RouteError, SmoeError
from smoe_cli.records import write_text_atomically
from smoe_cli.routing import RoutingPlan, make_plan
from smoe_cli.tags import Route
from smoe_cli.tokenizer import ByteBPE, Tokenizer
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.ranks import Ranks

FAILED_BATCH = "failed-batch.txt"
EXPLODING = 10.0
"""A loss so many times the route's recent mean is no noise."""
QUIET = 0.1
"""A mean below this is taken for this: the losses of what is known by heart jump by more than ten times, and mean nothing."""
TOO_SHORT = (
    "some utterances have fewer encoder frames than tokens, and CTC skips them; a larger `tokenizer.vocab_size` makes fewer tokens, a "
    "smaller `model.subsampling` more frames"
)


def check_served(config: Config, routes: Collection[Route]) -> None:
    """Refuse a recipe with a task or language that no training cut teaches, or another tag that leaves an expert with nothing to learn.

    Args:
        routes: Those of the training cuts.

    Raises:
        DataError: Naming it.
    """
    served = {(route.task, route.lang) for route in routes}
    for route in config.routes():
        if (route.task, route.lang) not in served:
            if config.kind(route.task).closed:
                raise DataError(f"no training cut for task `{route.task}`", "give the train split labels for it, or leave the task out")
            raise DataError(
                f"no training cut for task `{route.task}`, language `{route.lang}`: its expert would never learn",
                f"give the train split such text, or take `{route.lang}` out of `tasks.{route.task}.languages`",
            )
    there = _values(routes)
    for axis, value, asked, cure in _asked(config):
        if value in there[axis]:
            continue
        # Routes that lack nothing but this.
        lost = [
            route
            for route in config.routes()
            if route.tags[axis] == value and all(tag in there[other] for other, tag in route.tags.items() if other != axis)
        ]
        whole, plan = make_plan(config), make_plan(config, routes)
        for stack, every, left in (("encoder", whole.encoder, plan.encoder), ("decoder", whole.decoder, plan.decoder)):
            idle = [name for name in dict.fromkeys(map(every.expert, lost)) if name not in left.experts]
            if idle:
                raise DataError(
                    f"no training cut has {axis} `{value}`, which {asked} asks for: expert `{idle[0]}` of the {stack} would never learn",
                    f"give the train split such cuts and run `smoe prepare` again, or {cure}",
                )


def _asked(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Axis and value of every tag besides task and language that the recipe asks for, the setting that does, and how not to."""
    for band, setting in config.asked_bands().items():
        yield "bandwidth", band, f"`{setting}`", "take that setting away"
    for axis, values in config.axes.items():
        for value in values:
            yield axis, value, f"`axes.{axis}`", f"take `{value}` out of it, or let it share an expert: `model.*_expert_groups`"


def _values(routes: Iterable[Route]) -> dict[str, set[str]]:
    """Axis -> the values that routes have."""
    found: dict[str, set[str]] = {}
    for route in routes:
        for axis, value in route.tags.items():
            found.setdefault(axis, set()).add(value)
    return found


def dropped(config: Config, plan: RoutingPlan) -> Iterator[str]:
    """A line for all that the recipe could have and the trained model will not: tags, other routes, and experts."""
    served, whole = [Route.parse(name) for name in plan.routes], make_plan(config)
    there, missing = _values(served), [route for route in config.routes() if str(route) not in plan.routes]
    for axis, value in dict.fromkeys(tag for route in missing for tag in route.tags.items() if tag[1] not in there[tag[0]]):
        yield f"no training cut has {axis} `{value}`: the model will have no route for it"
    others = [str(route) for route in missing if all(value in there[axis] for axis, value in route.tags.items())]
    if others:
        yield f"no training cut is of {', '.join(others)}: the model will not have these routes"
    for stack, every, left in (("encoder", whole.encoder, plan.encoder), ("decoder", whole.decoder, plan.decoder)):
        idle = [f"`{name}`" for name in every.experts if name not in left.experts]
        if idle:
            yield f"the {stack} will have no expert {', '.join(idle)}: no training cut reaches it; it has {', '.join(left.experts)}"


def check_cuts(config: Config, tokenizer: Tokenizer, train: Mapping[Route, CutSet], dev: Mapping[Route, CutSet]) -> None:
    """Refuse cuts that the model cannot take or would learn to write nothing from: those of training, and those that validation will use.

    Args:
        train, dev: Route -> cuts.

    Raises:
        DataError: Naming one.
    """
    used = max(config.train.validation_utterances, config.train.sample_utterances)
    for split, cuts in (("train", train), ("dev", {route: list(islice(some, used)) for route, some in dev.items()})):
        _check_lengths(config, split, cuts)
        _check_texts(split, cuts)
        _check_tokens(config, tokenizer, split, cuts)


def _check_lengths(config: Config, split: str, groups: Mapping[Route, Iterable[MonoCut]]) -> None:
    """Refuse cuts that are longer than the model's window, naming the longest."""
    window_s = config.features.window_s
    if window_s is None:
        return
    speed = min(1.0, *config.train.augment.speeds) if split == "train" else 1.0
    longest = max((cut for cuts in groups.values() for cut in cuts), key=lambda cut: cut.duration, default=None)
    if longest is not None and longest.duration / speed > window_s:
        slowed = f" ({longest.duration / speed:.2f} s at the slowest of `train.augment.speeds`)" if speed < 1.0 else ""
        found = whole_cut(longest)
        raise DataError(
            f"cut `{found.id}` of the {split} split lasts {found.duration:.2f} s{slowed}, and the model takes {window_s:g} s "
            f"(`features.window_s`); its audio is `{found.recording.sources[0].source}`",
            "split long audio at pauses and prepare again, or take it out: `smoe validate --fix`",
        )


def _check_texts(split: str, groups: Mapping[Route, Iterable[MonoCut]]) -> None:
    """Refuse cuts that have nothing to write, naming the first."""
    blank = [(route, cut) for route, cuts in groups.items() for cut in cuts if not has_text(cut)]
    if blank:
        route, cut = blank[0]
        more = f"; cuts without text: {len(blank)}" if len(blank) > 1 else ""
        raise DataError(
            f"cut `{whole_cut(cut).id}` of the {split} split has an empty text for `{route}`{more}",
            "fill it in where the corpus has it and prepare again, or take such cuts out: `smoe validate --fix`",
        )


def _check_tokens(config: Config, tokenizer: Tokenizer, split: str, groups: Mapping[Route, Iterable[MonoCut]]) -> None:
    """Refuse texts that have more tokens than the model takes, naming the first.

    A text is read and encoded only if its bytes would be too many: pieces are bytes or longer, but for a space that is put before a text.
    """
    most = config.model.max_tokens
    if most is None:
        return
    for route, cuts in groups.items():
        guiding = len(tokenizer.guiding_ids(route))
        for cut in cuts:
            if guiding + 1 + text_bytes_of(cut) > most:
                found = whole_cut(cut)
                tokens = guiding + len(tokenizer.encode(str(found.supervisions[0].text)))
                check_tokens(f"cut `{found.id}` of the {split} split", tokens, most)


def check_tokenizer(tokenizer: Tokenizer, config: Config, routes: Collection[Route]) -> None:
    """Refuse a tokenizer of another kind or size than the recipe's, or without the guiding tokens of a route.

    That of a recipe which starts from a checkpoint is the checkpoint's, and is compared with it when its weights are taken.

    Raises:
        CheckpointError: Naming the difference.
    """
    if config.train.init_from is None:
        if tokenizer.kind != ByteBPE.kind:
            raise CheckpointError(
                f"the tokenizer in `{tokenizer.folder}` is `{tokenizer.kind}`, and the recipe's own would be `{ByteBPE.kind}`",
                "run `smoe tokenize` again, or name the checkpoint that it is of: `train.init_from`",
            )
        if tokenizer.vocab_size != config.tokenizer.vocab_size:
            raise CheckpointError(
                f"the tokenizer in `{tokenizer.folder}` has {tokenizer.vocab_size} pieces, and `tokenizer.vocab_size` is "
                f"{config.tokenizer.vocab_size}",
                f"run `smoe tokenize` again, or set `tokenizer.vocab_size` to {tokenizer.vocab_size}",
            )
    for route in routes:
        try:
            tokenizer.guiding_ids(route)
        except RouteError as error:
            raise CheckpointError(f"the tokenizer is of another recipe: {error.message}", "run `smoe tokenize` again") from error


def check_validated(settings: TrainSettings, routes: Collection[Route]) -> None:
    """Refuse settings that compare validation losses where there are none.

    Args:
        routes: Those of the dev cuts.

    Raises:
        DataError: Naming the setting.
    """
    if (settings.patience or settings.average) and not routes:
        what = "train.patience" if settings.patience else "train.average"
        raise DataError(f"`{what}` compares validation losses, and the dev split has no cut of a trained route", "give it some")


def unmatched(settings: TrainSettings, trained: Collection[Route], validated: Collection[Route]) -> Iterator[str]:
    """A line for each route that only the train split or only the dev split has.

    Args:
        trained: Routes of the training cuts.
        validated: Those of the dev cuts.
    """
    for route in sorted(set(validated) - set(trained), key=str):
        yield f"route {route} has dev cuts but no training cuts: it is not validated"
    decided = "train.patience" if settings.patience else "train.average" if (settings.average or "").startswith("best") else ""
    for route in sorted(set(trained) - set(validated), key=str):
        counts = f", and does not count in what `{decided}` compares" if decided else ""
        yield f"warning: route {route} has training cuts but no dev cuts: it is not validated{counts}"


def check_start(settings: TrainSettings, folder: Path) -> None:
    """Refuse to start from a checkpoint that the run would write over.

    Raises:
        ConfigError: If it lies in the run's folder.
    """
    source = settings.init_from
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"the checkpoint to start from, `{source}`, lies where this run writes its own", "set another exp_dir")


def check_finite(validation: Mapping[str, float], step: int, settings: TrainSettings, folder: Path) -> None:
    """Refuse to keep a model whose validation loss is no number.

    Args:
        validation: Route -> loss.
        step: After which it was found.
        folder: Of the run.

    Raises:
        SmoeError: Naming the routes.
    """
    bad = {route: loss for route, loss in validation.items() if not math.isfinite(loss)}
    if bad:
        said = ", ".join(f"{loss} on `{route}`" for route, loss in bad.items())
        raise SmoeError(
            f"after step {step} the validation loss is {said}; neither checkpoint nor model is written",
            f"look at the dev cuts of {'this route' if len(bad) == 1 else 'these routes'}; {other_rate(settings, folder, step - 1)}",
        )


def lone_labels(plan: RoutingPlan) -> Iterator[str]:
    """A line for every task that can answer with one label only."""
    for task, labels in plan.labels.items():
        if len(labels) == 1:
            yield f"task `{task}` has one label in all of the train split, `{labels[0]}`: there is nothing to choose"


def explosion(step: int, batches: Sequence[Batch], loss: float, usual: float) -> str:
    """The warning of a loss that is far above the recent mean of its route."""
    ids = ", ".join(f"`{cut.id}`" for cut in batches[0].cuts[:3])
    return (
        f"warning: at step {step} the loss of route {' + '.join(batches[0].routes_served)} was {loss:.3g}, its recent mean {usual:.3g}; "
        f"the batch began with {ids}; look at its cuts, or lower `train.learning_rate` or `train.clip_norm`"
    )


def starvation(expert: str, steps: int, had: str) -> str:
    """The warning of an expert that is hardly ever updated; ``had`` is what it had in so many steps."""
    return (
        f"warning: expert `{expert}` starves: in the last {steps:,} steps it had {had}; "
        "give it more data, or raise `train.temperature` or its weight in `train.route_weights`"
    )


def stop_at(step: int, batches: Sequence[Batch], what: str, sound: bool, cure: str, folder: Path, ranks: Ranks) -> NoReturn:
    """End at a step that must not be taken, on all processes.

    Args:
        what: Is wrong.
        sound: Whether this process's own part of the step is all right.
        cure: What to do if the cuts are all right, as `other_rate` says.

    Raises:
        SmoeError: Naming the file with the batch's cuts: those of the processes whose own part is not sound; if all are, of all.
    """
    report = folder / FAILED_BATCH
    found = ranks.collect((sound, [cut.id for batch in batches for cut in batch.cuts]))
    failed = [ids for fine, ids in found if not fine] or [ids for _, ids in found]
    if ranks.leads:
        write_text_atomically(report, "".join(f"{cut}\n" for ids in failed for cut in ids))
    ranks.wait()
    raise SmoeError(
        f"{what} at step {step} on route {' + '.join(batches[0].routes_served)}; the batch's cuts are listed in `{report}`",
        f"look at these cuts; {cure}",
    )


def other_rate(settings: TrainSettings, folder: Path, step: int) -> str:
    """How to train with a lower learning rate what stopped: a run goes on with its own only, so another one starts from its weights.

    Args:
        folder: Of the run.
        step: The last one after which the weights were good.
    """
    lower = f"train.learning_rate={settings.learning_rate / 2:g}"
    good = [path.name for path in sorted((folder / CHECKPOINTS).glob("step-*")) if path.name <= f"step-{step:08d}"]
    if not good:
        return f"with a lower learning rate, from the beginning: `smoe train --resume never --set {lower}`"
    aside = next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())
    # Those of the recipe may be about experts that were new once.
    init = " --set train.init_experts={} --set train.init_noise=0" if settings.init_from is not None else ""
    return (
        f"with a lower learning rate, from the last good checkpoint: `mv {shlex.quote(str(folder))} {shlex.quote(str(aside))}`, then "
        f"`smoe train --init-from {shlex.quote(str(aside / CHECKPOINTS / good[-1]))}{init} --set {lower}`"
    )


def stop_without_memory(when: str, batches: Sequence[Batch]) -> NoReturn:
    """End at utterances of which not one fits into memory.

    Args:
        when: As in `at step 3`.

    Raises:
        SmoeError: Naming the longest.
    """
    longest = max((cut for batch in batches for cut in batch.cuts), key=lambda cut: cut.duration)
    raise SmoeError(
        f"memory does not suffice for one utterance {when}; the longest is `{longest.id}` with {longest.duration:.1f} s",
        "set `train.loss_chunk` and `train.activation_checkpointing`, leave out long cuts, or take a smaller model",
        own=True,
    )
