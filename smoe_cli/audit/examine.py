"""The whole audit: supervision, execution, swap test, one after the other."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from lhotse import MonoCut

from smoe_cli.audit.execution import observe_experts
from smoe_cli.audit.supervision import check_manifest
from smoe_cli.audit.swap import swap_test, utterances_needed
from smoe_cli.checkpoint import System
from smoe_cli.config import DecodeSettings
from smoe_cli.cuts import tags_of
from smoe_cli.decoding.decode import Decoder
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.records import AuditReport, Swap
from smoe_cli.watch import Watcher

FEATURE_CACHE_MB = 500


def audit(system: System, settings: DecodeSettings, manifest: Path, utterances: int, swap: bool, watcher: Watcher) -> AuditReport:
    """Audit a trained system on a tagged manifest.

    Args:
        settings: Beam search.
        utterances: Cuts per route in the swap test, evenly from every subset. Tags and experts of all cuts are checked.
        swap: Whether to decode with every wrong expert in turn.

    Raises:
        DataError: If the manifest cannot be read at all; wrong tags are findings, not errors.
    """
    groups, findings, total = check_manifest(manifest, system)
    # Which experts run does not depend on the search: the greedy one is quick enough for every cut.
    served, strays = observe_experts(Decoder(system, settings.model_copy(update={"beam": 1})), groups, watcher)
    findings += strays
    swaps: list[Swap] = []
    if swap:
        chosen = {route: _from_every_subset(cuts, utterances) for route, cuts in groups.items()}
        swaps, harmless = swap_test(Decoder(system, settings, cache_mb=FEATURE_CACHE_MB), chosen, watcher)
        findings += harmless
        needed = utterances_needed(len(swaps))
        if few := [f"{route} ({len(cuts)})" for route, cuts in chosen.items() if swaps and len(cuts) < needed]:
            watcher.log(f"warning: too few cuts for a swap to be told from chance; it takes {needed}: {', '.join(few)}")
    return AuditReport(
        system=system.config.name,
        checkpoint=str(system.folder),
        model=system.digest,
        manifest=str(manifest),
        cuts=total,
        routes={str(route): len(cuts) for route, cuts in groups.items()},
        synthetic=sum(tags_of(cut).synthetic for cuts in groups.values() for cut in cuts),
        layers=sum(1 for _ in system.model.routed_networks()),
        observations=sum(row.utterances for row in served),
        served=served,
        parameters=count_parameters(system.model),
        swaps=swaps,
        findings=findings,
    )


def _from_every_subset(cuts: list[MonoCut], count: int) -> list[MonoCut]:
    """The first cuts of each subset in turn, ``count`` in all."""
    subsets: dict[str, list[MonoCut]] = {}
    for cut in cuts:
        subsets.setdefault(tags_of(cut).subset, []).append(cut)
    return [cut for some in zip_longest(*subsets.values()) for cut in some if cut is not None][:count]
