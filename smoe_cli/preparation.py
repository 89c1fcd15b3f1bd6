"""Corpora -> checked, tagged cut manifests and a report of what they hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import MonoCut
from pydantic import Field

from smoe_cli.audio import Heard, listen
from smoe_cli.config import SPLITS, Config
from smoe_cli.corpora import read_corpus
from smoe_cli.corpora.utterance import ASSUMED_LANGUAGE, Utterance, Work
from smoe_cli.cuts import check_utterance, labels_of, make_cuts, route_of, tags_of, write_cuts
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.recipe import data_root
from smoe_cli.records import Finding, Record, write_json
from smoe_cli.validation.cut import check_span
from smoe_cli.validation.report import Row
from smoe_cli.validation.validate import Ears, promise_of, validate
from smoe_cli.watch import Watcher

SHOWN_PROBLEMS, SHOWN_CURES = 20, 3


class PrepareReport(Record):
    """What `smoe prepare` wrote."""

    cuts_dir: Path
    rows: list[Row]
    utterances: dict[str, int] = Field(description="Split -> utterances.")
    synthetic: bool = Field(description="Whether a machine spoke any of it.")
    notes: list[str]
    findings: list[Finding] = Field(default=[], description="What `smoe validate` has to say of the manifests.")


@dataclass
class _Gathered:
    """What the corpora gave so far."""

    cuts: dict[str, list[MonoCut]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    utterances: list[Utterance] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    lacking: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)
    unserved: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)
    splits: dict[str, str] = field(default_factory=dict)


def prepare(config: Config, corpora: Sequence[str] | None, jobs: int, watcher: Watcher) -> PrepareReport:
    """Read the recipe's corpora, check every utterance, write one manifest per split, and validate these.

    Args:
        corpora: Names of corpora to take; None: all of the recipe.
        jobs: Processes at once; 0: one per core.

    Raises:
        ConfigError: If a named corpus is not in the recipe.
        DataError: Naming all that is damaged or contradictory in a corpus; then no manifest is written.
    """
    layout = Layout.of(config)
    jobs = jobs or usable_cores()
    corpora = chosen_corpora(config, corpora)
    gathered = _Gathered()
    for name in corpora:
        # What is synthesized lies in no folder of the user's.
        root = Path() if config.data.corpora[name].made else data_root(config)
        work = Work(name, root, layout.audio / name, jobs, lambda done, total, what: watcher.progress(what, done, total))
        _gather(gathered, config, work, watcher)
    cuts = gathered.cuts
    notes = _notes(config, gathered)
    _check_served(config, cuts, corpora)
    for split in SPLITS:
        if cuts[split]:
            write_cuts(layout.cuts(split), cuts[split])
        else:
            layout.cuts(split).unlink(missing_ok=True)
    # The audio was read just now.
    validation, _ = validate([layout.cuts(split) for split in SPLITS if cuts[split]], config, Ears(0, gathered.heard), watcher)
    write_json(layout.validation, validation)
    report = PrepareReport(
        cuts_dir=layout.cuts_dir,
        rows=validation.rows,
        utterances=_count(gathered.utterances),
        synthetic=any(utterance.synthetic for utterance in gathered.utterances),
        notes=notes,
        findings=validation.findings,
    )
    write_json(layout.prepare_report, report)
    return report


def _count(utterances: Sequence[Utterance]) -> dict[str, int]:
    """Split -> utterances; of those that come as several prepared cuts, each is counted once."""
    cuts = [(utterance.split, utterance.prepared) for utterance in utterances]
    known = {(split, tags_of(cut).utterance) for split, cut in cuts if cut is not None}
    return dict(Counter([*(split for split, cut in cuts if cut is None), *(split for split, _ in known)]))


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


def _gather(gathered: _Gathered, config: Config, work: Work, watcher: Watcher) -> None:
    """Read one corpus, and make the cuts of its utterances.

    Raises:
        DataError: With all that is wrong with it.
    """
    found = list(read_corpus(config.data.corpora[work.name], work))
    if not found and not work.problems:
        raise DataError(f"corpus `{work.name}` gives no utterance", f"check the filters under `data.corpora.{work.name}`")
    read = len(found) + len(work.problems)
    sound = [utterance for utterance in found if _passes(work, _check, utterance, work.name, config)]
    heard = _listen(sound, work, watcher)
    for utterance in sound:
        problem = heard[promise_of(utterance.recording)].problem
        if problem is not None:
            work.unfit(problem)
        else:
            _passes(work, _serve, gathered, utterance, work.name, config)
    if work.problems:
        raise _refusal(work, read)
    gathered.heard += [note for one in heard.values() for note in one.notes]
    gathered.assumed[work.name] += sum(utterance.language_assumed for utterance in found)
    gathered.utterances += found


def _passes(work: Work, check: Callable[..., None], *arguments: object) -> bool:
    """Whether an utterance passes a check; if not, the problem is remembered."""
    try:
        check(*arguments)
    except DataError as error:
        work.unfit(error)
        return False
    return True


def _serve(gathered: _Gathered, utterance: Utterance, corpus: str, config: Config) -> None:
    """Add the cuts of one utterance.

    Raises:
        DataError: If another has its id, or would give the same cut.
    """
    made = list(make_cuts(utterance, corpus, config))
    key = f"{corpus}/{utterance.id}"
    if there := gathered.splits.get(key):
        where = f"twice in split `{utterance.split}`" if there == utterance.split else f"in splits `{there}` and `{utterance.split}`"
        raise DataError(f"utterance `{utterance.id}` of corpus `{corpus}` occurs {where}", "ids must be unique; rename or remove one")
    gathered.splits[key] = utterance.split
    if clash := next((cut.id for cut in made if cut.id in gathered.ids), None):
        raise DataError(f"two utterances would both give the cut `{clash}`", "rename a corpus or an utterance, so that name and id differ")
    gathered.ids.update(cut.id for cut in made)
    if not made:
        gathered.unserved[utterance.language] += 1
    served = {(route.task, route.lang) for route in map(route_of, made)}
    for task, lang in config.targets():
        if utterance.prepared is None and config.kind(task).target == "label" and (task, lang) not in served:
            gathered.lacking[f"label `{config.label(task)}` for {task}"] += 1
    gathered.cuts[utterance.split] += made


def _notes(config: Config, gathered: _Gathered) -> list[str]:
    """What is no error, and not to be seen in the manifests."""
    notes = [f"{count} utterances have no {what}; they serve the other tasks" for what, count in sorted(gathered.lacking.items())]
    notes += [
        f"nobody names the spoken language of {count} utterances of `{name}`: taken to be `{ASSUMED_LANGUAGE}`; "
        f"say `data.corpora.{name}.language`"
        for name, count in gathered.assumed.items()
        if count
    ]
    notes += [
        f"{count} utterances in `{language}` serve no task: no cut was written" for language, count in sorted(gathered.unserved.items())
    ]
    notes += [f"no {split} split: `smoe train` needs one" for split in ("train", "dev") if not gathered.cuts[split]]
    notes += _unheard(config, gathered.cuts)
    spoken = sum(utterance.synthetic for utterance in gathered.utterances)
    return notes + ([f"synthetic speech: a machine spoke {spoken:,} of {len(gathered.utterances):,} utterances"] if spoken else [])


def _listen(utterances: Sequence[Utterance], work: Work, watcher: Watcher) -> dict[str, Heard]:
    """Read every recording to its end, once for all its utterances; the key is what `promise_of` says."""
    recordings = {promise_of(utterance.recording): utterance.recording for utterance in utterances}
    heard: dict[str, Heard] = {}
    with ThreadPoolExecutor(work.jobs) as pool:
        for promise, one in zip(recordings, pool.map(listen, recordings.values()), strict=True):
            heard[promise] = one
            watcher.progress(f"{work.name}: audio checked", len(heard), len(recordings))
    return heard


def _check(utterance: Utterance, corpus: str, config: Config) -> None:
    """Refuse an utterance that lacks a tag, leaves its recording, lasts too long or too short, or has a text that says nothing.

    Raises:
        DataError: If it is so.
    """
    check_utterance(utterance, corpus, config)
    recording, what = utterance.recording, f"utterance `{utterance.id}`"
    duration_s = recording.duration - utterance.start_s if utterance.duration_s is None else utterance.duration_s
    check_span(what, recording.sources[0].source, (utterance.start_s, duration_s), recording.duration, config)
    texts = [
        *([utterance.transcript] if utterance.transcript.strip() else []),
        *(text for texts in utterance.translations.values() for text in texts),
    ]
    if not all(policy.clean(text) for policy in {config.text_policy(task) for task in config.tasks} for text in texts):
        raise DataError(f"{what} has a text that is empty, or only punctuation", "correct it in the corpus, or remove it")


def _refusal(work: Work, utterances: int) -> DataError:
    """All that is wrong with a corpus at once, a line for each thing."""
    said = {problem.message: problem.hint for problem in work.problems}
    lines = [f"corpus `{work.name}`: {len(work.problems)} of {utterances} utterances are not fit for use:", *list(said)[:SHOWN_PROBLEMS]]
    lines += [f"... and {len(said) - SHOWN_PROBLEMS} more"] if len(said) > SHOWN_PROBLEMS else []
    cures = list(dict.fromkeys(said.values()))
    return DataError("\n".join(lines), "; or ".join(cures[:SHOWN_CURES]) + "; nothing was written")


def _check_served(config: Config, cuts: dict[str, list[MonoCut]], corpora: Sequence[str]) -> None:
    """Every task and language of the recipe has something to learn from or to be tested on."""
    served = {(route.task, route.lang) for split in cuts.values() for route in map(route_of, split)}
    for task, lang in config.targets():
        if (task, lang) in served:
            continue
        nobody = f"no utterance of {', '.join(f'`{name}`' for name in corpora)} has"
        if config.kind(task).target == "label":
            raise DataError(
                f"{nobody} a label `{config.label(task)}` for task `{task}`",
                "name it under `data.corpora.*.labels`, its column under `label_columns`, or its field under `label_fields`",
            )
        raise DataError(
            f"{nobody} a text for task `{task}`, language `{lang}`",
            f"name the column or field under `data.corpora.*.translations`, or take `{lang}` out of `tasks.{task}.languages`",
        )


def _unheard(config: Config, cuts: dict[str, list[MonoCut]]) -> list[str]:
    """Tags and labels that training will not hear: no route, and no answer, comes of them."""
    heard = {(axis, value) for cut in cuts["train"] for axis, value in route_of(cut).extra}
    notes = [
        f"no training cut has {axis} `{value}`: the model will have no route for it"
        for axis, values in config.axes.items()
        for value in values
        if cuts["train"] and (axis, value) not in heard
    ]
    known = labels_of(cuts["train"], config)
    for split in ("dev", "test"):
        for task, labels in labels_of(cuts[split], config).items():
            new = [label for label in labels if label not in known.get(task, [])]
            if new:
                notes.append(f"labels of {task} in the {split} split that training never sees, and so can only be wrong: {', '.join(new)}")
    return notes
