"""What training says of itself when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from smoe_cli.errors import Interrupted
from smoe_cli.records import Record
from smoe_cli.training.guard import Stopped
from smoe_cli.training.shares import ExpertShare

REPORT = "report.json"


class TrainReport(Record):
    """What training did."""

    checkpoint: Path
    steps: int
    minutes: float = Field(description="Wall time of this call.")
    resumed_from: int | None = Field(description="Step of the checkpoint it continued from.")
    started_from: str | None = Field(default=None, description="Digest of the model whose weights training began with.")
    parameters: dict[str, int]
    precision: str
    stopped_early: bool = Field(default=False, description="Whether `train.patience` ended it before `train.max_steps`.")
    averaged: list[int] = Field(default=[], description="Steps whose checkpoints the model is the mean of.")
    left_out: list[int] = Field(
        default=[],
        description="Steps whose checkpoints `train.average` asked for and could not be read; without any, the model has the last weights.",
    )
    validation: dict[str, float] = Field(description="Route -> loss per token on the dev split.")
    steps_by_route: dict[str, int]
    experts: dict[str, ExpertShare] = Field(default={}, description="Stack and expert -> what it was given to learn from.")
    starved: list[str] = Field(
        default=[], description="Experts with less than a fifth of an even share of their stack's updates or frames."
    )
    ctc_skipped: int = Field(description="Utterances, in the batches so far, with fewer encoder frames than CTC needs.")


@contextmanager
def interruptions_told(steps: Callable[[], int], most: int, checkpoints: Path) -> Iterator[None]:
    """Within it, whatever asks training to stop is told with what is saved, and how to go on.

    Args:
        steps: Gives how many are done, of so many.
        checkpoints: Their folder.

    Raises:
        Interrupted: Instead of `Stopped`, and of `KeyboardInterrupt`, at which nothing could be finished.
    """
    try:
        yield
    except Stopped:
        if steps() == 0:
            raise Interrupted(
                "stopped before the first step; nothing has been trained yet", "run the same command again to begin"
            ) from None
        raise Interrupted(
            f"stopped after step {steps()} of {most}; the state is saved in `{checkpoints}`",
            "run the same command again to continue exactly there",
        ) from None
    except KeyboardInterrupt:
        saved = max(checkpoints.glob("step-*"), default=None)
        raise Interrupted(
            f"stopped at once, after step {steps()} of {most}; "
            + ("no checkpoint is saved yet" if saved is None else f"the last checkpoint is `{saved.name}`"),
            "`smoe train` begins anew" if saved is None else "`smoe train` goes on from there",
        ) from None
