"""What is known of the band of recordings beside what their spectrum says (`data.bandwidth: auto`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace

from pydantic import Field

from smoe_cli.bandwidth import UNSURE, Estimate, contradicts
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.cuts import native_bandwidth, rate_of
from smoe_cli.errors import DataError
from smoe_cli.listening import Listener, spectrum_of
from smoe_cli.records import Record
from smoe_cli.tags import Bandwidth
from smoe_cli.validation.validate import promise_of

MOST_LISTED = 1000
"""Files that a report names of each kind."""


SAYING = ("recipe", "corpus")
"""Who can say what a recording carries, besides its rate."""


class BandwidthRow(Record):
    """Utterances of a corpus whose band is known in one way, beside what their spectrum says."""

    corpus: str
    known_by: str = Field(description="`recipe`, `corpus` (of each recording), or the sampling rate.")
    known: str = Field(description="`nb`, `wb`, or `neither`.")
    estimated: str = Field(description="`nb`, `wb`, or `unsure`.")
    tagged: str
    utterances: int
    example: str = Field(description="One of them.")
    disagreeing: list[str] = Field(
        default=[], description=f"Audio of which the spectrum says otherwise than is known, at most {MOST_LISTED:,} files."
    )


def estimated(utterances: Sequence[Utterance], work: Work, listener: Listener | None = None) -> Iterator[Utterance]:
    """Yield the utterances with what the spectrum of the whole recording says of each one's channel.

    One whose channel cannot be read goes to `work.unfit`.

    Args:
        utterances: Their recordings are sound.
        work: The corpus.
        listener: Estimates each channel once in a run, and keeps that over an interruption; None: once among these utterances.
    """
    channels = {(promise_of(item.recording), item.channel): item.recording for item in utterances}
    asked = [(recording, channel) for (_, channel), recording in channels.items()]
    with ExitStack() as stack:
        results: Iterable[Estimate | DataError]
        if listener is not None:
            results = listener.estimate(asked)
        else:
            pool = stack.enter_context(ThreadPoolExecutor(work.jobs))
            results = pool.map(lambda one: spectrum_of(*one), asked)
        found: dict[tuple[str, int], Estimate | DataError] = {}
        for key, said in zip(channels, results, strict=True):
            found[key] = said
            work.progress(len(found), len(channels), f"{work.name}: bandwidth estimated")
    for item in utterances:
        said = found[promise_of(item.recording), item.channel]
        if isinstance(said, DataError):
            work.unfit(said)
        else:
            yield replace(item, estimate=said)


class Bands:
    """Every way in which a band is known, beside what was estimated and what the tag will be."""

    def __init__(self) -> None:
        self._count: Counter[tuple[str, str, str, str, str]] = Counter()
        self._example: dict[tuple[str, str, str, str, str], str] = {}
        self._disagreeing: defaultdict[tuple[str, str, str, str, str], dict[str, None]] = defaultdict(dict)

    def add(self, utterances: Iterable[Utterance], corpus: str, bands: Sequence[Bandwidth]) -> Iterator[Utterance]:
        """Count utterances with estimates, and hand them on; one that gets no tag is not counted.

        Args:
            bands: Those that the recipe has: a model at 8 kHz hears wideband recordings through a line alone.
        """
        for item in utterances:
            with suppress(DataError):
                native = native_bandwidth(item.recording, item.bandwidth, item.estimate)
                tagged = native if native in bands else Bandwidth.NB
                key = corpus, *_known(item), item.estimate.says if item.estimate is not None else UNSURE, str(tagged)
                self._count[key] += 1
                self._example.setdefault(key, item.id)
                if contradicts(key[3], key[2]) and len(self._disagreeing[key]) < MOST_LISTED:
                    self._disagreeing[key][item.recording.sources[0].source] = None
            yield item

    def rows(self) -> list[BandwidthRow]:
        """What was counted, sorted."""
        names = ("corpus", "known_by", "known", "estimated", "tagged")
        return [
            BandwidthRow(
                **dict(zip(names, key, strict=True)),
                utterances=count,
                example=self._example[key],
                disagreeing=list(self._disagreeing.get(key, ())),
            )
            for key, count in sorted(self._count.items())
        ]


def _known(item: Utterance) -> tuple[str, str]:
    """(by what, which band) before anything was estimated."""
    try:
        band = str(native_bandwidth(item.recording, item.bandwidth))
    except DataError:
        band = "neither"
    return item.bandwidth_by or f"{rate_of(item.recording)} Hz", band


def contradictions(rows: Sequence[BandwidthRow]) -> list[str]:
    """What the spectrum says against rates and recipe, or cannot say."""
    notes = []
    for row in rows:
        if row.estimated == UNSURE:
            notes.append(
                f"the spectrum of {row.utterances} utterances of `{row.corpus}` does not tell their band: "
                f"tagged {row.tagged} as the {row.known_by if row.known_by in SAYING else 'sampling rate'} says"
            )
        elif contradicts(row.estimated, row.known):
            rate = f"a sampling rate of {row.known_by}"
            says = {"recipe": f"`data.corpora.{row.corpus}.bandwidth`", "corpus": "the corpus's own word"}.get(row.known_by, rate)
            notes.append(
                f"{row.utterances} utterances of `{row.corpus}` are {row.known} by {says}, but {row.estimated} by their spectrum, "
                f"e.g. `{row.example}`: tagged {row.tagged}"
            )
    return notes
