"""Manifests as a stream -> a report. Memory grows with digests of ids and audio paths, utterances, speakers and what is wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from lhotse import Recording

from smoe_cli.audio import SOUND, Heard, listen
from smoe_cli.config import SPLITS, Config
from smoe_cli.cuts import route_of, tags_of
from smoe_cli.errors import DataError, SmoeError
from smoe_cli.manifests import SUFFIXES, Item, read_lines, read_manifest
from smoe_cli.records import Finding
from smoe_cli.tags import Route
from smoe_cli.validation.cut import LOOK, Fault, Rules, faults_of, ratio_of
from smoe_cli.validation.report import Lasting, Row, ValidationReport
from smoe_cli.validation.texts import Ratios
from smoe_cli.watch import Watcher

CHUNK = 256
"""Cuts in memory at once: enough recordings to keep every reader busy."""
NAMED = 5
FOREIGN, FOREIGN_SHARE = 5, 0.1
"""So many texts in another language, and so large a share of a task's, are no loans any more."""
LANGUAGE_BITS = 16
"""Of the number that says what an utterance serves: the spoken language, then a bit for every task and language."""
DIGEST_BYTES = 12
"""As many as Python keeps in the memory of 8."""
EDGES_S = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 60.0)


@dataclass(frozen=True)
class Ears:
    """How recordings are listened to.

    Attributes:
        jobs: Recordings read at once; 0: none is read, because somebody else has.
        heard: What that somebody found to note.
        within: Folder that audio must lie in; None: anywhere.
    """

    jobs: int
    heard: Sequence[str] = ()
    within: Path | None = None


class Findings:
    """What is wrong, each thing once, and which lines it makes unfit."""

    def __init__(self) -> None:
        self.unfit: dict[Path, dict[int, list[str]]] = {}
        self._found: dict[tuple[str, str, str], Finding] = {}

    def add(self, path: Path, item: Item, fault: Fault, whose: str | None = None) -> None:
        """Remember a fault of a cut.

        Args:
            path: Its manifest.
            item: Its line.
            fault: What is wrong.
            whose: What is wrong with the same thing of these, an utterance or a file, is said once for all its cuts; None: the cut's own.
        """
        where = f"`{path}` line {item.number}" + (f": cut `{item.cut.id}`" if item.cut is not None else "")
        self.put(where, fault, where if whose is None else whose)
        if fault.severity == "error":
            self.unfit.setdefault(path, {}).setdefault(item.number, []).append(f"{fault.check}: {fault.message}")

    def put(self, where: str, fault: Fault, key: str = "") -> None:
        """Remember a fault that is no single cut's, or count it once more."""
        known = self._found.get((fault.check, fault.message, key))
        self._found[fault.check, fault.message, key] = (
            known.model_copy(update={"cuts": known.cuts + 1})
            if known
            else Finding(check=fault.check, where=where, message=fault.message, hint=fault.hint, severity=fault.severity)
        )

    def sorted(self) -> list[Finding]:
        """Errors first, else as they were found."""
        return sorted(self._found.values(), key=lambda finding: finding.severity != "error")


