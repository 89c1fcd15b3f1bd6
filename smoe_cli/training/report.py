"""What training says of itself when it ends."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smoe_cli.records import Record
from smoe_cli.training.shares import ExpertShare


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
    ctc_skipped: int = Field(description="Utterances, in the batches of this call, with fewer encoder frames than CTC needs.")
