"""Weights in shards: every process holds a part of each weight, of its gradient and of its optimiser state. Torch's FSDP2 does it.

A unit is gathered when it runs and let go after it: each expert of each layer alone, so that an expert that does not run stays where it
is; then what else a layer has. The rest (embeddings, subsampler, norms, output layer, CTC head) is whole from the beginning of a forward
pass to the end of its backward pass, because the loss uses the output layer and the head after the model.

All processes gather the same units in the same order, or they would wait for each other for ever. Batches of one step have the same
routes on all, in the same order; what could differ is agreed on: whether the CTC head has a gradient (`agree_on_ctc`), how many
batches are validated, and that nobody takes a batch in parts.

Nothing else knows of FSDP. A weight in shards is a DTensor: `own` is this process's part of it, `whole` all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smoe_cli import checkpoint
from smoe_cli.checkpoint import System
from smoe_cli.errors import SmoeError
from smoe_cli.model.experts import SupervisedMoE
from smoe_cli.model.speech_to_text import SpeechToText


def divide(model: SpeechToText, group: dist.ProcessGroup, device: torch.device) -> None:
    """Leave to this process its part of every weight, on its device; gradients are added up, each in the process that has the weight.

    Args:
        model: Whole, the same on all processes, on the CPU or the device; from the CPU, units go to the device one by one.
        group: The processes, by the way that gradients take.
    """
    # A second of importing, which runs without shards need not wait for.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = DeviceMesh.from_group(group, device.type)
    # It finds the group by name too, and caches of DTensor's keep the mesh: so held, the group would outlive `ranks._leave`.
    getattr(mesh, "_pg_registry", {}).clear()
    model.register_forward_hook(_lead_back)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        for routed in (part for part in layer.modules() if isinstance(part, SupervisedMoE)):
            for expert in routed.experts.values():
                fully_shard(expert, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            # Every process scales its loss by the tokens of all: gradients are to be added, not averaged.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def _lead_back(model: nn.Module, inputs: object, output: tuple[Tensor, object]) -> None:
    """Let the backward pass come through the model even if nothing before the output layer learns: there FSDP waits for it."""
    if torch.is_grad_enabled() and not output[0].requires_grad:
        output[0].requires_grad_()


def is_divided(thing: Tensor | nn.Module) -> bool:
    """Whether a tensor, or the weights of a model, are in shards."""
    # What a DTensor or an FSDPModule has; asking for these classes would import them.
    return hasattr(thing, "placements" if isinstance(thing, Tensor) else "reshard")


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; all of one that is not in shards."""
    return cast(Tensor, cast(Any, tensor.detach()).to_local()) if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it."""
    return cast(Tensor, cast(Any, tensor.detach()).full_tensor()) if is_divided(tensor) else tensor


def like(weight: Tensor, value: Tensor) -> Tensor:
    """A whole value, the same on all processes, where a weight is and as it is: of one in shards, a part. Numbers stay whole."""
    if not is_divided(weight) or value.ndim == 0:
        return value.to(weight.device)
    from torch.distributed.tensor import distribute_tensor

    spec = cast(Any, weight)
    made = torch.empty_like(weight, requires_grad=False)
    # Copied, for the part that torch makes is a view, which would keep all of the value.
    own(made).copy_(own(distribute_tensor(value.to(weight.device), spec.device_mesh, spec.placements, src_data_rank=None)))
    return made


def gathered(tensors: Mapping[str, Tensor], leads: bool) -> dict[str, Tensor]:
    """Tensors made whole, one after the other, on the CPU of the process that leads; the others take part and keep nothing."""
    found = {}
    for name, tensor in tensors.items():
        made = whole(tensor)
        if leads:
            found[name] = made.cpu() if is_divided(tensor) else made
    return found


def whole_system(system: System, leads: bool) -> System | None:
    """The system with a model that one process can use alone, for the one that leads; every process must ask for it.

    Returns:
        The system itself, if its model is not in shards; else one with a copy on the CPU, or None for the others.
    """
    if not is_divided(system.model):
        return system if leads else None
    let_go(system.model)
    weights = gathered(system.model.state_dict(), leads)
    if not leads:
        return None
    model = checkpoint.on_meta(system.config, system.plan, system.tokenizer.vocab_size)
    checkpoint.load_weights(model, weights, system.config.model.tie_embeddings, "the model in shards")
    return replace(system, model=model)


def let_go(model: nn.Module) -> None:
    """Leave this process only its part, after a forward pass that no backward pass follows."""
    if is_divided(model):
        cast(Callable[[], None], model.reshard)()


def agree_on_ctc(model: SpeechToText, total: Tensor, transcripts: int) -> Tensor:
    """A loss by which the CTC head has a gradient on all processes or on none: 0 where only others have transcripts.

    Args:
        total: The loss.
        transcripts: Of the step, on all processes.
    """
    if model.ctc is None or not transcripts or not is_divided(model):
        return total
    return total + sum(0.0 * weight.sum() for weight in model.ctc.parameters())


def out_of_memory(batch: str) -> SmoeError:
    """The error of a batch, e.g. `of step 7`, that memory does not suffice for."""
    return SmoeError(
        f"memory does not suffice for a batch {batch}, and with `train.shard` no process can take its batch in parts: the others "
        "wait for the whole of it",
        "set `train.loss_chunk` or `train.activation_checkpointing` and run the same command again, or start anew with a lower "
        "`train.batch_s`",
        own=True,
    )
