"""Taking unfit cuts out of a manifest; every one of them is kept beside it, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from smoe_cli.config import Config
from smoe_cli.errors import DataError
from smoe_cli.manifests import read_lines, write_lines
from smoe_cli.validation.report import Reject, ValidationReport
from smoe_cli.validation.validate import Ears, Findings, split_of, validate
from smoe_cli.watch import Watcher


def mend(report: ValidationReport, findings: Findings, config: Config | None, watcher: Watcher) -> ValidationReport:
    """Take out what was found unfit, and validate what is left; its audio was read already.

    Raises:
        DataError: If nothing would be left of a manifest, or a file cannot be written.
    """
    for path, unfit in findings.unfit.items():
        if all(number in unfit for number, _ in read_lines(path)):
            raise DataError(
                f"no cut of `{path}` is fit for use; everything was left as it is",
                "look at the first findings: a setting or a path may be wrong for all of them",
            )
    rejects = [take_out(path, unfit) for path, unfit in findings.unfit.items()]
    notes = [finding.message for finding in report.findings if (finding.check, finding.severity) == ("audio", "note")]
    kept, _ = validate(report.manifests, config, Ears(0, notes), watcher)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    return kept.model_copy(update={"recordings_read": report.recordings_read, "rejects": rejects, "mended": errors})


def take_out(manifest: Path, unfit: Mapping[int, list[str]]) -> Reject:
    """Move lines of a manifest to `rejected.SPLIT.jsonl.gz` beside it, after those that are there already.

    What is kept stays byte for byte the line that it was. The rejects are on disk before the manifest is replaced.

    Args:
        manifest: The manifest, which is replaced as a whole or not at all.
        unfit: Number of the line -> why.

    Raises:
        DataError: If a file cannot be written.
    """
    rejected = manifest.with_name(f"rejected.{split_of(manifest)}.jsonl.gz")
    # A run that was stopped before it replaced the manifest has put them there already.
    old = {_digest(raw) for raw in _lines(rejected)}
    new = (_reject(manifest, number, raw, unfit[number]) for number, raw in read_lines(manifest) if number in unfit)
    write_lines(rejected, chain(_lines(rejected), (line for line in new if _digest(line) not in old)))
    cuts = sum(number in unfit for number, _ in read_lines(manifest))
    write_lines(manifest, (raw for number, raw in read_lines(manifest) if number not in unfit))
    return Reject(manifest=manifest, cuts=cuts, rejected=rejected)


def _lines(rejected: Path) -> Iterator[bytes]:
    """The rejects of earlier times, one by one, if there are any."""
    return (raw for _, raw in read_lines(rejected)) if rejected.exists() else iter(())


def _digest(line: bytes) -> bytes:
    return blake2b(line, digest_size=16).digest()


def _reject(manifest: Path, number: int, raw: bytes, why: list[str]) -> bytes:
    """One line of the rejects: where it was, why it is there, and the line itself, byte for byte if it is JSON.

    A byte order mark is not kept: inside a line of JSON there is none.
    """
    try:
        json.loads(text := raw.decode("utf-8-sig"))
        line = b'"cut": ' + text.strip().encode()
    except (ValueError, RecursionError):
        line = b'"no_json": ' + json.dumps(raw.decode("latin-1")).encode()
    about = {"manifest": manifest.name, "line": number, "reasons": why}
    return json.dumps(about).removesuffix("}").encode() + b", " + line + b"}\n"
