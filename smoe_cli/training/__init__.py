"""Training: optimiser and schedule, the loop, validation, exact resume."""

from smoe_cli.training.trainer import Trainer, TrainReport

__all__ = ["TrainReport", "Trainer"]
