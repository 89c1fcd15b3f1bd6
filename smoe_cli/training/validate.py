"""How good a model is on the dev split, in the terms in which it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TypeVar

import torch
from lhotse import CutSet

from smoe_cli.batching import Batch, Collator, chunk
from smoe_cli.loss import Losses
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.tags import Route
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.guard import Stop
from smoe_cli.training.memory import in_halves, is_out_of_memory
from smoe_cli.training.precision import Precision
from smoe_cli.training.ranks import Ranks
from smoe_cli.training.shard import is_divided, let_go, out_of_memory
from smoe_cli.training.step import losses_of
from smoe_cli.watch import Watcher

T = TypeVar("T")


@torch.no_grad()  # not inference_mode: weights that FSDP gathers then could not be learned from later
def validation_loss(
    model: SpeechToText,
    groups: Mapping[Route, CutSet],
    collator: Collator,
    settings: TrainSettings,
    batch_s: float,
    precision: Precision,
    blank_id: int,
    ranks: Ranks,
    stop: Stop,
    watcher: Watcher,
) -> dict[str, float]:
    """Cross-entropy per target token of every route, without label smoothing.

    Args:
        groups: Route -> its dev cuts, of which the first `validation_utterances` are used.
        collator: Makes batches of them.
        batch_s: Seconds of audio in one, padding included.
        blank_id: CTC's blank.
        ranks: The processes among which the batches are dealt out.
        stop: Asked before every batch.
        watcher: Shown how far it is.

    Raises:
        Stopped: If a process was asked to stop.
        SmoeError: If a process has gone, or memory does not suffice for one utterance.
    """
    model.eval()
    device = next(model.parameters()).device
    found = {}
    try:
        for number, (route, cuts) in enumerate(groups.items(), start=1):
            total, tokens = 0.0, 0
            some = list(cuts)[: settings.validation_utterances]
            every = list(chunk(sorted(some, key=lambda cut: cut.duration), batch_s, settings.max_utterances))
            rounds = range(0, len(every), ranks.size)
            # In step also where some processes have a batch less: all ask before each whether to stop.
            for _, own in zip_longest(rounds, dealt(every, ranks, is_divided(model))):
                stop.heed()
                if own is None:
                    continue
                batch_cuts, counts = own
                for losses in _losses([collator(batch_cuts)], model, device, settings, precision, blank_id, watcher):
                    total += float(losses.attention) * losses.tokens * counts
                    tokens += losses.tokens * counts
            total_of_all, tokens_of_all = ranks.total(total, tokens)
            watcher.progress("routes validated", number, len(groups))
            found[str(route)] = total_of_all / max(1, tokens_of_all)
    finally:
        let_go(model)
    return found


def _losses(
    batches: Sequence[Batch],
    model: SpeechToText,
    device: torch.device,
    settings: TrainSettings,
    precision: Precision,
    blank_id: int,
    watcher: Watcher,
) -> list[Losses]:
    """The losses of batches; where memory is used up, of all in halves."""
    while True:
        try:
            moved = (batch.to(device) for batch in batches)
            return [losses_of(model, batch, batch.features, settings, precision, blank_id, label_smoothing=0.0) for batch in moved]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if is_divided(model):
                raise out_of_memory("of the dev split") from error
        batches = in_halves(batches, "in validation", device)
        watcher.log(f"out of memory in validation: the utterances of a batch are taken in {len(batches)} parts; lower `train.batch_s`")


def dealt(batches: Iterable[T], ranks: Ranks, evenly: bool) -> Iterator[tuple[T, bool]]:
    """The batches of this process, each with whether it counts.

    Args:
        batches: Of all processes.
        evenly: Whether all must have the same number: those with fewer have the last batch of all once more, which does not count.
    """
    every = list(batches)
    missing = -len(every) % ranks.size if evenly else 0
    counted = [(batch, True) for batch in every] + [(batch, False) for batch in every[-1:]] * missing
    yield from islice(counted, ranks.rank, None, ranks.size)
