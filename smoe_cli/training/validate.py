"""How good a model is on the dev split, in the terms in which it trains."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import torch
from lhotse import CutSet

from smoe_cli.batching import Collator, chunk
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.tags import Route
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.precision import Precision
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.step import losses_of
from smoe_cli.watch import Watcher


@torch.inference_mode()
def validation_loss(
    model: SpeechToText,
    groups: Mapping[Route, CutSet],
    collator: Collator,
    settings: TrainSettings,
    batch_s: float,
    precision: Precision,
    blank_id: int,
    ranks: Ranks,
    watcher: Watcher,
) -> dict[str, float]:
    """Cross-entropy per target token of every route, without label smoothing.

    Args:
        groups: Route -> its dev cuts, of which the first `validation_utterances` are used.
        collator: Makes batches of them.
        batch_s: Seconds of audio in one, padding included.
        blank_id: CTC's blank.
        ranks: The processes among which the batches are dealt out.
        watcher: Shown how far it is.

    Raises:
        SmoeError: If a process has gone.
    """
    model.eval()
    device = next(model.parameters()).device
    found = {}
    for number, (route, cuts) in enumerate(groups.items(), start=1):
        total, tokens = 0.0, 0
        some = list(cuts)[: settings.validation_utterances]
        every = chunk(sorted(some, key=lambda cut: cut.duration), batch_s, settings.max_utterances)
        for batch_cuts in islice(every, ranks.rank, None, ranks.size):
            batch = collator(batch_cuts).to(device)
            losses = losses_of(model, batch, batch.features, settings, precision, blank_id, label_smoothing=0.0)
            total += float(losses.attention) * losses.tokens
            tokens += losses.tokens
        total_of_all, tokens_of_all = ranks.total(total, tokens)
        watcher.progress("routes validated", number, len(groups))
        found[str(route)] = total_of_all / max(1, tokens_of_all)
    return found
