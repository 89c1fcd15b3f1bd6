"""One process of several that train: `python -m tests.ranks_worker SCENARIO CONFIG FOLDER`; tests start it as torchrun would."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts
from smoe_cli.errors import Interrupted, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.training.ranks import weights_digest

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


SCENARIOS = {function.__name__: function for function in (whole, stopped, memory, nan, uneven, death, other)}


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
