"""One expert, and the layer that holds them by name and runs one per utterance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from smoe_cli.model.dropout import Dropout, ReluDropout

# N utterances, S positions (frames or tokens), P positions of all utterances, D model width


DENSE, SHARED = "dense", "shared"
"""Names of the only expert where no tag chooses, and of the one that runs whatever the tag."""
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def order_of_experts(expert_N: Tensor) -> Tensor | None:
    """Order of utterances in which those of one expert stand together, int64; None if they do already.

    A stack sorts its utterances once, and not once in every layer.
    """
    if len(expert_N.unique_consecutive()) == len(expert_N.unique()):
        return None
    return torch.argsort(expert_N, stable=True)


class ExpertFFN(nn.Sequential):
    """A position-wise feed-forward network: D -> hidden -> D with an activation (one of `ACTIVATIONS`) between."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, activation: str = "relu") -> None:
        # Two modules between the matrices whatever they are: weights keep their names.
        between = (ReluDropout(dropout), nn.Identity()) if activation == "relu" else (ACTIVATIONS[activation](), Dropout(dropout))
        super().__init__(nn.Linear(dim, hidden_dim), *between, nn.Linear(hidden_dim, dim))


class SupervisedMoE(nn.Module):
    """One feed-forward expert per tag value; the tag, not a gate, picks it.

    Source: S-MoE, arXiv:2508.10009, section 2. With one expert this is a dense FFN. One expert runs per
    utterance, so compute equals the dense layer's however many experts there are. A shared expert, if there is one, runs
    on every utterance beside the chosen one, and their outputs are added (after DeepSeekMoE, arXiv:2401.06066, section 3.2).

    Args:
        names: Names of the experts, in the order of their indices.
        dim: Model width D.
        hidden_dim: Hidden width of each expert.
        dropout: Dropout between the two linear layers.
        shared_hidden_dim: Hidden width of the shared expert; None: there is none.
        activation: One of `ACTIVATIONS`.
    """

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        hidden_dim: int,
        dropout: float = 0.0,
        shared_hidden_dim: int | None = None,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        # Keyed by name, so that adding an expert never renumbers old weights.
        self.experts = nn.ModuleDict({name: ExpertFFN(dim, hidden_dim, dropout, activation) for name in names})
        self.shared = ExpertFFN(dim, shared_hidden_dim, dropout, activation) if shared_hidden_dim else None

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Apply expert ``expert[n]`` to all of ``x[n]``.

        Each run of rows with the same expert is a view, and one call of that expert: `order_of_experts` makes runs longest.

        Args:
            x: Hidden states, (N,S,D) or (P,D): of utterances with their padding, which is computed too, or of real positions.
            expert: Expert index of each row of the first dimension, int64, on the CPU: it decides control flow, and reading it
                from an accelerator would stall every layer.

        Returns:
            Same shape as ``x``.

        Raises:
            ValueError: If ``expert`` is not one valid index per row.
        """
        if expert.shape != x.shape[:1]:
            raise ValueError(f"expert has shape {tuple(expert.shape)}, expected one index for each of {x.shape[0]} rows")
        indices, lengths = (found.tolist() for found in torch.unique_consecutive(expert, return_counts=True))
        if not all(0 <= index < len(self.names) for index in indices):
            raise ValueError(f"expert indices {sorted(set(indices))} are not all among the {len(self.names)} experts {list(self.names)}")
        if len(indices) == 1:
            out = self.run_expert(indices[0], x)
        else:
            out = torch.cat([self.run_expert(index, part) for index, part in zip(indices, x.split(lengths), strict=True)])
        return out if self.shared is None else out + self.shared(x)

    def run_expert(self, index: int, x: Tensor) -> Tensor:
        """Run one expert on a run of its rows."""
        out: Tensor = self.experts[self.names[index]](x)
        return out


class UnroutedFFN(SupervisedMoE):
    """A feed-forward network that serves every tag: a layer that does not choose, in a stack whose other layers do.

    Its weights are named as those of a stack that is not routed at all, so that each fits the other.
    """

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float = 0.0, shared_hidden_dim: int | None = None, activation: str = "relu"
    ) -> None:
        super().__init__((DENSE,), dim, hidden_dim, dropout, shared_hidden_dim, activation)

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """As `SupervisedMoE`, whatever expert ``expert`` means in the other layers."""
        return super().forward(x, torch.zeros_like(expert))
