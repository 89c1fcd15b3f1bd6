"""Corpora -> checked, tagged cut manifests and a report of what they hold."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from lhotse import MonoCut, Recording
from pydantic import Field

from smoe_cli.audio import TOLERANCE_S, check_readable
from smoe_cli.bandwidth import Estimate, estimate_bandwidth
from smoe_cli.config import SPLITS, Config, SynthCorpus, data_root
from smoe_cli.corpora import read_corpus
from smoe_cli.corpora.utterance import ASSUMED_LANGUAGE, Utterance, Work
from smoe_cli.cuts import check_utterance, labels_of, make_cuts, native_bandwidth, route_of, tags_of, write_cuts
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.records import Record, write_json
from smoe_cli.tags import Route
from smoe_cli.text import clean
from smoe_cli.watch import Watcher

SHOWN_PROBLEMS = 10


class PrepareRow(Record):
    """Cuts and audio of one split x task x language x bandwidth x tags on the recipe's own axes."""

    split: str
    task: str
    lang: str
    bandwidth: str
    subset: str
    tags: dict[str, str] = Field(default={}, description="Values on the recipe's own axes.")
    cuts: int
    hours: float


class BandwidthRow(Record):
    """Utterances of a corpus whose band is known in one way, beside what their spectrum says."""

    corpus: str
    known_by: str = Field(description="`recipe`, or the sampling rate.")
    known: str = Field(description="`nb`, `wb`, or `neither`.")
    estimated: str = Field(description="`nb`, `wb`, or `unsure`.")
    tagged: str
    utterances: int
    example: str = Field(description="One of them.")


class PrepareReport(Record):
    """What `smoe prepare` wrote."""

    cuts_dir: Path
    rows: list[PrepareRow]
    utterances: dict[str, int] = Field(description="Split -> utterances.")
    synthetic: bool = Field(description="Whether a machine spoke any of it.")
    lines: dict[str, int] = Field(default={}, description="Simulated telephone line -> utterances that were sent through it.")
    bandwidths: list[BandwidthRow] = Field(default=[], description="What is known of the bands beside what was estimated, if it was.")
    notes: list[str]


def prepare(config: Config, corpora: Sequence[str] | None, jobs: int, watcher: Watcher) -> PrepareReport:
    """Read the recipe's corpora, check every utterance, write one manifest per split.

    Args:
        corpora: Names of corpora to take; None: all of the recipe.
        jobs: Processes at once; 0: one per core.

    Raises:
        ConfigError: If a named corpus is not in the recipe.
        DataError: Naming what is damaged or contradictory; then no manifest is written.
    """
    layout = Layout.of(config)
    jobs = jobs or usable_cores()
    cuts: dict[str, list[MonoCut]] = {split: [] for split in SPLITS}
    utterances: list[Utterance] = []
    lacking: Counter[str] = Counter()
    assumed: Counter[str] = Counter()
    unserved: Counter[str] = Counter()
    bandwidths: list[BandwidthRow] = []
    ids: set[str] = set()
    seen: dict[str, str] = {}
    corpora = chosen_corpora(config, corpora)
    for name in corpora:
        # What is synthesized lies in no folder of the user's.
        root = Path() if isinstance(config.data.corpora[name], SynthCorpus) else data_root(config)
        work = Work(name, root, layout.audio / name, jobs, lambda done, total, what: watcher.progress(what, done, total))
        found = list(read_corpus(config.data.corpora[name], work))
        if not found:
            raise DataError(f"corpus `{name}` gives no utterance", f"check the filters under `data.corpora.{name}`")
        for utterance in found:
            check_utterance(utterance, name, config)
        assumed[name] += sum(utterance.language_assumed for utterance in found)
        _check_audio(found, name, config, jobs, watcher)
        if "auto" in (config.data.bandwidth, config.data.corpora[name].bandwidth):
            found = _estimated(found, name, jobs, watcher)
            bandwidths += _compared(found, name)
        for utterance in found:
            made = list(make_cuts(utterance, name, config))
            key = f"{name}/{utterance.id}"
            if key in seen:
                where = (
                    f"twice in split `{utterance.split}`"
                    if seen[key] == utterance.split
                    else f"in splits `{seen[key]}` and `{utterance.split}`"
                )
                raise DataError(f"utterance `{utterance.id}` of corpus `{name}` occurs {where}", "ids must be unique; rename or remove one")
            seen[key] = utterance.split
            clash = next((cut.id for cut in made if cut.id in ids), None)
            if clash:
                raise DataError(
                    f"two utterances would both give the cut `{clash}`", "rename a corpus or an utterance, so that name and id differ"
                )
            ids.update(cut.id for cut in made)
            if not made:
                unserved[utterance.language] += 1
            served = {(route.task, route.lang) for route in map(route_of, made)}
            for task, lang in config.targets():
                target = config.kind(task).target
                if target == "translation" and lang != utterance.language and (task, lang) not in served:
                    lacking[f"text for {task}/{lang}"] += 1
                elif target == "label" and (task, lang) not in served:
                    lacking[f"label `{config.label(task)}` for {task}"] += 1
            cuts[utterance.split] += made
        utterances += found
    notes = [f"{count} utterances have no {what}; they serve the other tasks" for what, count in sorted(lacking.items())]
    notes += [
        f"nobody names the spoken language of {count} utterances of `{name}`: taken to be `{ASSUMED_LANGUAGE}`; "
        f"say `data.corpora.{name}.language`"
        for name, count in assumed.items()
        if count
    ]
    notes += [f"{count} utterances in `{language}` serve no task: no cut was written" for language, count in sorted(unserved.items())]
    notes += _contradicted(bandwidths)
    notes += [f"no {split} split: `smoe train` needs one" for split in ("train", "dev") if not cuts[split]]
    notes += _unheard(config, cuts)
    notes += _shared_speakers(utterances)
    spoken = sum(utterance.synthetic for utterance in utterances)
    notes += [f"synthetic speech: a machine spoke {spoken:,} of {len(utterances):,} utterances"] if spoken else []
    _check_served(config, cuts, corpora)
    lines = {tags.utterance: tags.line for some in cuts.values() for tags in map(tags_of, some) if tags.line}
    for split in SPLITS:
        if cuts[split]:
            write_cuts(layout.cuts(split), cuts[split])
        else:
            layout.cuts(split).unlink(missing_ok=True)
    report = PrepareReport(
        cuts_dir=layout.cuts_dir,
        rows=_rows(cuts),
        utterances=dict(Counter(utterance.split for utterance in utterances)),
        synthetic=any(utterance.synthetic for utterance in utterances),
        lines=dict(sorted(Counter(lines.values()).items())),
        bandwidths=bandwidths,
        notes=notes,
    )
    write_json(layout.prepare_report, report)
    return report


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


