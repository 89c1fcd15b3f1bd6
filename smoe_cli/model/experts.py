"""One expert, and the layer that holds them by name and runs one per utterance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

# N utterances, S positions (frames or tokens), D model width


DENSE, SHARED = "dense", "shared"
"""Names of the only expert where no tag chooses, and of the one that runs whatever the tag."""
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "silu": nn.SiLU, "gelu": nn.GELU}


class ExpertFFN(nn.Sequential):
    """A position-wise feed-forward network: D -> hidden -> D with an activation (one of `ACTIVATIONS`) between."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, activation: str = "relu") -> None:
        super().__init__(nn.Linear(dim, hidden_dim), ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))


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

    def forward(self, x_NSD: Tensor, expert_N: Tensor) -> Tensor:
        """Apply expert ``expert_N[n]`` to every position of utterance ``n``.

        Args:
            x_NSD: Hidden states; padding is computed too, attention masks it.
            expert_N: Expert index per utterance, int64, on the CPU: it decides control flow, and reading it
                from an accelerator would stall every layer.

        Returns:
            Same shape as ``x_NSD``.

        Raises:
            ValueError: If ``expert_N`` is not one valid index per utterance.
        """
        if expert_N.shape != x_NSD.shape[:1]:
            raise ValueError(f"expert_N has shape {tuple(expert_N.shape)}, expected one index for each of {x_NSD.shape[0]} utterances")
        indices = expert_N.tolist()
        if not all(0 <= index < len(self.names) for index in indices):
            raise ValueError(f"expert indices {sorted(set(indices))} are not all among the {len(self.names)} experts {list(self.names)}")
        out_NSD = self._chosen(x_NSD, expert_N, indices)
        return out_NSD if self.shared is None else out_NSD + self.shared(x_NSD)

    def _chosen(self, x_NSD: Tensor, expert_N: Tensor, indices: list[int]) -> Tensor:
        """What each utterance's own expert makes of it; `indices` are the numbers in `expert_N`."""
        used = sorted(set(indices))
        if len(used) == 1:
            return self.run_expert(used[0], x_NSD)
        # Sorted, each expert works on one contiguous run: a view, no gather per expert.
        order = torch.argsort(expert_N, stable=True)
        if indices == sorted(indices):
            runs = x_NSD.split([indices.count(index) for index in used])
            return torch.cat([self.run_expert(index, run) for index, run in zip(used, runs, strict=True)])
        sorted_NSD = x_NSD[order.to(x_NSD.device)]
        runs = sorted_NSD.split([indices.count(index) for index in used])
        out_NSD = torch.cat([self.run_expert(index, run) for index, run in zip(used, runs, strict=True)])
        return out_NSD[torch.argsort(order).to(x_NSD.device)]

    def run_expert(self, index: int, x_NSD: Tensor) -> Tensor:
        """Run one expert on all of its utterances."""
        out: Tensor = self.experts[self.names[index]](x_NSD)
        return out


class UnroutedFFN(SupervisedMoE):
    """A feed-forward network that serves every tag: a layer that does not choose, in a stack whose other layers do.

    Its weights are named as those of a stack that is not routed at all, so that each fits the other.
    """

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float = 0.0, shared_hidden_dim: int | None = None, activation: str = "relu"
    ) -> None:
        super().__init__((DENSE,), dim, hidden_dim, dropout, shared_hidden_dim, activation)

    def forward(self, x_NSD: Tensor, expert_N: Tensor) -> Tensor:
        """As `SupervisedMoE`, whatever expert ``expert_N`` means in the other layers."""
        return super().forward(x_NSD, torch.zeros_like(expert_N))
