"""Which expert really ran: observed by hooks on the experts themselves while decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from lhotse import MonoCut
from torch import Tensor, nn

from smoe_cli.decoding.decode import Decoder
from smoe_cli.model.speech_to_text import SpeechToText
from smoe_cli.records import Finding, Hypothesis, Served
from smoe_cli.tags import Route
from smoe_cli.watch import Watcher

Place = tuple[str, int, str, str]
"""(stack, layer, feed-forward network of the layer, expert)."""


@contextmanager
def watched_experts(model: SpeechToText) -> Iterator[dict[Place, int]]:
    """Count, for every expert of every layer, the most that it was handed at once, as long as the context lasts.

    These are utterances, or, in an encoder that leaves out padding, their frames.
    """
    ran: dict[Place, int] = {}
    handles = []

    def watch(place: Place) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            del module, output
            ran[place] = max(ran.get(place, 0), inputs[0].shape[0])

        return hook

    for stack, number, part, moe in model.routed_networks():
        for name, expert in moe.experts.items():
            handles.append(expert.register_forward_hook(watch((stack, number, part, name))))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def observe_experts(decoder: Decoder, groups: Mapping[Route, Sequence[MonoCut]], watcher: Watcher) -> tuple[list[Served], list[Finding]]:
    """Decode each route's cuts and compare the experts that ran with the plan's, layer by layer.

    A batch holds one route only, so an expert that was handed all of its utterances served each of them.

    Returns:
        What served whom, and a finding for every stray.
    """
    plan, model = decoder.system.plan, decoder.system.model
    counts: dict[tuple[Route, Place], int] = defaultdict(int)
    findings: list[Finding] = []
    done, total = 0, sum(len(cuts) for cuts in groups.values())
    for route, cuts in groups.items():
        planned = {"encoder": plan.encoder.expert(route), "decoder": plan.decoder.expert(route)}
        for batch_cuts in decoder.batches(cuts):
            batch = decoder.collator(batch_cuts)
            lengths = model.encoder.subsampler.lengths(batch.feature_lengths)
            frames = int(lengths.sum()) if model.encoder.leaves_out_padding(lengths) else 0
            with watched_experts(model) as ran:
                decoder.decode_batch(batch)
            for (stack, layer, part, expert), handed in sorted(ran.items()):
                whole = (frames if stack == "encoder" else 0) or len(batch_cuts)
                counts[route, (stack, layer, part, expert)] += len(batch_cuts) * handed // whole
                if expert != planned[stack] or handed != whole:
                    what = "utterances" if whole == len(batch_cuts) else "frames"
                    said = f"expert `{expert}` served {handed} of {whole} {what}; the plan names `{planned[stack]}`"
                    findings.append(_stray(stack, layer, part, route, said))
            for stack, layer, part, _ in model.routed_networks():
                if (stack, layer, part, planned[stack]) not in ran:
                    findings.append(_stray(stack, layer, part, route, f"the planned expert `{planned[stack]}` did not run"))
            done += len(batch_cuts)
            watcher.progress("experts observed", done, total)
    served = [
        Served(
            stack=stack,
            layer=layer,
            part=part,
            route=str(route),
            expert=expert,
            utterances=utterances,
            planned=expert == (plan.encoder if stack == "encoder" else plan.decoder).expert(route),
        )
        for (route, (stack, layer, part, expert)), utterances in counts.items()
    ]
    return served, findings


def _stray(stack: str, layer: int, part: str, route: Route, message: str) -> Finding:
    hint = "the checkpoint's plan and the code that runs it disagree: do not trust this model's scores"
    return Finding(
        check="execution", where=f"{stack} layer {layer}{'' if part == 'ffn' else f' {part}'}, route {route}", message=message, hint=hint
    )


def with_expert(decoder: Decoder, cuts: Sequence[MonoCut], stack: str, index: int) -> list[Hypothesis]:
    """Decode cuts with one stack's expert replaced on purpose; guiding tokens and everything else stay right."""
    hypotheses = []
    for batch_cuts in decoder.batches(cuts):
        batch = decoder.collator(batch_cuts)
        forced = torch.full((len(batch_cuts),), index)
        hypotheses += decoder.decode_batch(batch.with_expert(stack, forced))
    return hypotheses
