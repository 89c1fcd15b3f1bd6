"""Are the tags of every cut complete, known, and such that the plan has an expert for them?"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from lhotse import MonoCut

from smoe_cli.checkpoint import System
from smoe_cli.cuts import contradiction, open_manifest, route_of
from smoe_cli.errors import SmoeError
from smoe_cli.records import Finding
from smoe_cli.tags import Route


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
        if wrong := contradiction(cut, route):
            findings.append(Finding(check="tags", where=cut.id, message=wrong, hint="correct the tag, or prepare the manifest again"))
            continue
        groups[route].append(cut)
    return {route: groups[route] for route in sorted(groups)}, findings, len(cuts)
