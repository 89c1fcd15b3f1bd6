"""Corpora -> cuts, as a stream: each utterance is checked, listened to and tagged; what is wrong is said of all at once.

Memory grows with ids, not with utterances and cuts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

from lhotse import MonoCut

from smoe_cli.band_check import Bands, estimated
from smoe_cli.config import SPLITS, Config
from smoe_cli.corpora import look_for, read_corpus
from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.files import is_dir
from smoe_cli.corpora.utterance import Utterance, Work, foreseen
from smoe_cli.corpus_settings import AudioFolderCorpus, CorpusSettings, LhotseCorpus, NemoCorpus, TsvCorpus
from smoe_cli.cuts import check_utterance, lines_to_write, make_cuts, route_of, tags_of
from smoe_cli.errors import DataError, MissingAudio, writable
from smoe_cli.listening import PARTS_EACH, Listener
from smoe_cli.records import name_digest
from smoe_cli.telephone import ToWrite, write_lines_of
from smoe_cli.validation.cut import check_span

CHUNK, BUSY, MOST_CHUNKS = 512, 16, 16
"""Utterances in memory at once, for every 16 who read: enough recordings to keep them busy. Where many utterances have one recording, or
many read, so many times as much at most."""
SHOWN_PROBLEMS, SHOWN_CURES = 20, 3
ABSOLUTE = "no setting moves paths that begin with `/`: correct these in the table, or bring the audio there"


class Refused(DataError):
    """All that is wrong with a corpus.

    Attributes:
        corpus: Its name.
        lines: What is wrong and the cure, a line for each thing; empty where the message says it all.
    """

    def __init__(self, corpus: str, message: str, hint: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.corpus, self.lines = corpus, lines


@dataclass
class Gathered:
    """What the corpora gave so far; the cuts themselves have gone on.

    Attributes:
        utterances: Split -> utterances.
        cuts: Split -> cuts.
        served: (task, language) pairs that have a cut.
        heard: What there is to note of recordings.
        synthetic: Utterances that a machine spoke.
        lacking: What utterances lack for a task -> how many.
        assumed: Corpus -> utterances whose language nobody named.
        spoken: Languages.
        unserved: Language -> utterances that serve no task.
        untranscribed: Language -> utterances that serve other tasks, and whose transcript none writes.
        translated: (corpus, target language) pairs of which there is a translation.
        notes: What there is to note of corpora, such as what they left out by their own rules, or the recipe's.
        unfit: Corpus -> what is wrong with the utterances that were left out, as its `max_unfit` allows.
        lines: Simulated telephone line -> utterances.
        bands: What is known of bands beside what was estimated.
        tags: (axis, value) pairs that the train split has.
        labels: Split -> task that answers with a label -> right answers.
        places: What is wrong with a recording -> where it is named first.
    """

    utterances: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    served: set[tuple[str, str]] = field(default_factory=set)
    heard: dict[str, None] = field(default_factory=dict)
    synthetic: int = 0
    lacking: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)
    spoken: set[str] = field(default_factory=set)
    unserved: Counter[str] = field(default_factory=Counter)
    untranscribed: Counter[str] = field(default_factory=Counter)
    translated: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unfit: dict[str, list[str]] = field(default_factory=dict)
    lines: Counter[str] = field(default_factory=Counter)
    bands: Bands = field(default_factory=Bands)
    tags: set[tuple[str, str]] = field(default_factory=set)
    labels: dict[str, dict[str, set[str]]] = field(default_factory=lambda: {split: defaultdict(set) for split in SPLITS})
    places: dict[str, str] = field(default_factory=dict)
    _split_of: dict[bytes, int] = field(default_factory=dict)
    _cut_ids: set[bytes] = field(default_factory=set)
    _prepared: set[bytes] = field(default_factory=set)

    def serve(self, utterance: Utterance, corpus: str, config: Config) -> list[MonoCut]:
        """The cuts of one utterance, remembered.

        Raises:
            DataError: If another has its id, or would give the same cut.
        """
        key, split = name_digest(f"{corpus}/{utterance.id}"), utterance.split
        if (number := self._split_of.get(key)) is not None:
            there = SPLITS[number]
            where = f"twice in split `{split}`" if there == split else f"in splits `{there}` and `{split}`"
            raise DataError(f"utterance `{utterance.id}` of corpus `{corpus}` occurs {where}", "ids must be unique; rename or remove one")
        self._split_of[key] = SPLITS.index(split)
        # Not before: the cuts of an utterance may have a file that is named by its id.
        made = list(make_cuts(utterance, corpus, config))
        ids = [name_digest(cut.id) for cut in made]
        if clash := next((cut.id for cut, number in zip(made, ids, strict=True) if number in self._cut_ids), None):
            raise DataError(
                f"two utterances would both give the cut `{clash}`", "rename a corpus or an utterance, so that name and id differ"
            )
        self._cut_ids.update(ids)
        self.assumed[corpus] += utterance.language_assumed
        self.translated |= {(corpus, lang) for lang in utterance.translations}
        self._count(utterance, made, config)
        return made

    def has(self, utterance: Utterance, corpus: str) -> bool:
        """Whether an utterance of this id was served."""
        return name_digest(f"{corpus}/{utterance.id}") in self._split_of

    def forget_ids(self) -> None:
        """Make room: no more utterances will come."""
        self._split_of.clear()
        self._cut_ids.clear()
        self._prepared.clear()

    def read(self, utterances: Sequence[Utterance]) -> None:
        """Count utterances that a corpus gave, sound or not; one that comes as several prepared cuts counts once."""
        new = [utterance for utterance in utterances if self._is_new(utterance)]
        self.utterances.update(utterance.split for utterance in new)
        self.synthetic += sum(utterance.synthetic for utterance in new)

    def _is_new(self, utterance: Utterance, what: str = "") -> bool:
        """Whether this was not asked before of another prepared cut of the same utterance."""
        if utterance.prepared is None:
            return True
        custom = utterance.prepared.supervisions[0].custom or {}
        key = name_digest(f"{what}\t{custom.get('utterance')}")
        new = key not in self._prepared
        self._prepared.add(key)
        return new

    def _count(self, utterance: Utterance, made: Sequence[MonoCut], config: Config) -> None:
        split = utterance.split
        routes = [route_of(cut) for cut in made]
        served = {(route.task, route.lang) for route in routes}
        self.spoken.add(utterance.language)
        if not made:
            self.unserved[utterance.language] += 1
        elif utterance.prepared is None and utterance.transcript.strip() and utterance.language not in config.transcribed():
            self.untranscribed[utterance.language] += 1
        for task, lang in config.targets() if utterance.prepared is None else ():
            if config.kind(task).target == "label" and (task, lang) not in served:
                self.lacking[f"label `{config.label(task)}` for {task}"] += 1
        self.served |= served
        self.cuts[split] += len(made)
        self.lines.update({tags.line for tags in map(tags_of, made) if tags.line and self._is_new(utterance, tags.line)})
        if split == "train":
            self.tags.update(tag for route in routes for tag in route.extra)
        for cut, route in zip(made, routes, strict=True):
            if config.kind(route.task).closed:
                self.labels[split][route.task].add(str(cut.supervisions[0].text))


def gather(gathered: Gathered, config: Config, work: Work, listener: Listener, put: Callable[[str, MonoCut], None]) -> None:
    """Read one corpus to its end, and hand on the cuts of its utterances.

    Args:
        gathered: Added to.
        config: The recipe.
        work: The corpus.
        listener: Reads its recordings.
        put: Called with (split, cut), in the order of the utterances; as soon as more is wrong with the corpus than may be, no more.

    Raises:
        Refused: With all that is wrong with it, if that is more than `max_unfit`, or more than single utterances.
        DataError: If something cannot be written.
    """
    # Who is stopped while recordings are heard leaves no thread of a reader's at work.
    with closing(read_corpus(config.data.corpora[work.name], work)) as utterances:
        read = _gather(gathered, config, work, listener, put, utterances)
    if not read and not work.losses:
        work.lost(DataError(f"corpus `{work.name}` gives no utterance", f"check the filters under `data.corpora.{work.name}`"))
    if _too_much(work, config):
        raise _refusal(work, read, config.data.corpora[work.name])
    if work.problems:
        gathered.unfit[work.name] = [problem.message for problem in work.problems]
    left_out = [f"{count:,} {what} left out" for what, count in sorted(work.left_out.items())]
    gathered.notes += [f"`{work.name}`: {writable(note)}" for note in [*left_out, *work.notes]]


def look(config: Config, work: Work) -> None:
    """Look for what a corpus starts from, without reading it.

    Args:
        work: The corpus, with `dry_run`.

    Raises:
        Refused: If something is not there, in the words of `gather`.
    """
    look_for(config.data.corpora[work.name], work)
    if work.losses:
        raise _refusal(work, 0, config.data.corpora[work.name])


def _gather(
    gathered: Gathered,
    config: Config,
    work: Work,
    listener: Listener,
    put: Callable[[str, MonoCut], None],
    utterances: Iterator[Utterance],
) -> int:
    """Hand on the cuts of all utterances; returns how many there were, those included that the corpus found unfit."""
    auto, read = "auto" in (config.data.bandwidth, config.data.corpora[work.name].bandwidth), 0
    while True:
        before = len(work.problems)
        some = _next(utterances, work, listener.readers)
        # What the corpus itself found unfit, it did not yield.
        read += len(some) + len(work.problems) - before
        if not some:
            break
        checked = [utterance for utterance in some if _passes(work, utterance, config)]
        sound: Iterable[Utterance] = _heard(checked, work, listener, gathered)
        if auto:
            sound = gathered.bands.add(estimated(list(sound), work, listener), work.name, config.bands())
        sound = list(sound)
        _write_ahead(sound, gathered, work, listener, config)
        for utterance in sound:
            for cut in _served(gathered, utterance, work, config):
                put(utterance.split, cut)
        gathered.read(some)
    return read


def _next(utterances: Iterator[Utterance], work: Work, readers: int) -> list[Utterance]:
    """The next utterances of a corpus, enough for all who read.

    What ends it before its time is remembered with all else that is wrong.
    """
    some: list[Utterance] = []
    files: set[str] = set()
    least, most = min(-(-readers // BUSY), MOST_CHUNKS) * CHUNK, MOST_CHUNKS * CHUNK
    try:
        for utterance in utterances:
            some.append(utterance)
            files.add(str(utterance.recording.sources[0].source))
            if len(some) == most or (len(some) >= least and len(files) >= PARTS_EACH * readers):
                break
    except Unwritable:
        raise
    except DataError as error:
        work.lost(error)
    return some


def _too_much(work: Work, config: Config) -> bool:
    """Whether more is wrong with a corpus than may be."""
    return bool(work.losses) or len(work.problems) > config.data.corpora[work.name].max_unfit


def _passes(work: Work, utterance: Utterance, config: Config) -> bool:
    """Whether an utterance passes all checks; if not, the problem is remembered."""
    try:
        with foreseen():
            _check(utterance, work.name, config)
    except DataError as error:
        work.unfit(error, utterance.source)
        return False
    return True


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


def _heard(utterances: Sequence[Utterance], work: Work, listener: Listener, gathered: Gathered) -> Iterator[Utterance]:
    """Yield those whose recording is sound; what is to be noted of a recording is noted once."""
    recordings = [utterance.recording for utterance in utterances]
    for utterance, heard in zip(utterances, listener.hear(recordings), strict=True):
        part = utterance.start_s, utterance.duration_s
        if (problem := heard.problem_of(utterance.recording, utterance.channel, *part)) is not None:
            # What is wrong with a recording of several utterances is said once, where it is named first.
            first = gathered.places.setdefault(problem.message, utterance.source)
            work.unfit(problem, utterance.source if utterance.duration_s is None else first)
            continue
        gathered.heard.update(dict.fromkeys(heard.notes))
        yield utterance


def _write_ahead(utterances: Sequence[Utterance], gathered: Gathered, work: Work, listener: Listener, config: Config) -> None:
    """Have simulated audio that is to be written made by those who read; what fails is tried again, and said, with its cuts."""
    if not config.data.nb_simulation.write or _too_much(work, config):
        return
    # Of two with one id, the second has no cuts.
    first = {utterance.id: utterance for utterance in reversed(utterances) if not gathered.has(utterance, work.name)}
    asked: list[ToWrite] = []
    for utterance in reversed(first.values()):
        with suppress(DataError):
            asked += lines_to_write(utterance, work.name, config)
    listener.have_done(write_lines_of, asked)


def _served(gathered: Gathered, utterance: Utterance, work: Work, config: Config) -> list[MonoCut]:
    """The cuts of an utterance; none once too much is wrong with the corpus, for then nothing is written."""
    try:
        with foreseen():
            made = gathered.serve(utterance, work.name, config)
    except DataError as error:
        work.unfit(error, utterance.source)
        return []
    return [] if _too_much(work, config) else made


def _refusal(work: Work, read: int, settings: CorpusSettings) -> Refused:
    """All that is wrong with a corpus at once, a line for each thing; what is wrong with more than one utterance comes first."""
    if len(work.losses) == 1 and not work.problems:
        return Refused(work.name, work.losses[0].message, work.losses[0].hint)
    said = {_line(problem.message): problem.hint for problem in [*work.losses, *work.problems]}
    shown = list(said)[:SHOWN_PROBLEMS]
    many = [f"{len(work.losses)} files or folders that many utterances hang on"] if work.losses else []
    single = [f"{len(work.problems)} of {read} utterances"] if work.problems else []
    # Then it is no file that was lost, but the place where all are looked for that is wrong.
    none_there = len(work.problems) == read > 1 and all(isinstance(problem, MissingAudio) for problem in work.problems)
    why = ", as not one audio file was found" if none_there else ""
    lines = [f"corpus `{work.name}`: {' and '.join(many + single)} are not fit for use{why}:", *shown]
    lines += [f"... and {len(said) - SHOWN_PROBLEMS} more"] if len(said) > SHOWN_PROBLEMS else []
    cures = [*([_where_audio_lies(settings, work)] if none_there else []), *dict.fromkeys(said.values())]
    hint = "; or ".join(cures[:SHOWN_CURES]) + "; no manifest was written"
    if not work.losses and not none_there:
        hint += f"; `data.corpora.{work.name}.max_unfit: {len(work.problems)}` would leave them out"
    return Refused(work.name, "\n".join(lines), hint, [f"{message}; {_line(cure)}" for message, cure in said.items()])


def _where_audio_lies(settings: CorpusSettings, work: Work) -> str:
    """What to look at if not one audio file of a corpus is there."""
    if "audio_root" in type(settings).model_fields:
        key, root = f"`data.corpora.{work.name}.audio_root`", getattr(settings, "audio_root", None)
        if root is None:
            where = f"the folder of the table that has them, unless {key} names another, such as `.`, `data.root`"
            return f"relative paths start from {where}; {ABSOLUTE}"
        none = "" if is_dir(work.root / root) else ", which is no folder"
        return f"{key} says that relative paths start from `{work.root / root}`{none}: correct it; {ABSOLUTE}"
    if isinstance(settings, LhotseCorpus):
        return f"relative paths start from `{work.root}`, as `data.root` says: correct it, for example --set data.root=FOLDER; {ABSOLUTE}"
    if isinstance(settings, TsvCorpus | NemoCorpus | AudioFolderCorpus):
        return f"relative paths start from the folder of the table that has them: bring table and audio together as they were; {ABSOLUTE}"
    return "bring back the audio of the whole corpus"


def _line(text: str) -> str:
    """The same on one line: an id may hold line breaks."""
    return " ".join(text.splitlines())
