"""Are the tags of every cut complete, known, and such that the plan has an expert for them?"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from lhotse import MonoCut

from smoe_cli.checkpoint import System
from smoe_cli.cuts import NARROWBAND_HZ, open_manifest, route_of
from smoe_cli.errors import SmoeError
from smoe_cli.records import Finding
from smoe_cli.tags import Bandwidth, Route


def check_manifest(manifest: Path, system: System) -> tuple[dict[Route, list[MonoCut]], list[Finding], int]:
    """(cuts that can be run, by route; findings; number of cuts).

    Raises:
        DataError: If the manifest is missing, damaged or empty.
    """
    groups: dict[Route, list[MonoCut]] = defaultdict(list)
    findings: list[Finding] = []
    cuts = open_manifest(manifest)
    for cut in cuts:
        try:
            route = system.plan.check(route_of(cut))
            system.tokenizer.guiding_ids(route)
        except SmoeError as error:
            findings.append(Finding(check="tags", where=cut.id, message=error.message, hint=error.hint))
            continue
        contradiction = _contradiction(cut, route)
        if contradiction:
            findings.append(
                Finding(check="tags", where=cut.id, message=contradiction, hint="correct the tag, or prepare the manifest again")
            )
            continue
        groups[route].append(cut)
    return {route: groups[route] for route in sorted(groups)}, findings, len(cuts)


def _contradiction(cut: MonoCut, route: Route) -> str | None:
    """What the recording's own history says against its bandwidth tag.

    Only wideband can be refuted: telephone speech may rightly be stored at any rate.
    """
    rates = [cut.recording.sampling_rate]
    for transform in cut.recording.transforms or []:
        step = transform if isinstance(transform, dict) else transform.to_dict()
        rates += [rate for key, rate in step.get("kwargs", {}).items() if key.endswith("sampling_rate")]
    if route.bandwidth is Bandwidth.WB and min(rates) <= NARROWBAND_HZ:
        return f"tagged wideband, but its audio passes through {min(rates)} Hz: nothing above {min(rates) // 2} Hz is left"
    return None
