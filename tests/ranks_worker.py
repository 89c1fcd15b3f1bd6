"""One process of several that train: `python -m tests.ranks_worker SCENARIO CONFIG FOLDER`; tests start it as torchrun would."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import Interrupted, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.training import memory as memories
from smoe_cli.training import validate as validations
from smoe_cli.training.optimiser import optimiser_tensors
from smoe_cli.training.ranks import weights_digest
from smoe_cli.training.shard import own

CALM = {"time_masks": 0, "frequency_masks": 0}


def trainer(config: Config, folder: Path, dropout: float | None = None, few: bool = False, **changes: object) -> Trainer:
    layout = Layout.of(config)
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    if dropout is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"dropout": dropout})})
    train = read_cuts(layout.cuts("train"))
    if few:
        train = fewer(train)
    return Trainer(config, folder, train, read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer))


def fewer(cuts: CutSet) -> CutSet:
    """All cuts of English text, one of German: fewer than there are processes."""
    english = [cut for cut in cuts if cut.supervisions[0].language == "en"]
    german = [cut for cut in cuts if cut.supervisions[0].language == "de"]
    return CutSet.from_cuts([*english, german[0]])


def before_step(run: Trainer, act: Callable[[], object]) -> None:
    """Let something happen before each step of a run."""
    step = run.train_step

    def acting(*batches: Any) -> Any:
        act()
        return step(*batches)

    run.train_step = acting  # type: ignore[method-assign]


def whole(config: Config, folder: Path) -> Any:
    """A run to its end; idle experts are watched at every step."""
    run = trainer(config, folder / "whole")
    step, moved = run.train_step, []

    def watching(*batches: Any) -> Any:
        before = {name: value.clone() for name, value in run.system.model.state_dict().items() if ".experts." in name}
        losses = step(*batches)
        after = run.system.model.state_dict()
        used = {f".experts.{stack.expert(batches[0].routes[0])}." for stack in (run.plan.encoder, run.plan.decoder)}
        moved.append(all(torch.equal(value, after[name]) != any(part in name for part in used) for name, value in before.items()))
        return losses

    run.train_step = watching  # type: ignore[method-assign]
    report = run.run()
    return {"exact": moved, "validation": report.validation, "digest": weights_digest(run.system.model), "experts": str(report.experts)}


def stopped(config: Config, folder: Path) -> Any:
    """The last process alone is told to stop; then all go on."""
    run = trainer(config, folder / "parts", workers=1)
    last = run.ranks.size - 1
    before_step(run, lambda: os.kill(os.getpid(), signal.SIGTERM) if run.step == 2 and run.ranks.rank == last else None)
    try:
        run.run()
    except Interrupted as error:
        again = trainer(config, folder / "parts").run()
        return {"said": error.message, "resumed_from": again.resumed_from, "validation": again.validation}
    return None


def reviewed(config: Config, folder: Path) -> Any:
    """The last process alone is told to stop, by itself while it validates, then by the first one while that takes samples."""
    return {str(shard): _reviewed(config, folder / f"reviewed-{shard}", shard) for shard in (False, True)}


def _reviewed(config: Config, folder: Path, shard: bool) -> Any:
    changes = {"shard": shard, "ema_decay": 0.5, "sample_utterances": 2, "max_utterances": 2, "max_steps": 4}
    losses_of, decode_batch = validations.losses_of, Decoder.decode_batch
    found: dict[str, Any] = {"said": [], "batches": [], "decoded": []}

    def attempt(part: str, in_validation: bool, in_samples: bool) -> None:
        run = trainer(config, folder / part, **changes)
        last = run.ranks.collect(os.getpid())[-1]
        calls = {"batches": 0, "decoded": 0}

        def validating(*args: Any, **kwargs: Any) -> Any:
            calls["batches"] += 1
            if in_validation and os.getpid() == last and calls["batches"] == 2:
                os.kill(last, signal.SIGTERM)
            return losses_of(*args, **kwargs)

        def decoding(*args: Any) -> Any:
            calls["decoded"] += 1
            if in_samples and calls["decoded"] == 1:
                os.kill(last, signal.SIGTERM)
                time.sleep(1)  # until the other process has been told, and has raised its flag
            return decode_batch(*args)

        validations.losses_of, Decoder.decode_batch = validating, decoding  # type: ignore[method-assign]
        try:
            found["said"].append(run.run().validation)
        except Interrupted as error:
            found["said"].append(error.message)
        for name, count in calls.items():
            found[name].append(count)

    attempt("whole", False, False)
    attempt("parts", True, False)
    attempt("parts", False, True)
    attempt("parts", False, False)
    validations.losses_of, Decoder.decode_batch = losses_of, decode_batch  # type: ignore[method-assign]
    return found


def memory(config: Config, folder: Path) -> Any:
    """On the last process, memory is used up by every batch of more than two utterances."""
    run = trainer(config, folder / "memory", dropout=0.0, max_steps=4, **CALM)
    gradients = run._gradients

    def small(batches: Any, own: Any = None) -> Any:
        if run.ranks.rank == run.ranks.size - 1 and max(len(batch.cuts) for batch in batches) > 4:
            raise torch.OutOfMemoryError("made up")
        return gradients(batches, own)

    run._gradients = small  # type: ignore[method-assign]
    run.run()
    return weights_digest(run.system.model)


def starts(config: Config, folder: Path) -> Any:
    """The last process is told to stop while all look for the largest batch; then all end after it is found, and start again."""
    settings: dict[str, Any] = {"batch_s": "auto", "max_steps": 1}
    run, found = trainer(config, folder / "starts", **settings), {}
    last = run.ranks.rank == run.ranks.size - 1
    longest_batch, most = memories.longest_batch, memories.most_utterances

    def told(*args: Any) -> Any:
        if last:
            os.kill(os.getpid(), signal.SIGTERM)
        return longest_batch(*args)

    memories.longest_batch = told
    try:
        run.run()
    except Interrupted as error:
        found["said"] = error.message
    memories.longest_batch = longest_batch
    for part, utterances in (("first", 3), ("second", 4)):
        # The search itself is not what is tested; mypy knows no type for a lambda with a default.
        memories.most_utterances = lambda *_, utterances=utterances: utterances  # type: ignore[misc]
        run = trainer(config, folder / "starts", **settings)
        if part == "first":
            before_step(run, lambda: 1 / 0)
        with suppress(ZeroDivisionError):
            run.run()
        found[part] = run.batch_s
    memories.most_utterances = most
    return found


def nan(config: Config, folder: Path) -> Any:
    """The loss of the last process is no number."""
    run = trainer(config, folder / "nan")
    step = run.train_step
    seen: list[str] = []

    def poison(*batches: Any) -> Any:
        losses = step(*batches)
        if run.step == 1 and run.ranks.rank == run.ranks.size - 1:
            seen.extend(cut.id for batch in batches for cut in batch.cuts)
            losses.total = losses.total * float("nan")
        return losses

    run.train_step = poison  # type: ignore[method-assign]
    try:
        run.run()
    except SmoeError as error:
        return {"said": error.message, "cuts": seen}
    return None


def gradients(config: Config, folder: Path) -> Any:
    """A gradient of the last process is no number, its loss is one; with whole weights, and with weights in shards."""
    found: dict[str, Any] = {}
    for shard in (False, True):
        run = trainer(config, folder / f"gradients-{shard}", shard=shard)
        last, seen, kept = run.ranks.rank == run.ranks.size - 1, [], []

        def hook(module: object, inputs: object, output: torch.Tensor, run: Trainer = run, last: bool = last) -> None:
            if last and run.step == 1 and output.requires_grad:
                output.register_hook(lambda gradient: gradient * float("nan"))

        run.system.model.decoder.norm.register_forward_hook(hook)
        step = run.train_step

        def watch(*batches: Any, run: Trainer = run, step: Any = step, seen: list[str] = seen, kept: list[int] = kept) -> Any:
            seen[:] = [cut.id for batch in batches for cut in batch.cuts]
            kept[:] = [weights_digest(run.system.model)]
            return step(*batches)

        run.train_step = watch  # type: ignore[method-assign]
        try:
            run.run()
        except SmoeError as error:
            untouched = kept == [weights_digest(run.system.model)]
            found[str(shard)] = {"said": error.message, "own": error.own, "cuts": seen, "untouched": untouched}
    return found


def uneven(config: Config, folder: Path) -> Any:
    """A route with fewer cuts than there are processes, and `auto` batches."""
    run = trainer(config, folder / "uneven", few=True, average="last 2", sample_utterances=1, batch_s="auto", max_utterances=3)
    report = run.run()
    return {"steps": report.steps, "digest": weights_digest(run.system.model), "averaged": report.averaged, "batch_s": run.batch_s}


def death(config: Config, folder: Path) -> Any:
    """The last process is killed outright at the third step."""
    run = trainer(config, folder / "death")
    before_step(run, lambda: os.kill(os.getpid(), signal.SIGKILL) if run.step == 2 and run.ranks.rank == run.ranks.size - 1 else None)
    run.run()


def other(config: Config, folder: Path) -> Any:
    """The last process has another recipe."""
    run = trainer(config, folder / "other", learning_rate=0.5 if os.environ["RANK"] == "1" else 0.1)
    try:
        run.run()
    except SmoeError as error:
        return error.message
    return None


def sharded(config: Config, folder: Path) -> Any:
    """As `whole`, with weights in shards; idle experts are watched with the optimiser's state of them, and what is held is counted."""
    run = trainer(config, folder / "sharded", shard=True)
    step, moved = run.train_step, []

    def held() -> dict[str, torch.Tensor]:
        weights = {name: weight for name, weight in run.system.model.named_parameters() if ".experts." in name}
        states = {name: value for name, value in optimiser_tensors(run.system.model, run.optimiser).items() if ".experts." in name}
        return {name: own(value).clone() for name, value in (weights | states).items()}

    def watching(*batches: Any) -> Any:
        before = held()
        losses = step(*batches)
        after = held()
        used = {f".experts.{stack.expert(batches[0].routes[0])}." for stack in (run.plan.encoder, run.plan.decoder)}
        idle = [name for name in after if not any(part in name for part in used)]
        moved.append(all(name in before and torch.equal(before[name], after[name]) for name in idle))
        return losses

    run.train_step = watching  # type: ignore[method-assign]
    report = run.run()
    return {
        "exact": moved,
        "validation": report.validation,
        "parameters": report.parameters,
        "digest": weights_digest(run.system.model),
        "share": share_of(run),
    }


