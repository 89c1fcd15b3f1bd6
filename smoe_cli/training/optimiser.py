"""AdamW, its learning-rate schedule, and its state as named tensors."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.averaging import AVERAGE
from smoe_cli.training.parts import factors_of
from smoe_cli.training.shard import like, whole


def make_optimiser(model: SpeechToText, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the weights that learn, with weight decay on matrices only. Fused: five times faster than the loop, on CPUs too.

    Raises:
        ConfigError: If `train.lr_factors` names a part that the model does not have.
    """
    factors = factors_of(model, settings)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[settings.weight_decay if parameter.ndim >= 2 else 0.0, factors[name]].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay, "factor": factor} for (decay, factor), parameters in groups.items()],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def clip(model: nn.Module, optimiser: torch.optim.AdamW, norm: float) -> Tensor:
    """Let the optimiser's next step take the gradients scaled down to this norm, which is that of all processes' shards.

    The step divides by the factor as it reads them: to scale them beforehand would read and write all of them once more.

    Returns:
        The norm that they have, the same on all processes.
    """
    found = gradient_norm(model)
    optimiser.grad_scale = (found / norm).clamp(min=1.0)  # type: ignore[attr-defined]
    return found


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together; one that is no number makes it none."""
    return whole(torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None]))


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Learning rate of optimiser step ``step`` (from 0): linear warm-up, then inverse square root or cosine to zero."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    if step < settings.warmup_steps:
        return settings.learning_rate * warm
    if settings.schedule == "inverse-sqrt":
        return settings.learning_rate * math.sqrt(settings.warmup_steps / (step + 1))
    done = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name; an expert that never ran has none."""
    return {
        f"{name}|{key}": value for name, parameter in model.named_parameters() for key, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` took."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("|")
        if key == AVERAGE:  # not the optimiser's
            continue
        optimiser.state[parameters[name]][key] = like(parameters[name], value)
