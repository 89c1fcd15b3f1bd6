"""How long work reports itself: one narrow interface, drawn by whoever calls (terminal, notebook, nothing)."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Receives progress and log lines; must return quickly."""

    def log(self, message: str) -> None:
        """Say one line that matters afterwards."""

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Say how far a named piece of work is; `done == total` ends it.

        Args:
            what: Name of the work, stable while it goes on, e.g. `train`.
            done: Units done.
            total: Units in all.
            detail: Short state to show beside the bar, e.g. `loss 2.31  410 frames/s`.
        """


class Silent:
    """A watcher that shows nothing."""

    def log(self, message: str) -> None:
        del message

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        del what, done, total, detail