def share_of(run: Trainer) -> float:
    """The part of weights, moving average and optimiser state that this process has in memory."""
    averages = run.moving.averages.values() if run.moving is not None else ()
    tensors = [*run.system.model.parameters(), *averages, *optimiser_tensors(run.system.model, run.optimiser).values()]
    return sum(own(one).untyped_storage().nbytes() for one in tensors) / sum(one.numel() * one.element_size() for one in tensors)


KINDS: dict[str, dict[str, Any]] = {
    "much": {
        "activation_checkpointing": True,
        "ema_decay": 0.9,
        "freeze": ["subsampler", "encoder.layers.0.*"],
        "lr_factors": {"decoder": 0.5},
        "turns_per_batch": 2,
        "sample_utterances": 1,
        "accumulate": 2,
        "loss_chunk": 16,
    },
    "mean": {"average": "last 2", "few": True, "route_weights": {"translate": 9.0}, "seed": 1, "max_steps": 4, "validate_every": 2},
    "bf16": {"precision": "bf16", "max_steps": 4},
    "output": {"freeze": ["encoder", "decoder.embedding.*", "decoder.layers.*", "decoder.norm.*"], "max_steps": 2},
    "mute": {"mute": True, "max_steps": 4},
}
"""Settings under which runs in shards and runs that are not are compared; `mute`: only the first process has transcripts."""


