"""Where the hypotheses of a recipe's split go: one file per task and language, which a partial decoding renews in part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smoe_cli.cuts import open_manifest
from smoe_cli.layout import Layout
from smoe_cli.records import Hypothesis, read_hypotheses, write_jsonl
from smoe_cli.tags import Choice
from smoe_cli.watch import Watcher


def write_split(layout: Layout, split: str, choice: Choice, hypotheses: Sequence[Hypothesis], watcher: Watcher) -> list[Path]:
    """Write the files of a split, and remove what they supersede.

    Args:
        choice: What was decoded; the other rows of a file stay, if they still belong there.
        watcher: Told what is dropped.

    Returns:
        The files that were written.

    Raises:
        DataError: If the folder cannot be written, or a file that is renewed in part is damaged.
    """
    groups: dict[Path, list[Hypothesis]] = {}
    for hypothesis in hypotheses:
        groups.setdefault(layout.hypotheses(split, hypothesis.task, hypothesis.lang), []).append(hypothesis)
    before = list(layout.hypotheses_dir(split).glob("*.jsonl"))
    if any(choice):
        ids = {cut.id for cut in open_manifest(layout.cuts(split))}
        for path in before:
            if path in groups:
                groups[path] = _kept(path, groups[path], ids, watcher) + groups[path]
    for path, group in groups.items():
        write_jsonl(path, group)
    if not any(choice):
        # What was begun with a choice of tags is done now, too.
        for path in [*(path for path in before if path not in groups), *layout.hypotheses_dir(split).glob(".*.part")]:
            path.unlink()
    return list(groups)


def _kept(path: Path, redone: Sequence[Hypothesis], ids: set[str], watcher: Watcher) -> list[Hypothesis]:
    """What a partial decoding leaves of a file: what it did not decode anew, if its cut is still there and the same model wrote it."""
    renewed = {item.id for item in redone}
    others = [item for item in read_hypotheses(path) if item.id not in renewed]
    there = [item for item in others if item.id in ids]
    kept = [item for item in there if item.model == redone[0].model]
    if len(there) < len(others):
        watcher.log(f"`{path}`: {len(others) - len(there):,} hypotheses of cuts that are no longer in the manifest are dropped")
    if len(kept) < len(there):
        watcher.log(f"`{path}`: {len(there) - len(kept):,} hypotheses of another model are dropped; decode these cuts again")
    return kept
