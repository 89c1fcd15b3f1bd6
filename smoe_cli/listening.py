"""Every recording of a corpus is read to its end, once, by an executor; what was heard outlives an interruption."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from lhotse import Recording

from smoe_cli.audio import SOUND, Heard, listen, packed, read_samples, state_of
from smoe_cli.bandwidth import Estimate, estimate_bandwidth
from smoe_cli.errors import DataError
from smoe_cli.tags import Bandwidth
from smoe_cli.validation.validate import promise_of

AnyOne = TypeVar("AnyOne")
TOGETHER, PARTS_EACH = 16, 2
"""Recordings that an executor is handed at most at once: on a cluster, sending one costs more than reading it. Of few and long ones
everybody who reads is to have some, and more than one part of them, for one may be much longer than another."""
WHOLE_S, PARTS, PART_S = 300.0, 30, 10.0
"""A longer recording is not estimated as a whole, but from so many parts of it, evenly over its length: half a day in memory is 3 GB."""


class Listener:
    """Listens to recordings, each once.

    Args:
        pool: Does the work; threads here, or a cluster's.
        readers: How many recordings it reads at once.
        log: File that keeps which recordings are sound, and what was estimated of them, so that a call which was stopped goes on there.
            A file that changed since is read again. Whoever is done removes it.

    Raises:
        DataError: If the log cannot be read.
    """

    def __init__(self, pool: Executor, readers: int, log: Path) -> None:
        self._pool, self.readers, self._log = pool, readers, log
        self._known: dict[bytes, Heard] = {}
        self._estimates: dict[bytes, Estimate] = {}
        # One object for all that are equal: there are a few thousand different ones, however many channels.
        self._different: dict[Estimate, Estimate] = {}
        if not log.exists():
            return
        try:
            with log.open(encoding="utf-8") as file:
                for line in file:
                    self._recall(line)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read `{log}`: {error}", "remove it; recordings are then read again") from error

    def _recall(self, line: str) -> None:
        try:
            key, said = json.loads(line)
            if isinstance(said, dict):
                self._keep(bytes.fromhex(key), Estimate(int(said["hz"]), Bandwidth(said["band"]), float(said["confidence"])))
            else:
                notes, dead = (tuple(one for one in said if isinstance(one, str)), tuple(one for one in said if isinstance(one, int)))
                still = packed(one for one in said if isinstance(one, list))
                self._known[bytes.fromhex(key)] = Heard(notes=notes, whole=True, dead=dead, still=still) if said else SOUND
        except (ValueError, TypeError, KeyError):
            pass  # the line that was being written when the machine stopped

    def _keep(self, key: bytes, said: Estimate) -> None:
        self._estimates[key] = self._different.setdefault(said, said)

    @property
    def remembered(self) -> int:
        """Recordings that need not be read."""
        return len(self._known)

    def forget(self) -> None:
        """Make room: no more recordings will come. The log stays."""
        self._known.clear()
        self._estimates.clear()

    def hear(self, recordings: Sequence[Recording]) -> list[Heard]:
        """What reading each to its end showed, in the same order; remembered as soon as it is known.

        Raises:
            DataError: If the log cannot be written.
        """
        keys = [_key(recording) for recording in recordings]
        new: dict[bytes, Recording] = {}
        for key, recording in zip(keys, recordings, strict=True):
            if key not in self._known:
                new.setdefault(key, recording)  # errors name the first
        parts = self._in_parts(list(new.items()))
        for part, heard in zip(parts, self._pool.map(_listen_to_all, [[one for _, one in part] for part in parts]), strict=True):
            some = {key: SOUND if one == SOUND else one for (key, _), one in zip(part, heard, strict=True)}
            self._known |= some
            # Numbers among the notes are channels, lists are stretches.
            self._remember((key, (*one.notes, *one.dead, *one.stretches)) for key, one in some.items() if one.problem is None)
        return [self._known[key] for key in keys]

    def estimate(self, channels: Sequence[tuple[Recording, int]]) -> Iterator[Estimate | DataError]:
        """Yield what the spectrum of each (recording, channel) says, in the same order; remembered as soon as it is known.

        Raises:
            DataError: If the log cannot be written. A channel that cannot be read gives its error instead of an estimate.
        """
        keys = [_key(recording, str(channel)) for recording, channel in channels]
        new = {key: one for key, one in zip(keys, channels, strict=True) if key not in self._estimates}
        parts = self._in_parts(list(new.items()))
        results = iter(self._pool.map(_estimate_all, [[one for _, one in part] for part in parts]))
        waiting, failed = iter(parts), dict[bytes, DataError]()
        for key in keys:
            while key not in self._estimates and key not in failed:
                some = {name: said for (name, _), said in zip(next(waiting), next(results), strict=True)}
                failed |= {name: said for name, said in some.items() if isinstance(said, DataError)}
                good = {name: said for name, said in some.items() if isinstance(said, Estimate)}
                for name, one in good.items():
                    self._keep(name, one)
                self._remember(
                    (name, {"hz": said.bandwidth_hz, "band": said.band, "confidence": said.confidence}) for name, said in good.items()
                )
            yield failed[key] if key in failed else self._estimates[key]

    def have_done(self, work: Callable[[list[AnyOne]], object], some: Sequence[AnyOne]) -> None:
        """Have something done to all of these by those who read; it raises nothing."""
        deque(self._pool.map(work, self._in_parts(some)), maxlen=0)

    def _in_parts(self, some: Sequence[AnyOne]) -> list[list[AnyOne]]:
        size = min(TOGETHER, -(-len(some) // (PARTS_EACH * self.readers)) or 1)
        return [list(some[start : start + size]) for start in range(0, len(some), size)]

    def _remember(self, known: Iterable[tuple[bytes, Any]]) -> None:
        text = "".join(json.dumps([key.hex(), said]) + "\n" for key, said in known)
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DataError(f"cannot write `{self._log}`: {error.strerror}", "check the folder's rights and the free disk space") from error


def spectrum_of(recording: Recording, channel: int) -> Estimate | DataError:
    """What the spectrum of a channel says; instead, why it cannot be read."""
    rest_s = recording.duration - PART_S
    # Of a long recording the parts; they are not joined, for a joint is a click.
    parts = [(rest_s * part / (PARTS - 1), PART_S) for part in range(PARTS)] if recording.duration > WHOLE_S else [None]
    what = f"channel {channel} of audio `{recording.sources[0].source}`"
    try:
        samples = [read_samples(recording, what, channel, part, "mend or remove it")[0] for part in parts]
    except DataError as error:
        return error
    return estimate_bandwidth(samples, recording.sampling_rate)


def _estimate_all(channels: Sequence[tuple[Recording, int]]) -> list[Estimate | DataError]:
    return [spectrum_of(recording, channel) for recording, channel in channels]


def _listen_to_all(recordings: Sequence[Recording]) -> list[Heard]:
    return [listen(recording) for recording in recordings]


def _key(recording: Recording, what: str = "") -> bytes:
    """The same for recordings that promise the same of the same, unchanged files."""
    files = [state_of(Path(source.source)) for source in recording.sources]
    return blake2b(f"{promise_of(recording)} {files}{what}".encode(), digest_size=16).digest()