def _check_audio(utterances: Sequence[Utterance], corpus: str, config: Config, jobs: int, watcher: Watcher) -> None:
    """Read every recording to its end, once for all its utterances; all problems are collected before anything is said."""
    recordings = {_content(utterance.recording): utterance.recording for utterance in utterances}
    damages: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for content, damage in zip(recordings, pool.map(_damage, recordings.values()), strict=True):
            damages[content] = damage
            watcher.progress(f"{corpus}: audio checked", len(damages), len(recordings))
    unfit = [problem for item in utterances if (problem := damages[_content(item.recording)] or _problem(item, config))]
    if unfit:
        problems = list(dict.fromkeys(unfit))
        more = f"\n... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise DataError(
            f"corpus `{corpus}`: {len(unfit)} of {len(utterances)} utterances are not fit for use:\n"
            + "\n".join(problems[:SHOWN_PROBLEMS])
            + more,
            "mend or remove them; nothing was written",
        )


def _content(recording: Recording) -> str:
    """The same for recordings that promise the same of the same files, whatever their ids."""
    return str(recording.to_dict() | {"id": ""})


def _damage(recording: Recording) -> str:
    try:
        check_readable(recording)
    except DataError as error:
        return error.message
    return ""


def _problem(utterance: Utterance, config: Config) -> str:
    """What makes an utterance of a sound recording unfit for use; empty: nothing."""
    whole_s, start_s = utterance.recording.duration, utterance.start_s
    duration_s = whole_s - start_s if utterance.duration_s is None else utterance.duration_s
    if not 0 <= start_s < whole_s or start_s + duration_s > whole_s + TOLERANCE_S:
        return (
            f"utterance `{utterance.id}` goes from {start_s:.2f} to {start_s + duration_s:.2f} s, "
            f"but audio `{utterance.recording.sources[0].source}` from 0 to {whole_s:.2f} s"
        )
    if not config.data.min_duration_s <= duration_s <= config.data.max_duration_s:
        return f"utterance `{utterance.id}` lasts {duration_s:.2f} s, outside `data.min_duration_s` and `data.max_duration_s`"
    texts = [
        *([utterance.transcript] if utterance.transcript.strip() else []),
        *(text for texts in utterance.translations.values() for text in texts),
    ]
    if not all(clean(text, config.data.lowercase, config.data.strip_punctuation) for text in texts):
        return f"utterance `{utterance.id}` has a text that is empty, or only punctuation"
    return ""


