"""Log-probabilities over a large vocabulary, of those pieces that are asked for; without ever holding all, if need be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# R rows (frames or tokens), D model width, V vocabulary, C chosen pieces per row


class _ChosenLogProbs(torch.autograd.Function):
    """See `chosen_log_probs`. Backward computes the logits again, which costs one matrix product more than keeping them."""

    @staticmethod
    def forward(
        ctx: Any, states_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, columns_RC: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if states_RD.dtype == torch.float64 else torch.float32
        chosen_RC = states_RD.new_empty(columns_RC.shape, dtype=exact)
        sum_R, normaliser_R = (states_RD.new_empty(len(states_RD), dtype=exact) for _ in range(2))
        for part in _parts(len(states_RD), rows):
            logits = F.linear(states_RD[part], weight_VD, bias_V).to(exact)
            chosen_RC[part], sum_R[part] = logits.gather(1, columns_RC[part]), logits.sum(-1)
            normaliser_R[part] = logits.logsumexp(-1)
        ctx.save_for_backward(states_RD, weight_VD, bias_V, columns_RC, normaliser_R)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return chosen_RC - normaliser_R[:, None], sum_R / len(weight_VD) - normaliser_R

    @staticmethod
    def backward(ctx: Any, grad_RC: Tensor | None, grad_R: Tensor | None) -> tuple[Tensor | None, ...]:
        states_RD, weight_VD, bias_V, columns_RC, normaliser_R = ctx.saved_tensors
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Sums over parts are kept in float32 whatever the products are computed in.
        exact = normaliser_R.dtype
        states_grad = torch.empty_like(states_RD) if wants_states else None
        weight_grad = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=exact) if wants_bias else None
        total_R = torch.zeros_like(normaliser_R)
        for grad in (grad_R, None if grad_RC is None else grad_RC.sum(-1)):
            total_R = total_R if grad is None else total_R + grad
        for part in _parts(len(states_RD), ctx.rows):
            # d log p[c] / d logit[v] = (v == c) - p[v]; the mean's is 1/V - p[v].
            logits_grad = F.linear(states_RD[part], weight_VD, bias_V).to(exact).sub_(normaliser_R[part, None]).exp_()
            logits_grad.mul_(-total_R[part, None])
            if grad_R is not None:
                logits_grad.add_((grad_R[part] / len(weight_VD))[:, None])
            if grad_RC is not None:
                logits_grad.scatter_add_(1, columns_RC[part], grad_RC[part])
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            logits_grad = logits_grad.to(states_RD.dtype)
            if states_grad is not None:
                torch.mm(logits_grad, weight_VD, out=states_grad[part])
            if weight_grad is not None and states_RD.dtype == exact:
                weight_grad.addmm_(logits_grad.T, states_RD[part])
            elif weight_grad is not None:
                weight_grad += logits_grad.T @ states_RD[part]
        return states_grad, weight_grad, bias_grad, None, None


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, count, rows))


def chosen_log_probs(
    states_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, columns_RC: Tensor, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-softmax of a linear layer at chosen pieces, and its mean over all of them.

    If computed for some rows at a time, neither the logits (R,V) nor anything of their size is ever held: at most ``rows`` rows of
    them, forward and backward.

    Args:
        weight_VD, bias_V: Of the layer.
        columns_RC: The pieces that are asked for, in every row; one may be named twice.
        rows: Rows that are computed at a time; 0: all, as if there are no more than that, which costs one matrix product less.
        dtype: In which matrix products are computed; all else is float32.

    Returns:
        Log-probabilities (R,C) and their means over the vocabulary (R,).
    """
    bias = None if bias_V is None else bias_V.to(dtype)
    if not rows or len(states_RD) <= rows:
        logits = F.linear(states_RD.to(dtype), weight_VD.to(dtype), bias)
        log_probs = F.log_softmax(logits if dtype == torch.float64 else logits.float(), dim=-1)
        return log_probs.gather(1, columns_RC), log_probs.mean(-1)
    chosen: tuple[Tensor, Tensor] = _ChosenLogProbs.apply(states_RD.to(dtype), weight_VD.to(dtype), bias, columns_RC, rows)  # type: ignore[no-untyped-call]
    return chosen