class _Tally:
    """What is only known of all cuts together."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.lines = 0
        self.cuts: Counter[tuple[str, str, Route]] = Counter()
        self.seconds: Counter[tuple[str, str, Route]] = Counter()
        self.lasting: Counter[int] = Counter()
        self.ratios = Ratios()
        self.ids: dict[bytes, str] = {}
        # Whole names here: those that lack a translation are said. What they serve is shared: there are few different ones.
        self.utterances: dict[str, tuple[str, int]] = {}
        self._served: dict[tuple[str, int], tuple[str, int]] = {}
        self.speakers: dict[tuple[str, str], tuple[str, ...]] = {}
        self.targets: dict[tuple[str, str], int] = {}
        self.languages: dict[str, int] = {}
        # As many as there are findings: their places, for when there are too many of them.
        self.foreign: defaultdict[tuple[str, str], list[tuple[Path, Item, Fault]]] = defaultdict(list)
        self.rates: Counter[int] = Counter()
        self.rate_where: dict[int, str] = {}

    def keep(self, split: str, cut_id: str, utterance: str, served: int) -> None:
        """Remember a sound cut, and what its utterance serves by now."""
        self.ids[_digest(cut_id)] = split
        self.utterances[utterance] = self._served.setdefault((split, served), (split, served))

    def clashes(self, split: str, cut_id: str, utterance: str) -> Iterator[Fault]:
        """What another cut has that this one may not have too."""
        if first := self.ids.get(_digest(cut_id)):
            there = "" if first == split else f", first in split `{first}`"
            yield Fault("duplicate", "error", f"has an id that occurs before{there}", "ids must be unique; rename or remove one")
        elif self.utterances.get(utterance, (split, 0))[0] != split:
            yield Fault(
                "split",
                "error",
                f"is of utterance `{utterance}`, which is in split `{self.utterances[utterance][0]}` too",
                "leave it in one split: what was trained on tests nothing",
            )


def _digest(name: str) -> bytes:
    """Stands for a name where only equality matters, in less memory: two of a billion share one with a chance of 1 in 10^11."""
    return blake2b(name.encode(), digest_size=DIGEST_BYTES).digest()


def split_of(path: Path) -> str:
    """The split that a manifest's name tells: `train` of `cuts.train.jsonl.gz`; else its whole name."""
    name = next(path.name.removesuffix(suffix) for suffix in (*reversed(SUFFIXES), "") if path.name.endswith(suffix))
    return name.removeprefix("cuts.")


def validate(paths: Sequence[Path], config: Config | None, ears: Ears, watcher: Watcher) -> tuple[ValidationReport, Findings]:
    """Check manifests cut by cut, then all cuts together.

    Args:
        paths: Manifests; the name of each tells its split.
        config: The recipe whose tasks, rate and limits hold; None: only what holds of all.

    Raises:
        DataError: If a manifest is missing, unreadable or empty.
    """
    tally, findings, files = _Tally(Rules(config)), Findings(), dict[bytes, Heard]()
    for path in paths:
        _read(path, tally, findings, files, ears, watcher)
    for note in ears.heard:
        findings.put("recordings", Fault("audio", "note", note, LOOK))
    _check_ratios(paths, tally, findings)
    _check_languages(tally, findings)
    _check_sampling_rates(tally, findings)
    _check_speakers(tally, findings)
    _check_translations(tally, findings)
    found = findings.sorted()
    errors = sum(finding.severity == "error" for finding in found)
    report = ValidationReport(
        manifests=list(paths),
        cuts=tally.lines,
        recordings_read=len(files),
        rows=_rows(tally),
        durations=_durations(tally.lasting),
        errors=errors,
        notes=len(found) - errors,
        findings=found,
    )
    return report, findings


def _read(path: Path, tally: _Tally, findings: Findings, files: dict[bytes, Heard], ears: Ears, watcher: Watcher) -> None:
    split, what = split_of(path), f"{path.name}: cuts checked"
    total = sum(1 for _ in read_lines(path))
    if not total:
        raise DataError(f"manifest `{path}` is empty", "prepare it again with `smoe prepare`")
    items = read_manifest(path, ears.within)
    done = 0
    with ThreadPoolExecutor(max(ears.jobs, 1)) as pool:
        while chunk := list(islice(items, CHUNK)):
            heard = _listen_to([item.cut.recording for item in chunk if item.cut is not None], files, pool) if ears.jobs else {}
            for item in chunk:
                _judge(path, split, item, heard, tally, findings)
            done += len(chunk)
            watcher.progress(what, done, total)


def _listen_to(recordings: Iterable[Recording], files: dict[bytes, Heard], pool: ThreadPoolExecutor) -> dict[str, Heard]:
    """Recording, as `promise_of` names it -> what was heard; a file that was read before is only compared with what is promised."""
    by_file: dict[str, dict[str, Recording]] = {}
    for recording in recordings:
        by_file.setdefault(str([source.source for source in recording.sources]), {})[promise_of(recording)] = recording

    def heard(names: str, some: dict[str, Recording]) -> dict[str, Heard]:
        found, named = {}, _digest(names)
        for promise, recording in some.items():
            found[promise] = listen(recording, files.get(named))
            if found[promise].whole:
                files[named] = SOUND if found[promise] == SOUND else found[promise]
        return found

    return {promise: one for some in pool.map(heard, by_file, by_file.values()) for promise, one in some.items()}