def kinds(config: Config, folder: Path) -> Any:
    """Pairs of runs, one in shards, one not."""
    return {f"{kind} {shard}": _run_of(config, folder / f"{kind}-{shard}", kind, shard) for kind in KINDS for shard in (False, True)}


def _run_of(config: Config, folder: Path, kind: str, shard: bool) -> Any:
    changes = dict(KINDS[kind])
    mute = changes.pop("mute", False)
    run = trainer(config, folder, shard=shard, **changes)
    step = run.train_step

    def muted(*batches: Any) -> Any:
        silent = mute and run.ranks.rank > 0
        return step(*(replace(batch, ctc_lengths=torch.zeros_like(batch.ctc_lengths)) if silent else batch for batch in batches))

    run.train_step = muted  # type: ignore[method-assign]
    report = run.run()
    return {"validation": report.validation, "precision": report.precision}


def sharded_parts(config: Config, folder: Path) -> Any:
    """In shards, the last process alone is told to stop; then all go on. Then: in shards, not in shards, and in shards again."""
    run = trainer(config, folder / "sharded-parts", shard=True, ema_decay=0.5)
    last = run.ranks.size - 1
    before_step(run, lambda: os.kill(os.getpid(), signal.SIGTERM) if run.step == 2 and run.ranks.rank == last else None)
    try:
        run.run()
    except Interrupted:
        run = trainer(config, folder / "sharded-parts", shard=True, ema_decay=0.5)
        found = [run.run().resumed_from, round(share_of(run), 2)]
    trainer(config, folder / "sharded-whole", shard=True, ema_decay=0.5).run()
    for number, shard in enumerate((True, False, True)):
        run = trainer(config, folder / "mixed", shard=shard, validate_every=2)
        before_step(run, lambda run=run, number=number: os.kill(os.getpid(), signal.SIGTERM) if run.step == 2 * number + 1 else None)
        try:
            found.append(run.run().resumed_from)
        except Interrupted:
            found.append(None)
    found.append(trainer(config, folder / "mixed", shard=False, validate_every=2).run().resumed_from)
    return found


