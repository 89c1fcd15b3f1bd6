"""What a run measured before its first step, kept until there is a checkpoint that knows: a run that is killed before goes on as itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from smoe_cli.config import Config
from smoe_cli.records import Record, write_text_atomically
from smoe_cli.train_settings import LENGTH, WATCHING
from smoe_cli.training.precision import Precision

MEASURED = "measured.json"


class Measured(Record):
    """How a run computes, and on how large batches.

    Attributes:
        of: What that depends on, as `dependence` gives it.
    """

    of: str
    precision: Precision
    batch_s: float


def dependence(config: Config, vocab_size: int, data: dict[str, Any], processes: int, device: torch.device) -> str:
    """A digest of all that what is measured depends on, as far as a run can say it: not how much memory other programs use.

    Args:
        vocab_size: Of the tokenizer.
        data: The training cuts, as `Checkpoints.fingerprint` says.
    """
    settings = config.model_dump(mode="json", include={"tasks", "axes", "model", "features"})
    settings["train"] = config.train.model_dump(mode="json", exclude=WATCHING | LENGTH)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return hashlib.sha256(json.dumps([settings, vocab_size, data, processes, name], sort_keys=True).encode()).hexdigest()


def recall(folder: Path, of: str) -> Measured | None:
    """What was measured in a run's folder; None where nothing was, or of something else."""
    try:
        found = Measured.model_validate_json((folder / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.of == of else None


def remember(folder: Path, measured: Measured) -> None:
    """Keep it.

    Raises:
        DataError: If the folder cannot be written.
    """
    write_text_atomically(folder / MEASURED, measured.model_dump_json(indent=2) + "\n")
