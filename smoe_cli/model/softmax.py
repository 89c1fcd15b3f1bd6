"""Log-probabilities over a large vocabulary, without ever holding all of them."""

from __future__ import annotations

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
        chosen, means, normalisers = [], [], []
        for states, columns in zip(states_RD.split(rows), columns_RC.split(rows), strict=True):
            logits = F.linear(states, weight_VD, bias_V)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            normaliser = logits.logsumexp(-1)
            chosen.append(logits.gather(1, columns) - normaliser[:, None])
            means.append(logits.mean(-1) - normaliser)
            normalisers.append(normaliser)
        ctx.save_for_backward(states_RD, weight_VD, bias_V, columns_RC, torch.cat(normalisers))
        ctx.rows = rows
        return torch.cat(chosen), torch.cat(means)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        states_RD, weight_VD, bias_V, columns_RC, normaliser_R = ctx.saved_tensors
        grad_RC, grad_R = grads
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Sums over chunks are kept in float32 whatever the products are computed in.
        exact = normaliser_R.dtype
        states_grads: list[Tensor] = []
        weight_grad = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=exact) if wants_bias else None
        pieces = (tensor.split(ctx.rows) for tensor in (states_RD, columns_RC, normaliser_R, grad_RC, grad_R))
        for states, columns, normaliser, grad_chosen, grad_mean in zip(*pieces, strict=True):
            # d log p[c] / d logit[v] = (v == c) - p[v]; the mean's is 1/V - p[v].
            logits_grad = F.linear(states, weight_VD, bias_V).to(exact).sub_(normaliser[:, None]).exp_()
            logits_grad.mul_(-(grad_chosen.sum(-1) + grad_mean)[:, None]).add_((grad_mean / len(weight_VD))[:, None])
            logits_grad.scatter_add_(1, columns, grad_chosen)
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            logits_grad = logits_grad.to(states.dtype)
            if wants_states:
                states_grads.append(logits_grad @ weight_VD)
            if weight_grad is not None and states.dtype == exact:
                weight_grad.addmm_(logits_grad.T, states)
            elif weight_grad is not None:
                weight_grad += logits_grad.T @ states
        return torch.cat(states_grads) if wants_states else None, weight_grad, bias_grad, None, None


def chosen_log_probs(
    states_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, columns_RC: Tensor, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-softmax of a linear layer at chosen pieces, and its mean over all of them; computed for some rows at a time.

    Neither the logits (R,V) nor anything of their size is ever held: at most ``rows`` rows of them, forward and backward.

    Args:
        weight_VD, bias_V: Of the layer.
        columns_RC: The pieces that are asked for, in every row; one may be named twice.
        rows: Rows that are computed at a time.
        dtype: In which matrix products are computed; all else is float32.

    Returns:
        Log-probabilities (R,C) and their means over the vocabulary (R,).
    """
    bias = None if bias_V is None else bias_V.to(dtype)
    chosen: tuple[Tensor, Tensor] = _ChosenLogProbs.apply(states_RD.to(dtype), weight_VD.to(dtype), bias, columns_RC, rows)  # type: ignore[no-untyped-call]
    return chosen