def sharded_memory(config: Config, folder: Path) -> Any:
    """In shards, the memory of the last process is used up."""
    run = trainer(config, folder / "sharded-memory", shard=True)
    gradients = run._gradients

    def small(batches: Any, own_counts: Any = None) -> Any:
        if run.ranks.rank == run.ranks.size - 1 and run.step == 1:
            raise torch.OutOfMemoryError("made up")
        return gradients(batches, own_counts)

    run._gradients = small  # type: ignore[method-assign]
    run.run()


def sharded_death(config: Config, folder: Path) -> Any:
    """In shards, the last process is killed outright in the forward pass of the third step."""
    run = trainer(config, folder / "sharded-death", shard=True)
    layer = run.system.model.decoder.layers[0]
    layer.register_forward_pre_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGKILL) if run.step == 2 and run.ranks.rank == run.ranks.size - 1 else None
    )
    run.run()


IN_SHARDS = (sharded, kinds, sharded_parts, sharded_memory, sharded_death)
SCENARIOS = {
    function.__name__: function for function in (whole, stopped, reviewed, memory, starts, nan, gradients, uneven, death, other, *IN_SHARDS)
}


def tell_threads(file: Path) -> None:
    """Which threads there are."""
    file.write_text("\n".join(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))


def main() -> None:
    names, config, folder = sys.argv[1].split(","), Config.model_validate_json(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    # What is registered first is called last: when the process has left the others.
    atexit.register(tell_threads, folder / f"threads-{os.environ['RANK']}.txt")
    found = {name: SCENARIOS[name](config, folder) for name in names}
    (folder / f"said-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