def _estimated(utterances: Sequence[Utterance], corpus: str, jobs: int, watcher: Watcher) -> list[Utterance]:
    """The same utterances with what the spectrum of the whole recording says of each one's channel."""
    channels = {(_content(item.recording), item.channel): item.recording for item in utterances}
    estimates: dict[tuple[str, int], Estimate] = {}

    def estimate(key: tuple[str, int]) -> Estimate:
        try:
            samples_CN = channels[key].load_audio(channels=key[1])
        except Exception as error:  # Lhotse wraps every reader's own errors
            where = channels[key].sources[0].source
            raise DataError(f"cannot read channel {key[1]} of audio `{where}`: {error}", "mend or remove it") from error
        return estimate_bandwidth(np.asarray(samples_CN[0]), channels[key].sampling_rate)

    with ThreadPoolExecutor(jobs) as pool:
        for key, found in zip(channels, pool.map(estimate, channels), strict=True):
            estimates[key] = found
            watcher.progress(f"{corpus}: bandwidth estimated", len(estimates), len(channels))
    return [replace(item, estimate=estimates[_content(item.recording), item.channel]) for item in utterances]


def _compared(utterances: Sequence[Utterance], corpus: str) -> list[BandwidthRow]:
    """Every way in which a band is known, beside what was estimated and what the tag will be."""
    rows: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for item in utterances:
        assert item.estimate is not None
        tagged = native_bandwidth(item.recording, item.bandwidth, item.estimate)
        try:
            known = str(native_bandwidth(item.recording, item.bandwidth))
        except DataError:
            known = "neither"
        by = "recipe" if item.bandwidth else f"{item.recording.sampling_rate} Hz"
        estimated = str(item.estimate.band) if item.estimate.reliable else "unsure"
        rows[by, known, estimated, str(tagged)].append(item.id)
    return [
        BandwidthRow(corpus=corpus, known_by=by, known=known, estimated=estimated, tagged=tagged, utterances=len(ids), example=ids[0])
        for (by, known, estimated, tagged), ids in sorted(rows.items())
    ]


def _contradicted(rows: Sequence[BandwidthRow]) -> list[str]:
    notes = []
    for row in rows:
        if row.estimated == "unsure":
            notes.append(
                f"the spectrum of {row.utterances} utterances of `{row.corpus}` does not tell their band: "
                f"tagged {row.tagged} as the {'recipe' if row.known_by == 'recipe' else 'sampling rate'} says"
            )
        elif row.estimated != row.known:
            says = f"`data.corpora.{row.corpus}.bandwidth`" if row.known_by == "recipe" else f"a sampling rate of {row.known_by}"
            notes.append(
                f"{row.utterances} utterances of `{row.corpus}` are {row.known} by {says}, but {row.estimated} by their spectrum, "
                f"e.g. `{row.example}`: tagged {row.tagged}"
            )
    return notes


def _shared_speakers(utterances: Sequence[Utterance]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for utterance in utterances:
        if utterance.speaker:
            splits[utterance.speaker].add(utterance.split)
    shared = sorted(speaker for speaker, where in splits.items() if len(where) > 1)
    return (
        [f"{len(shared)} of {len(splits)} speakers are in more than one split: scores on them are not speaker-independent"]
        if shared
        else []
    )


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


def _rows(cuts: dict[str, list[MonoCut]]) -> list[PrepareRow]:
    counts: Counter[tuple[Route, str, str]] = Counter()
    hours: Counter[tuple[Route, str, str]] = Counter()
    for split, some in cuts.items():
        for cut in some:
            key = (route_of(cut), split, tags_of(cut).subset)
            counts[key] += 1
            hours[key] += cut.duration / 3600
    order = {split: position for position, split in enumerate(SPLITS)}
    return [
        PrepareRow(
            split=split,
            task=route.task,
            lang=route.lang,
            bandwidth=str(route.bandwidth),
            subset=subset,
            tags=dict(route.extra),
            cuts=counts[route, split, subset],
            hours=round(hours[route, split, subset], 4),
        )
        for route, split, subset in sorted(counts, key=lambda k: (order[k[1]], k[0].task, k[0].lang, str(k[0].bandwidth), k[2], k[0].extra))
    ]
