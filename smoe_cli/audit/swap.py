"""The swap test: decode with every wrong expert in turn. If that costs nothing, the experts have learned nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lhotse import MonoCut

from smoe_cli.audit.execution import with_expert
from smoe_cli.decoding.decode import Decoder
from smoe_cli.records import Finding, Hypothesis, Swap
from smoe_cli.scoring.metrics import Metric, find_metric
from smoe_cli.tags import Route
from smoe_cli.watch import Watcher

RESAMPLES, CERTAINTY = 200, 0.95
SEED = 0


def swap_test(decoder: Decoder, groups: Mapping[Route, Sequence[MonoCut]], watcher: Watcher) -> tuple[list[Swap], list[Finding]]:
    """Every wrong expert of every routed stack on every route, and a finding where a wrong one is clearly better.

    "Clearly": in at least 95 % of bootstrap resamples of the utterances (paired; Koehn 2004, W04-3250).
    """
    plan = decoder.system.plan
    tests = [
        (stack, route, index)
        for stack, stack_plan in (("encoder", plan.encoder), ("decoder", plan.decoder))
        for route in groups
        for index in range(len(stack_plan.experts))
        if index != stack_plan.index(route)
    ]
    right = {route: _decoded(decoder, cuts) for route, cuts in groups.items()}
    swaps: list[Swap] = []
    findings: list[Finding] = []
    for done, (stack, route, index) in enumerate(tests, start=1):
        stack_plan = plan.encoder if stack == "encoder" else plan.decoder
        metric = find_metric(decoder.system.config.kind(route.task).metrics[0])
        wrong = with_expert(decoder, groups[route], stack, index)
        score, right_score = metric(wrong), metric(right[route])
        swap = Swap(
            stack="encoder" if stack == "encoder" else "decoder",
            route=str(route),
            right=stack_plan.expert(route),
            used=stack_plan.experts[index],
            metric=score.metric,
            value=score.value,
            right_value=right_score.value,
            unit=score.unit,
            utterances=len(wrong),
        )
        swaps.append(swap)
        if _clearly_better(metric, wrong, right[route]):
            findings.append(
                Finding(
                    check="swap",
                    where=f"{stack}, route {route}",
                    message=f"the wrong expert `{swap.used}` does better than `{swap.right}`: "
                    f"{metric.label} {swap.value:.1f} against {swap.right_value:.1f}",
                    hint="its own expert has seen too little data, or the tags it was trained on are wrong",
                )
            )
        watcher.progress("experts swapped", done, len(tests))
    return swaps, findings


def _decoded(decoder: Decoder, cuts: Sequence[MonoCut]) -> list[Hypothesis]:
    """With the planned experts, in the order of `with_expert`."""
    return [found for batch_cuts in decoder.batches(cuts) for found in decoder.decode_batch(decoder.collator(batch_cuts))]


def _clearly_better(metric: Metric, wrong: Sequence[Hypothesis], right: Sequence[Hypothesis]) -> bool:
    """Whether the wrong expert wins on the whole and on nearly every resample of the utterances."""

    def wins(indices: Sequence[int]) -> bool:
        a, b = metric([wrong[i] for i in indices]).value, metric([right[i] for i in indices]).value
        return a < b if metric.lower_is_better else a > b

    everything = range(len(right))
    if not wins(everything):
        return False
    generator = random.Random(SEED)
    won = sum(wins(generator.choices(everything, k=len(everything))) for _ in range(RESAMPLES))
    return won >= CERTAINTY * RESAMPLES
