"""What is known of the band of recordings beside what their spectrum says (`data.bandwidth: auto`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from pydantic import Field

from smoe_cli.audio import load
from smoe_cli.bandwidth import Estimate, estimate_bandwidth
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.cuts import native_bandwidth
from smoe_cli.errors import DataError
from smoe_cli.records import Record
from smoe_cli.validation.validate import promise_of


class BandwidthRow(Record):
    """Utterances of a corpus whose band is known in one way, beside what their spectrum says."""

    corpus: str
    known_by: str = Field(description="`recipe`, or the sampling rate.")
    known: str = Field(description="`nb`, `wb`, or `neither`.")
    estimated: str = Field(description="`nb`, `wb`, or `unsure`.")
    tagged: str
    utterances: int
    example: str = Field(description="One of them.")


def estimated(utterances: Sequence[Utterance], work: Work) -> Iterator[Utterance]:
    """Yield the utterances with what the spectrum of the whole recording says of each one's channel.

    One whose channel cannot be read goes to `work.unfit`.
    """
    channels = {(promise_of(item.recording), item.channel): item.recording for item in utterances}
    found: dict[tuple[str, int], Estimate | DataError] = {}

    def estimate(key: tuple[str, int]) -> Estimate | DataError:
        try:
            samples_CN = load(channels[key], key[1])
        except Exception as error:  # Lhotse wraps every reader's own errors
            return DataError(f"cannot read channel {key[1]} of audio `{channels[key].sources[0].source}`: {error}", "mend or remove it")
        return estimate_bandwidth(samples_CN[0], channels[key].sampling_rate)

    with ThreadPoolExecutor(work.jobs) as pool:
        for key, said in zip(channels, pool.map(estimate, channels), strict=True):
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

    def add(self, utterances: Iterable[Utterance], corpus: str) -> Iterator[Utterance]:
        """Count utterances with estimates, and hand them on; one that gets no tag is not counted."""
        for item in utterances:
            with suppress(DataError):
                tagged = native_bandwidth(item.recording, item.bandwidth, item.estimate)
                key = corpus, *_known(item), _said(item.estimate), str(tagged)
                self._count[key] += 1
                self._example.setdefault(key, item.id)
            yield item

    def rows(self) -> list[BandwidthRow]:
        """What was counted, sorted."""
        names = ("corpus", "known_by", "known", "estimated", "tagged")
        return [
            BandwidthRow(**dict(zip(names, key, strict=True)), utterances=count, example=self._example[key])
            for key, count in sorted(self._count.items())
        ]


def _known(item: Utterance) -> tuple[str, str]:
    """(by what, which band) before anything was estimated."""
    try:
        band = str(native_bandwidth(item.recording, item.bandwidth))
    except DataError:
        band = "neither"
    return "recipe" if item.bandwidth else f"{item.recording.sampling_rate} Hz", band


def _said(estimate: Estimate | None) -> str:
    return str(estimate.band) if estimate is not None and estimate.reliable else "unsure"


def contradictions(rows: Sequence[BandwidthRow]) -> list[str]:
    """What the spectrum says against rates and recipe, or cannot say."""
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
