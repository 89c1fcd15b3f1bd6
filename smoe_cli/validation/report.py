"""What `smoe validate` found."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smoe_cli.records import Finding, Record


class Row(Record):
    """Cuts and audio of one split x task x language x bandwidth x subset x tags on the recipe's own axes."""

    split: str
    task: str
    lang: str
    bandwidth: str
    subset: str
    tags: dict[str, str] = Field(default={}, description="Values on the recipe's own axes.")
    cuts: int
    hours: float


class Lasting(Record):
    """One bar of the histogram of durations."""

    from_s: float
    to_s: float | None = Field(description="Not included; null: any longer one.")
    cuts: int


class Reject(Record):
    """Cuts that `--fix` took out of a manifest."""

    manifest: Path
    cuts: int = Field(description="Taken out now.")
    rejected: Path = Field(
        description="Where they are now, after earlier ones: JSON lines of `manifest`, `line`, `reasons` and the `cut` as it was; "
        "`no_json` where it was none, its bytes read as Latin-1."
    )


class ValidationReport(Record):
    """Everything `smoe validate` saw."""

    manifests: list[Path]
    cuts: int
    recordings_read: int = Field(description="Recordings that were read to their end; 0 when `smoe prepare` had just done so.")
    rows: list[Row]
    durations: list[Lasting]
    errors: int = Field(description="Findings that make a cut unfit for use; they fail the check.")
    notes: int = Field(description="Findings to be looked at; they fail the check under `--strict`.")
    findings: list[Finding] = Field(description="Errors first; each at its first place, with the number of cuts that have it.")
    rejects: list[Reject] = Field(default=[], description="What `--fix` took out.")
    mended: list[Finding] = Field(default=[], description="Errors whose cuts `--fix` took out; no longer among the findings.")