def promise_of(recording: Recording) -> str:
    """The same for recordings that promise the same of the same files, whatever their ids."""
    return str(recording.to_dict() | {"id": ""})


def _judge(path: Path, split: str, item: Item, heard: dict[str, Heard], tally: _Tally, findings: Findings) -> None:
    tally.lines += 1
    if item.cut is None:
        problem = item.problem or DataError("no cut")
        # The place is named by the finding.
        message = problem.message.removeprefix(f"`{path}` line {item.number}").removeprefix(": ").strip()
        findings.add(path, item, Fault("manifest", "error", message, problem.hint))
        return
    cut = item.cut
    try:
        tags = tags_of(cut)
        route = route_of(cut, tags=tags)
    except SmoeError as error:
        message = error.message.removeprefix(f"cut `{cut.id}`").removeprefix(":").strip()
        findings.add(path, item, Fault("tags", "error", message, error.hint))
        return
    faults = [*tally.clashes(split, cut.id, tags.utterance), *faults_of(cut, tags, route, tally.rules)]
    for fault in faults:
        findings.add(path, item, fault, tags.utterance)
    if heard:
        found = heard[promise_of(cut.recording)]
        if (wrong := found.problem_of(cut.recording, cut.channel, cut.start, cut.duration)) is not None:
            faults.append(Fault("audio", "error", wrong.message, wrong.hint))
            findings.add(path, item, faults[-1], "")
        for note in found.notes:
            findings.add(path, item, Fault("audio", "note", note, LOOK), "")
    key = split, tags.subset, route
    tally.foreign[route.task, route.lang] += [(path, replace(item, raw=b"", cut=None), one) for one in faults if one.check == "language"]
    tally.rates[cut.sampling_rate] += 1
    tally.rate_where.setdefault(cut.sampling_rate, f"`{path}` line {item.number}: cut `{cut.id}`")
    tally.cuts[key] += 1
    tally.seconds[key] += cut.duration
    tally.lasting[max(i for i, edge in enumerate(EDGES_S) if edge <= cut.duration)] += 1
    if speaker := cut.supervisions[0].speaker:
        splits = tally.speakers.setdefault((tags.corpus, speaker), (split,))
        if split not in splits:
            tally.speakers[tags.corpus, speaker] = (*splits, split)
    if any(fault.severity == "error" for fault in faults):
        return  # neither its id nor its text counts against sound ones
    target = 1 << LANGUAGE_BITS + tally.targets.setdefault((route.task, route.lang), len(tally.targets))
    language = tally.languages.setdefault(tags.source_lang, len(tally.languages))
    served = tally.utterances.get(tags.utterance, (split, language))[1]
    tally.keep(split, cut.id, tags.utterance, served | target)
    if (group := _ratio_group(route, tally.rules)) and (ratio := ratio_of(cut)):
        tally.ratios.add(group, ratio)


def _ratio_group(route: Route, rules: Rules) -> str:
    """Texts that are compared with each other; empty: it is a label."""
    kind = rules.kind(route.task)
    return "" if kind is not None and kind.closed else f"{route.task}/{route.lang}"


def _check_ratios(paths: Sequence[Path], tally: _Tally, findings: Findings) -> None:
    """Find texts that are far too long or too short beside others of their language; reads again only if there are some."""
    limits = tally.ratios.limits()
    if not limits:
        return
    for path in paths:
        for item in read_manifest(path):
            if item.cut is None or item.number in findings.unfit.get(path, {}):
                continue
            route = route_of(item.cut)
            group, ratio = _ratio_group(route, tally.rules), ratio_of(item.cut)
            if group in limits and ratio and not limits[group][0] <= ratio <= limits[group][2]:
                message = f"has {ratio:.3g} letters and digits a second; half of all texts of {group} have more than {limits[group][1]:.3g}"
                findings.add(
                    path,
                    item,
                    Fault("ratio", "note", message, "listen to it: text and audio may not belong together"),
                    tags_of(item.cut).utterance,
                )


