"""Corpora -> checked, tagged cut manifests and a report of what they hold."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from lhotse import MonoCut
from pydantic import Field

from smoe_cli.band_check import BandwidthRow, contradictions
from smoe_cli.cluster import Cluster
from smoe_cli.config import SPLITS, Config
from smoe_cli.corpora.utterance import ASSUMED_LANGUAGE, Work
from smoe_cli.cuts import line_of_cut
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.gathering import Gathered, Refused, gather, look
from smoe_cli.layout import Layout
from smoe_cli.listening import Listener
from smoe_cli.manifests import manifest_writer
from smoe_cli.recipe import data_root
from smoe_cli.records import Finding, Record, write_json, write_text_atomically
from smoe_cli.routing import make_plan
from smoe_cli.validation.report import Row
from smoe_cli.validation.validate import Ears, validate
from smoe_cli.watch import Silent, Watcher


class PrepareReport(Record):
    """What `smoe prepare` wrote."""

    cuts_dir: Path
    rows: list[Row]
    utterances: dict[str, int] = Field(description="Split -> utterances.")
    synthetic: bool = Field(description="Whether a machine spoke any of it.")
    lines: dict[str, int] = Field(default={}, description="Simulated telephone line -> utterances that were sent through it.")
    bandwidths: list[BandwidthRow] = Field(default=[], description="What is known of the bands beside what was estimated, if it was.")
    notes: list[str]
    findings: list[Finding] = Field(default=[], description="What `smoe validate` has to say of the manifests.")


def prepare(config: Config, corpora: Sequence[str] | None, jobs: int, watcher: Watcher, cluster: Cluster | None = None) -> PrepareReport:
    """Read the recipe's corpora, check every utterance, write one manifest per split, and validate these.

    All of it is a stream: memory grows with ids, speakers and what is wrong, not with utterances and cuts. A call that was stopped
    goes on where it was: recordings that were found sound are not read again.

    Args:
        corpora: Names of corpora to take; None: all of the recipe.
        jobs: Recordings read, or made, at once; 0: one per core.
        cluster: Reads the recordings instead, and writes simulated audio.

    Raises:
        ConfigError: If a named corpus is not in the recipe.
        DataError: Naming all that is damaged or contradictory in the corpora; then no manifest is written.
    """
    layout = Layout.of(config)
    jobs = jobs or usable_cores()
    corpora = chosen_corpora(config, corpora)
    gathered = Gathered()
    with ExitStack() as stack:
        # Recordings are read by threads: decoding audio holds no lock of Python's.
        pool, readers = cluster or (stack.enter_context(ThreadPoolExecutor(jobs)), jobs)
        listener = Listener(pool, readers, layout.heard)
        if listener.remembered:
            watcher.log(f"{listener.remembered:,} recordings were found sound by an earlier call, and are not read again")
        put = _Manifests(layout, stack)
        refused: list[Refused] = []
        for name in corpora:
            work = _work(config, name, jobs, watcher)
            try:
                gather(gathered, config, work, listener, put)
            except Refused as error:
                refused.append(error)
        _account_for(refused, corpora, config)
        _check_served(config, gathered, corpora)
    written = [split for split in SPLITS if gathered.cuts[split]]
    for split in SPLITS:
        if split not in written:
            layout.cuts(split).unlink(missing_ok=True)
    for name in corpora:
        if name in gathered.unfit:
            write_text_atomically(layout.unfit(name), "\n".join(gathered.unfit[name]) + "\n")
        else:
            layout.unfit(name).unlink(missing_ok=True)
    gathered.forget_ids()
    listener.forget()
    # The audio was read just now.
    validation, _ = validate([layout.cuts(split) for split in written], config, Ears(0, list(gathered.heard)), watcher)
    write_json(layout.validation, validation)
    report = PrepareReport(
        cuts_dir=layout.cuts_dir,
        rows=validation.rows,
        utterances=dict(gathered.utterances),
        synthetic=gathered.synthetic > 0,
        lines=dict(sorted(gathered.lines.items())),
        bandwidths=gathered.bands.rows(),
        notes=[
            *_notes(config, gathered, corpora),
            *(f"`{name}`: {len(lines):,} unfit utterances left out: `{layout.unfit(name)}`" for name, lines in gathered.unfit.items()),
        ],
        findings=validation.findings,
    )
    write_json(layout.prepare_report, report)
    # Not before: a call that is stopped while it validates need not read all audio again.
    layout.heard.unlink(missing_ok=True)
    return report


def check(config: Config, corpora: Sequence[str] | None) -> None:
    """Refuse what `prepare` would refuse at once; tables are read to their header, no audio is, and nothing is written.

    Raises:
        ConfigError: As `prepare`.
        DataError: If a table, a column, a manifest or a folder is missing that a corpus starts from, in the words of `prepare`.
    """
    refused: list[Refused] = []
    for name in chosen_corpora(config, corpora):
        try:
            look(config, replace(_work(config, name, 1, Silent()), dry_run=True))
        except Refused as error:
            refused.append(error)
    _refuse(config, refused, [error.hint for error in refused])


def _work(config: Config, name: str, jobs: int, watcher: Watcher) -> Work:
    # What is made here lies in no folder of the user's.
    root = Path() if config.data.corpora[name].made else data_root(config)
    return Work(name, root, Layout.of(config).audio / name, jobs, lambda done, total, what: watcher.progress(what, done, total))


def _refuse(config: Config, refused: Sequence[Refused], hints: Sequence[str]) -> None:
    root = config.data.root
    if refused and root is not None and not root.is_dir() and all(str(root) in error.message for error in refused):
        raise DataError(f"`data.root` names `{root}`, which is no folder", "correct it, or use --set data.root=FOLDER")
    if refused:
        raise DataError("\n".join(dict.fromkeys(error.message for error in refused)), "\n".join(dict.fromkeys(hints)))


def _account_for(refused: Sequence[Refused], corpora: Sequence[str], config: Config) -> None:
    """Write down all that is wrong with corpora, beyond what a message can hold.

    Raises:
        DataError: If any was refused; it says what is wrong with all of them.
    """
    layout, hints = Layout.of(config), list[str]()
    for name in corpora:
        with suppress(OSError):
            layout.refused(name).unlink(missing_ok=True)
    for error in refused:
        hint = error.hint
        # Where nothing can be written, the message must do.
        with suppress(DataError):
            if error.lines:
                write_text_atomically(layout.refused(error.corpus), "\n".join(error.lines) + "\n")
                hint += f"; `{layout.refused(error.corpus)}` has a line for each"
        hints.append(hint)
    _refuse(config, refused, hints)


class _Manifests:
    """The manifests of all splits, open at once; they are there when the stack closes without an error, all or none before."""

    def __init__(self, layout: Layout, stack: ExitStack) -> None:
        self._layout, self._stack = layout, stack
        self._write: dict[str, Callable[[bytes], None]] = {}

    def __call__(self, split: str, cut: MonoCut) -> None:
        """Add a cut to a split's manifest, which is begun with its first."""
        if split not in self._write:
            self._write[split] = self._stack.enter_context(manifest_writer(self._layout.cuts(split)))
        self._write[split](line_of_cut(cut))


