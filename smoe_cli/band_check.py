"""What is known of the band of recordings beside what their spectrum says (`data.bandwidth: auto`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from pydantic import Field

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
            samples_CN = channels[key].load_audio(channels=key[1])
        except Exception as error:  # Lhotse wraps every reader's own errors
            return DataError(f"cannot read channel {key[1]} of audio `{channels[key].sources[0].source}`: {error}", "mend or remove it")
        return estimate_bandwidth(np.asarray(samples_CN[0]), channels[key].sampling_rate)

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


def compared(utterances: Sequence[Utterance], corpus: str) -> list[BandwidthRow]:
    """Every way in which a band is known, beside what was estimated and what the tag will be; what gets no tag is left out."""
    rows: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for item in utterances:
        assert item.estimate is not None
        try:
            tagged = native_bandwidth(item.recording, item.bandwidth, item.estimate)
        except DataError:
            continue
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
