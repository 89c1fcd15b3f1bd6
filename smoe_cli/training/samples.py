"""What a model in training writes: a few dev cuts of every route, decoded greedily and scored by the task's own metric."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from lhotse import CutSet

from smoe_cli.batching import Collator
from smoe_cli.checkpoint import System
from smoe_cli.cut_table import whole
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import SmoeError
from smoe_cli.records import Hypothesis, Record
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.scoring.score import by_policy
from smoe_cli.tags import Route
from smoe_cli.training.guard import Stop
from smoe_cli.watch import Watcher


class Sample(Record):
    """One decoded dev cut."""

    route: str
    id: str
    reference: str
    hypothesis: str


def take_samples(
    system: System, groups: Mapping[Route, CutSet], count: int, collator: Collator, stop: Stop, watcher: Watcher
) -> tuple[list[Sample], dict[str, dict[str, float]]]:
    """Decode the first ``count`` cuts of every route without search, and show one of each.

    Args:
        groups: Route -> its dev cuts.
        collator: Makes batches of them.
        stop: Asked before every batch that is decoded; the other processes ask as often.
        watcher: Shown one sample of each route, and told what cannot be scored.

    Returns:
        The samples, and route -> metric -> value over those of them that have a reference.

    Raises:
        Stopped: If a process was asked to stop.
    """
    config = system.config
    decoder = Decoder(system, config.decode.model_copy(update={"beam": 1, "ctc_weight": 0.0}))
    decoder.collator = collator
    samples: list[Sample] = []
    scores: dict[str, dict[str, float]] = {}
    for route, cuts in groups.items():
        kind = config.kind(route.task)
        chosen = [whole(cut) for cut in islice(cuts, count)]
        decoded: dict[str, Hypothesis] = {}
        for batch in decoder.batches(chosen):
            stop.heed()
            decoded |= {hypothesis.id: hypothesis for hypothesis in decoder.decode(batch)}
        found = [by_policy(decoded[cut.id], config) for cut in chosen]
        samples += [Sample(route=str(route), id=one.id, reference=(one.references or [""])[0], hypothesis=one.text) for one in found]
        scored = [one for one in found if any(one.references)]
        metric, shown = find_metric(kind.metrics[0]), "not scored"
        if scored:
            try:
                score = metric(scored)
                scores[str(route)] = {score.metric: score.value}
                shown = f"{metric.label} {score.value:.1f}"
            except SmoeError as error:
                watcher.log(f"samples of {route} cannot be scored: {error.message}")
        if found:
            watcher.log(f"  {route}  {shown}  wanted: {samples[-len(found)].reference}  written: {samples[-len(found)].hypothesis}")
    stop.heed(busy=False)
    return samples, scores