def _check_languages(tally: _Tally, findings: Findings) -> None:
    """A few texts in another language are to be looked at; where many are, the tag is wrong."""
    if tally.rules.config is not None and tally.rules.config.data.foreign_texts == "note":
        return
    for (task, lang), foreign in tally.foreign.items():
        cuts = sum(count for (_, _, route), count in tally.cuts.items() if (route.task, route.lang) == (task, lang))
        if len(foreign) >= FOREIGN and len(foreign) > FOREIGN_SHARE * cuts:
            message = f"the texts of {len(foreign):,} of {cuts:,} cuts of {task}/{lang} read like another language"
            hint = "correct the tag, or take them out: `smoe validate --fix`; if they are right, `data.foreign_texts: note` lets them be"
            for path, item, fault in foreign:
                findings.add(path, item, Fault("language", "error", message, hint), f"{task}/{lang}")
                # The rejects say of each what it reads like.
                findings.unfit[path][item.number][-1] = f"language: {fault.message}"


def _check_sampling_rates(tally: _Tally, findings: Findings) -> None:
    """Without a recipe nobody says which rate is right, but a model takes one."""
    if tally.rules.config is None and len(tally.rates) > 1:
        ranked = tally.rates.most_common()
        message = "cuts come at several sampling rates: " + ", ".join(f"{count:,} at {rate:,} Hz" for rate, count in ranked)
        findings.put(tally.rate_where[ranked[-1][0]], Fault("rate", "note", message, "a model takes one: prepare them with `smoe prepare`"))


def _check_speakers(tally: _Tally, findings: Findings) -> None:
    shared = [f"{corpus}/{speaker}" for (corpus, speaker), splits in tally.speakers.items() if len(splits) > 1]
    if shared:
        message = f"{len(shared)} of {len(tally.speakers)} speakers are in more than one split: scores on them are not speaker-independent"
        findings.put(_some(shared), Fault("speaker", "note", message, "split by speaker, or say so beside the scores"))


def _some(names: Sequence[str]) -> str:
    """The first of many."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{', '.join(f'`{name}`' for name in names[:NAMED])}{more}"


def _check_translations(tally: _Tally, findings: Findings) -> None:
    """Count utterances that lack a translation which the recipe wants, or without a recipe: which others have."""
    names = {number: lang for lang, number in tally.languages.items()}
    for task, lang in tally.rules.targets or tally.targets:
        kind = tally.rules.kind(task)
        if kind is None or kind.target != "translation":
            continue
        bit = 1 << LANGUAGE_BITS + tally.targets[task, lang] if (task, lang) in tally.targets else 0
        lacking = [
            utterance
            for utterance, (_, served) in tally.utterances.items()
            if not served & bit and names[served % (1 << LANGUAGE_BITS)] != lang
        ]
        if lacking:
            message = f"{len(lacking)} utterances have no text for {task}/{lang}; they serve the other tasks"
            findings.put(_some(lacking), Fault("translation", "note", message, "add it if there should be one"))


def _rows(tally: _Tally) -> list[Row]:
    order = {split: position for position, split in enumerate(SPLITS)}
    return [
        Row(
            split=split,
            task=route.task,
            lang=route.lang,
            bandwidth=str(route.bandwidth),
            subset=subset,
            tags=dict(route.extra),
            cuts=tally.cuts[split, subset, route],
            hours=round(tally.seconds[split, subset, route] / 3600, 4),
        )
        for split, subset, route in sorted(
            tally.cuts, key=lambda k: (order.get(k[0], len(order)), k[0], k[2].task, k[2].lang, str(k[2].bandwidth), k[1], k[2].extra)
        )
    ]


def _durations(lasting: Counter[int]) -> list[Lasting]:
    used = range(min(lasting), max(lasting) + 1) if lasting else range(0)
    return [Lasting(from_s=EDGES_S[i], to_s=EDGES_S[i + 1] if i + 1 < len(EDGES_S) else None, cuts=lasting[i]) for i in used]
