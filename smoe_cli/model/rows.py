"""How the positions of a batch lie in memory: padded to the longest utterance, or one utterance after the other.

Padding costs what speech costs. Packed, every matrix product runs over real positions only; what looks along time (attention,
convolution) takes the utterances one by one, or pads them for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# N utterances, S positions, P real positions of all utterances, D model width, H heads, K head width


class Padded:
    """Positions (N,S,...): every utterance takes as many as the longest.

    Args:
        mask: (N,1,1,S), true at real positions; None: nothing is padded.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask

    def split(self, x_NSD: Tensor) -> Sequence[Tensor]:
        """The positions of each utterance."""
        return x_NSD.unbind(0)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The reverse of `split`."""
        return torch.stack(list(parts))

    def along_time(self, x_NSD: Tensor) -> Tensor:
        """(N,S,D) with zeros for padding, so that a convolution does not see it."""
        return x_NSD if self.mask is None else x_NSD.masked_fill(~self.mask[:, 0, 0, :, None], 0.0)

    def back(self, x_NSD: Tensor) -> Tensor:
        """The reverse of `along_time`."""
        return x_NSD

    def experts(self, expert_N: Tensor) -> Tensor:
        """Expert of each row of the first dimension."""
        return expert_N


class Packed:
    """Positions (P,...): the real ones of all utterances, one utterance after the other.

    Args:
        lengths: Positions of each.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def split(self, x_PD: Tensor) -> Sequence[Tensor]:
        """The positions of each utterance."""
        return x_PD.split(self.lengths)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The reverse of `split`."""
        return torch.cat(list(parts))

    def along_time(self, x_PD: Tensor) -> Tensor:
        """(N,S,D) with zeros for padding, so that a convolution does not see it."""
        return pad_sequence(list(self.split(x_PD)), batch_first=True)

    def back(self, x_NSD: Tensor) -> Tensor:
        """The reverse of `along_time`, whatever is in the padding."""
        return self.join([part[:length] for part, length in zip(x_NSD.unbind(0), self.lengths, strict=True)])

    def experts(self, expert_N: Tensor) -> Tensor:
        """Expert of each row of the first dimension."""
        return expert_N.repeat_interleave(torch.tensor(self.lengths))


Rows = Padded | Packed


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Rows, keys: Rows, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of each utterance's queries to its own keys.

    Args:
        q, k, v: (...,H,K), laid out as ``queries`` and ``keys`` say.
        causal: Whether a position sees only those before it and itself.

    Returns:
        (...,H*K), laid out as ``queries``.
    """
    if isinstance(keys, Padded):
        return _attend(q, k, v, keys.mask, causal)
    parts = zip(queries.split(q), keys.split(k), keys.split(v), strict=True)
    return queries.join([_attend(q[None], k[None], v[None], None, causal)[0] for q, k, v in parts])


def _attend(q_NUHK: Tensor, k_NSHK: Tensor, v_NSHK: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    q, k, v = q_NUHK.transpose(1, 2), k_NSHK.transpose(1, 2), v_NSHK.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)
