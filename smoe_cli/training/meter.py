"""How fast training goes, and how much of that time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Meter:
    """Speed since it was made or reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._started = time.monotonic()
        self._frames, self._steps, self._waited = 0, 0, 0.0
        self._lap = self._started, 0, 0.0

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; how long each takes to come is waiting, and nothing else is."""
        coming = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(coming)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def done(self, frames: int) -> None:
        """A step on so many frames is done."""
        self._frames += frames
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """Frames per second and the share of waiting since the last lap, which ends now."""
        before, self._lap = self._lap, (time.monotonic(), self._frames, self._waited)
        elapsed, frames, waited = (now - then for now, then in zip(self._lap, before, strict=True))
        return {"frames_per_s": frames / max(1e-9, elapsed), "waiting_share": waited / max(1e-9, elapsed)}

    def __str__(self) -> str:
        """As it is shown."""
        return f"{self.frames_per_s:,.0f} frames/s  waiting {self.waiting_share:.0%}"

    @property
    def frames_per_s(self) -> float:
        return self._frames / self._elapsed

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the next batches had not come."""
        return self._waited / self._elapsed

    @property
    def step_s(self) -> float:
        """Seconds of one step, 0 before the first."""
        return self._elapsed / self._steps if self._steps else 0.0

    @property
    def _elapsed(self) -> float:
        return max(1e-9, time.monotonic() - self._started)
