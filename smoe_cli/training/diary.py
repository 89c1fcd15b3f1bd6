"""What a run writes about itself while it goes on: `metrics.jsonl`, samples, and scalars for TensorBoard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoe_cli.errors import ConfigError
from smoe_cli.records import write_atomically
from smoe_cli.training.alarms import FAILED_BATCH
from smoe_cli.training.environment import ENVIRONMENT
from smoe_cli.training.report import REPORT
from smoe_cli.training.samples import Sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, SAMPLES, BOARD = "metrics.jsonl", "samples.jsonl", "tensorboard"


def by_task(of_route: Mapping[str, float]) -> dict[str, float]:
    """Mean over the routes of each task."""
    tasks: dict[str, list[float]] = {}
    for route, value in of_route.items():
        tasks.setdefault(route.partition("/")[0], []).append(value)
    return {task: sum(values) / len(values) for task, values in sorted(tasks.items())}


class Diary:
    """Files beside the checkpoints, to which every validation adds, and every so many steps between.

    Args:
        folder: Of the model.
        tensorboard: Whether scalars go into `tensorboard/` too.

    Raises:
        ConfigError: If they should, and the package is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        if tensorboard and find_spec("tensorboard") is None:
            raise ConfigError("`train.tensorboard` needs the package `tensorboard`", "pip install 'smoe[tensorboard]'")
        self.folder, self.tensorboard = folder, tensorboard
        self._writer: SummaryWriter | None = None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add what holds after a step: numbers, texts, and groups of them by name."""
        self._append(METRICS, [{"step": step, **values}])
        if self.tensorboard:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # What a killed process wrote of later steps is not shown beside what comes now.
                self._writer = SummaryWriter(str(self.folder / BOARD), purge_step=step)
            for name, value in _scalars("", values):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def samples(self, step: int, found: Sequence[Sample]) -> None:
        """Add what the model writes after a step."""
        self._append(SAMPLES, [{"step": step, **sample.model_dump()} for sample in found])

    def passed(self) -> None:
        """A validation is done: no step before it fails any more."""
        (self.folder / FAILED_BATCH).unlink(missing_ok=True)

    def cut(self, step: int) -> None:
        """Forget what was written of later steps than this one, which come again, and a last line that a killed process left torn.

        Raises:
            DataError: If a file cannot be written.
        """
        for name in (METRICS, SAMPLES):
            path = self.folder / name
            if path.exists():
                *lines, torn = path.read_bytes().split(b"\n")
                kept = [line for line in lines if not _is_later(line, step)]
                if torn or len(kept) < len(lines):
                    write_atomically(path, b"".join(line + b"\n" for line in kept))

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def forget(self) -> None:
        """Discard what an earlier run wrote."""
        for name in (METRICS, SAMPLES, ENVIRONMENT, REPORT, FAILED_BATCH):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / BOARD, ignore_errors=True)

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _is_later(line: bytes, step: int) -> bool:
    """Whether a line is of a later step, or of what comes after the checkpoint of this one: the average at the end."""
    try:
        values = json.loads(line)
        return bool(values["step"] > step or (values["step"] == step and "averaged" in values))
    except (ValueError, KeyError, TypeError):
        return False


def _scalars(group: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number, under the names of its groups and its own, joined by `/`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(f"{group}{name}/", value)
        elif isinstance(value, int | float):
            yield f"{group}{name}", float(value)
