"""Training: optimiser and schedule, the loop, validation, exact resume."""

from smoe_cli.training.report import TrainReport
from smoe_cli.training.trainer import Trainer

__all__ = ["TrainReport", "Trainer"]
