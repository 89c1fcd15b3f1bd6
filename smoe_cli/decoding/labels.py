"""How likely each label is: tasks whose answer is a label choose among those that training has seen, and write nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smoe_cli.model.speech_to_text import Memory, SpeechToText

AT_ONCE = 16
"""Labels scored together, for every utterance of a batch: about what a wide beam needs of memory."""
# N utterances, P guiding tokens, L labels, C labels at once, M = N*C, U tokens


@torch.inference_mode()
def label_log_probs(
    model: SpeechToText, memory: Memory, prefix_NP: Tensor, decoder_expert_N: Tensor, labels: Sequence[Sequence[int]]
) -> Tensor:
    """Log probability of every label as the whole answer: (N,L), float64.

    Exact, where a beam could lose a label whose first token is unlikely; and not divided by the length, which would favour some
    spellings over others.

    Args:
        memory: Encoder states of N utterances.
        prefix_NP: Guiding tokens, equally many for all.
        decoder_expert_N: Decoder expert per utterance, on the CPU.
        labels: Token ids of each, with the one that ends a text.
    """
    parts = [_some(model, memory, prefix_NP, decoder_expert_N, labels[start : start + AT_ONCE]) for start in range(0, len(labels), AT_ONCE)]
    return torch.cat(parts, dim=1)


def _some(model: SpeechToText, memory: Memory, prefix_NP: Tensor, decoder_expert_N: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    n, c, device = len(prefix_NP), len(labels), memory.states.device
    answers = [torch.tensor(label) for label in labels]
    answers_CU = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True).to(device)
    real_CU = torch.arange(answers_CU.shape[1])[None, :] < torch.tensor([len(answer) for answer in answers])[:, None]
    state = model.decoder.start(memory, c)
    prefix_MP = prefix_NP.to(device).repeat_interleave(c, 0)
    for position in range(prefix_MP.shape[1]):
        logits = model.decoder.step(prefix_MP[:, position], state, memory, decoder_expert_N)
    total_M = torch.zeros(n * c, dtype=torch.float64, device=device)
    tokens_MU, real_MU = answers_CU.repeat(n, 1), real_CU.to(device).repeat(n, 1)
    for position in range(tokens_MU.shape[1]):
        token_M = tokens_MU[:, position]
        gained_M = F.log_softmax(logits.float(), dim=-1).gather(1, token_M[:, None])[:, 0].double()
        total_M += torch.where(real_MU[:, position], gained_M, 0.0)
        if position + 1 < tokens_MU.shape[1]:
            logits = model.decoder.step(token_M, state, memory, decoder_expert_N)
    return total_M.view(n, c)
