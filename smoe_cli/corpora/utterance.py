"""What every corpus yields: one recorded sentence, its transcript and its translations."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lhotse import MonoCut, Recording

from smoe_cli.bandwidth import Estimate
from smoe_cli.corpus_settings import CorpusSettings
from smoe_cli.errors import DataError
from smoe_cli.tags import Bandwidth

ASSUMED_LANGUAGE = "en"
"""What is taken to be spoken where neither the corpus nor its settings say."""
UNFORESEEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Python raises on values that a program did not expect. Not what says that the program itself is wrong, or the machine ill."""
PLACE = re.compile(r"`[^`]*` line \d+")


@dataclass(frozen=True)
class Utterance:
    """One recorded sentence.

    Attributes:
        id: Unique in its corpus.
        recording: The audio, not yet resampled; opened only when needed.
        split: As the corpus names it; the recipe may rename it.
        speaker: Who speaks; empty when unknown.
        language: Language that is spoken; empty: the corpus does not say.
        transcript: What is said; empty where only other tasks than transcription are to be learned.
        translations: Target language -> right answers, the first of which is trained on.
        subset: Named part scored apart, e.g. a voice that is never trained on.
        synthetic: Whether a machine spoke it.
        start_s, duration_s: The part of the recording; None: to its end.
        channel: Channel of the recording.
        bandwidth: What the recording carries, where its sampling rate does not tell.
        bandwidth_by: Who says so: `recipe` or `corpus`.
        estimate: What its spectrum says, where that was asked for.
        tags: Axis of the recipe's own -> value.
        labels: What is known of the utterance, e.g. `intent` -> value; what a task of kind `classify` answers with.
        language_assumed: Whether nobody named the language.
        source: Where the corpus says all this, e.g. the line of its table; empty where there is no such place.
        prepared: The one cut that it gives, where it was prepared and tagged before; it is taken as it is.
    """

    id: str
    recording: Recording
    split: str
    speaker: str
    language: str
    transcript: str
    translations: dict[str, list[str]] = field(default_factory=dict)
    subset: str = ""
    synthetic: bool = False
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int = 0
    bandwidth: Bandwidth | None = None
    bandwidth_by: str = ""
    estimate: Estimate | None = None
    tags: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    language_assumed: bool = False
    source: str = ""
    prepared: MonoCut | None = None

    def placed(self, split: str, settings: CorpusSettings) -> Utterance:
        """The same utterance under the recipe's name of its split, and with what the recipe says of the whole corpus."""
        renamed, said = settings.languages, settings.bandwidth if isinstance(settings.bandwidth, Bandwidth) else None
        return replace(
            self,
            split=split,
            subset=self.subset or settings.subset,
            bandwidth=self.bandwidth or said,
            bandwidth_by="corpus" if self.bandwidth else "recipe" if said else "",
            language=renamed.get(self.language, self.language) or settings.language or ASSUMED_LANGUAGE,
            translations={renamed.get(lang, lang): texts for lang, texts in self.translations.items()},
            language_assumed=not (self.language or settings.language),
            tags=settings.tags | self.tags,
            labels=settings.labels | self.labels,
        )


def placed(error: DataError, where: str) -> DataError:
    """The same error with the place in its message, unless it names one."""
    known = not where or where in error.message or PLACE.match(error.message)
    return error if known else type(error)(f"{where}: {error.message}", error.hint)


@contextmanager
def foreseen(where: str = "") -> Iterator[None]:
    """While one row is read: what nobody foresaw that a row could hold becomes a problem of that row, and the others are read.

    It is a fault all the same, and says so; where it is, it says too, as there is no traceback.

    Args:
        where: Where the corpus has the row, if the caller does not say it.

    Raises:
        DataError: Instead of anything in `UNFORESEEN`.
    """
    try:
        yield
    except UNFORESEEN as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno})"
        raise DataError(
            f"{where}{where and ': '}smoe failed unexpectedly on this row: {said}",
            "this is a fault in smoe, whatever the row holds: please open an issue where you got it, with the row and this line; "
            "until it is mended, correct or remove the row",
        ) from error


@dataclass(frozen=True)
class Work:
    """Where and how a corpus is prepared.

    Attributes:
        name: The corpus's name in the recipe.
        root: Folder that relative source paths start from.
        audio_dir: Folder for audio that the corpus must make (synthesis, joined segments).
        jobs: Processes or threads that may run at once.
        progress: Called with (done, total, what) as work goes on.
        problems: What is wrong with single utterances, which are then not yielded.
        losses: What is wrong with files and folders that more than one utterance hangs on.
        left_out: What the recipe, or the corpus's own rules, leave out -> how often; `prepare` says so in a note.
        notes: What else it says in a note.
        dry_run: Whether all is only looked for, for `smoe prepare --dry-run`: of tables the header is read, and nothing is written.
    """

    name: str
    root: Path
    audio_dir: Path
    jobs: int = 1
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    problems: list[DataError] = field(default_factory=list)
    losses: list[DataError] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    dry_run: bool = False

    def unfit(self, problem: DataError, where: str = "") -> None:
        """Leave out an utterance and go on, so that all that is wrong can be said at once; `prepare` then writes nothing.

        Args:
            where: Where the corpus says what is wrong, as in `Utterance.source`.
        """
        self.problems.append(placed(problem, where))

    def lost(self, problem: DataError) -> None:
        """Go on without what would have given several utterances, or nobody knows how many: `max_unfit` never lets that go."""
        self.losses.append(problem)
