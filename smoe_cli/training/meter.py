"""How fast training goes, and how much of that time it waits for data."""

from __future__ import annotations

import time


class Meter:
    """Speed since it was made or reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._started = self._asked = time.monotonic()
        self._frames, self._steps, self._waited = 0, 0, 0.0

    def came(self) -> None:
        """The batches of a step have come: what has gone by since the step before was waiting."""
        self._waited += time.monotonic() - self._asked

    def done(self, frames: int) -> None:
        """A step on so many frames is done."""
        self._frames += frames
        self._steps += 1
        self._asked = time.monotonic()

    def __str__(self) -> str:
        """As it is shown."""
        return f"{self.frames_per_s:,.0f} frames/s  waiting {self.waiting_share:.0%}"

    @property
    def frames_per_s(self) -> float:
        return self._frames / self._elapsed

    @property
    def waiting_share(self) -> float:
        """Share of the time in which there was nothing to compute on."""
        return self._waited / self._elapsed

    @property
    def step_s(self) -> float:
        """Seconds of one step, 0 before the first."""
        return self._elapsed / self._steps if self._steps else 0.0

    @property
    def _elapsed(self) -> float:
        return max(1e-9, time.monotonic() - self._started)
