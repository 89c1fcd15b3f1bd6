"""What training says of itself when it ends."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smoe_cli.records import Record


class TrainReport(Record):
    """What training did."""

    checkpoint: Path
    steps: int
    minutes: float = Field(description="Wall time of this call.")
    resumed_from: int | None = Field(description="Step of the checkpoint it continued from.")
    started_from: str | None = Field(default=None, description="Digest of the model whose weights training began with.")
    parameters: dict[str, int]
    precision: str
    validation: dict[str, float] = Field(description="Route -> loss per token on the dev split.")
    steps_by_route: dict[str, int]
    ctc_skipped: int = Field(description="Utterances, in the batches of this call, with fewer encoder frames than CTC needs.")