def chosen_corpora(config: Config, names: Sequence[str] | None) -> list[str]:
    """The named corpora, or all, each once.

    Raises:
        ConfigError: If one is not in the recipe.
    """
    for name in names or ():
        if name not in config.data.corpora:
            raise ConfigError(
                f"no corpus `{name}` in the recipe; it has: {', '.join(config.data.corpora)}",
                "correct --corpus, or add it under `data.corpora`",
            )
    return list(dict.fromkeys(names or config.data.corpora))


def usable_cores() -> int:
    """Cores that this process may run on: a job on a shared machine is often given only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _notes(config: Config, gathered: Gathered, corpora: Sequence[str]) -> list[str]:
    """What is no error, and not to be seen in the manifests."""
    notes = [f"{count} utterances have no {what}; they serve the other tasks" for what, count in sorted(gathered.lacking.items())]
    notes += [
        f"nobody names the spoken language of {count} utterances of `{name}`: taken to be `{ASSUMED_LANGUAGE}`; "
        f"say `data.corpora.{name}.language`"
        for name, count in gathered.assumed.items()
        if count
    ]
    for language, count in sorted(gathered.unserved.items()):
        cure = _renaming(config, [language])
        notes.append(f"{count} utterances in `{language}` serve no task: no cut was written" + (f"; {cure}" if cure else ""))
    for language, count in sorted(gathered.untranscribed.items()) if config.transcribed() else ():
        cure = _renaming(config, [language]) or f"if the recipe has another name for it: `data.corpora.*.languages: {{{language}: NAME}}`"
        notes.append(f"{count} utterances in `{language}` have a transcript that no task writes; they serve the other tasks; {cure}")
    notes += [
        f"no utterance of `{name}` has a text where `data.corpora.{name}.translations` says of `{lang}`: `{where}`"
        for name, lang, where in _never_translated(config, gathered, corpora)
    ]
    notes += gathered.notes
    notes += contradictions(gathered.bands.rows())
    notes += [f"no {split} split: `smoe train` needs one" for split in ("train", "dev") if not gathered.cuts[split]]
    notes += _unheard(config, gathered)
    spoken, utterances = gathered.synthetic, gathered.utterances.total()
    return notes + ([f"synthetic speech: a machine spoke {spoken:,} of {utterances:,} utterances"] if spoken else [])


def _never_translated(config: Config, gathered: Gathered, corpora: Sequence[str]) -> Iterator[tuple[str, str, object]]:
    """Corpus, target language, and where its texts should be, where a corpus has none: the name may be wrong."""
    for name in corpora:
        named = getattr(config.data.corpora[name], "translations", {})
        yield from ((name, lang, where) for lang, where in named.items() if (name, lang) not in gathered.translated)


def _check_served(config: Config, gathered: Gathered, corpora: Sequence[str]) -> None:
    """Every task and language of the recipe has something to learn from or to be tested on."""
    for task, lang in config.targets():
        if (task, lang) in gathered.served:
            continue
        nobody = f"no utterance of {', '.join(f'`{name}`' for name in corpora)} has"
        if config.kind(task).target == "label":
            raise DataError(
                f"{nobody} a label `{config.label(task)}` for task `{task}`",
                "name it under `data.corpora.*.labels`, its column under `label_columns`, or its field under `label_fields`",
            )
        spoken = config.kind(task).target == "transcript"
        where = f"their speech is in {', '.join(f'`{one}`' for one in sorted(gathered.spoken))}" if spoken else "no translation says it"
        first = _renaming(config, sorted(gathered.spoken)) or (
            "name the spoken language: `data.corpora.*.language`"
            if spoken
            else "name the column or field under `data.corpora.*.translations`"
        )
        raise DataError(
            f"{nobody} a text for task `{task}`, language `{lang}`: {where}",
            f"{first}; or take `{lang}` out of `tasks.{task}.languages`",
        )


def _renaming(config: Config, languages: Iterable[str]) -> str:
    """How to say that languages are those of the recipe under other names, where they look so; else empty."""
    known = {lang for _, lang in config.targets()}
    meant = {name: base for name in languages if name not in known and (base := re.split("[-_]", name)[0].lower()) in known}
    return f"`data.corpora.*.languages: {{{', '.join(f'{name}: {lang}' for name, lang in meant.items())}}}` renames" if meant else ""


def _without(config: Config, axis: str, value: str) -> str:
    """What comes of it that training has no cut with a tag."""
    plan, routes = make_plan(config), config.routes()
    for name, stack in (("encoder", plan.encoder), ("decoder", plan.decoder)):
        others = {stack.expert(route) for route in routes if route.tags[axis] != value}
        if idle := [expert for expert in stack.experts if expert not in others]:
            cure = f"add such cuts, take `{value}` out of `axes.{axis}`, or let it share an expert: `model.{name}_expert_groups`"
            return f"`smoe train` will refuse that, as expert `{idle[0]}` of the {name} would never learn; {cure}"
    return "the model will have no route for it"


def _unheard(config: Config, gathered: Gathered) -> list[str]:
    """Tags and labels that training will not hear: no route, and no answer, comes of them."""
    notes = [
        f"no training cut has {axis} `{value}`: {_without(config, axis, value)}"
        for axis, values in config.axes.items()
        for value in values
        if gathered.cuts["train"] and (axis, value) not in gathered.tags
    ]
    for split in ("dev", "test"):
        for task, labels in gathered.labels[split].items():
            if new := sorted(labels - gathered.labels["train"][task]):
                notes.append(f"labels of {task} in the {split} split that training never sees, and so can only be wrong: {', '.join(new)}")
    return notes
