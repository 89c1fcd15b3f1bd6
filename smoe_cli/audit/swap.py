"""The swap test: decode with every wrong expert in turn. If that costs nothing, the experts have learned nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from lhotse import MonoCut

from smoe_cli.audit.execution import with_expert
from smoe_cli.decoding.decode import Decoder
from smoe_cli.records import Finding, Hypothesis, Swap
from smoe_cli.scoring.metrics import Metric, find_metric
from smoe_cli.tags import Route
from smoe_cli.watch import Watcher

SEED = 0
FEWEST_ROUNDS = 1000
"""Of the randomisation test; more where many swaps ask for smaller chances than so few can show."""
CHANCE = 0.05
"""How likely one finding or more may be where no wrong expert is better: over all swaps of an audit together."""


def swap_test(decoder: Decoder, groups: Mapping[Route, Sequence[MonoCut]], watcher: Watcher) -> tuple[list[Swap], list[Finding]]:
    """Every wrong expert of every routed stack on every route, and a finding where a wrong one is clearly better.

    "Clearly": by a paired randomisation test over utterances (Riezler and Maxwell 2005, W05-0908), corrected for the number of
    swaps (Holm 1979), so that all of them together raise a false alarm in at most 5 % of audits. With few utterances nothing can be
    clear: `utterances_needed` says how many it takes.
    """
    plan = decoder.system.plan
    tests = [
        (stack, route, index)
        for stack, stack_plan in (("encoder", plan.encoder), ("decoder", plan.decoder))
        for route in groups
        for index in range(len(stack_plan.experts))
        if index != stack_plan.index(route)
    ]
    if tests:
        cuts = sum(len(groups[route]) for _, route, _ in tests)
        watcher.log(f"swap test: {len(tests)} swaps, {cuts:,} cuts to decode; `-n` takes fewer of each route, `--no-swap` leaves it out")
    rounds = max(FEWEST_ROUNDS, math.ceil(2 * len(tests) / CHANCE))
    right = {route: _decoded(decoder, cuts) for route, cuts in groups.items()}
    swaps: list[Swap] = []
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
            p_value=_chance(metric, wrong, right[route], rounds),
        )
        swaps.append(swap)
        watcher.progress("experts swapped", done, len(tests))
    return swaps, [_finding(swap) for swap in _beyond_chance(swaps)]


def utterances_needed(swaps: int) -> int:
    """Utterances per route from which a wrong expert that is better on each of them can be told from chance."""
    return math.ceil(math.log2(max(1, swaps) / CHANCE))


def _beyond_chance(swaps: Sequence[Swap]) -> list[Swap]:
    """Holm's procedure: the swaps whose differences chance does not explain, in the order given."""
    found: list[Swap] = []
    for rank, swap in enumerate(sorted(swaps, key=lambda swap: swap.p_value)):
        if swap.p_value > CHANCE / (len(swaps) - rank):
            break
        found.append(swap)
    return [swap for swap in swaps if swap in found]


def _finding(swap: Swap) -> Finding:
    label = find_metric(swap.metric).label
    return Finding(
        check="swap",
        where=f"{swap.stack}, route {swap.route}",
        message=f"the wrong expert `{swap.used}` does better than `{swap.right}`: {label} {swap.value:.1f} against {swap.right_value:.1f} "
        f"on {swap.utterances} cuts (p = {swap.p_value:.2g})",
        hint="its own expert has seen too little data, or the tags it was trained on are wrong",
    )


def _decoded(decoder: Decoder, cuts: Sequence[MonoCut]) -> list[Hypothesis]:
    """With the planned experts, in the order of `with_expert`."""
    return [found for batch_cuts in decoder.batches(cuts) for found in decoder.decode_batch(decoder.collator(batch_cuts))]


def _chance(metric: Metric, wrong: Sequence[Hypothesis], right: Sequence[Hypothesis], rounds: int) -> float:
    """How often chance alone would favour the wrong expert as much: hypotheses change sides at random, utterance by utterance.

    1 where the wrong expert is no better. Stops early where it is clear that chance does it often.
    """

    def gain(a: Sequence[Hypothesis], b: Sequence[Hypothesis]) -> float:
        difference = metric(b).value - metric(a).value
        return difference if metric.lower_is_better else -difference

    observed = gain(wrong, right)
    if observed <= 0.0:
        return 1.0
    generator, done, reached = random.Random(SEED), 0, 0
    while done < rounds and reached <= 2 * CHANCE * rounds:
        done += 1
        pairs = [(b, a) if generator.random() < 0.5 else (a, b) for a, b in zip(wrong, right, strict=True)]
        # Sums of floats in another order may differ in the last digit.
        reached += gain([a for a, _ in pairs], [b for _, b in pairs]) >= observed - 1e-9
    return (reached + 1) / (done + 1)
