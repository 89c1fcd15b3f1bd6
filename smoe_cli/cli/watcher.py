"""Progress on stderr: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from smoe_cli.cli.console import console, harmless

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from smoe_cli.watch import Watcher

LINE_EVERY_S = 10.0
REFRESH_PER_S = 4
"""Redrawing costs time of the process that trains; four a second still looks alive."""
BAR_WIDTH = 30
TIMES_WIDTH = len("0:00:00 left 0:00:00") + 4
"""With the spaces between the columns."""


def speaks() -> bool:
    """Whether this process prints results: of those that a launcher such as torchrun starts, the first one."""
    return int(os.environ.get("WORLD_SIZE") or 1) == 1 or os.environ.get("RANK") == "0"


def complains(error: Exception) -> bool:
    """Whether this process prints an error. Most are those of all: of many processes on one machine, the first one says them."""
    return speaks() or os.environ.get("LOCAL_RANK", "0") == "0" or getattr(error, "own", False)


@contextmanager
def open_watcher() -> Iterator[Watcher]:
    """Show progress on stderr as long as the block runs."""
    if not sys.stderr.isatty() or not speaks() or os.environ.get("TERM", "") in {"dumb", ""}:
        yield LineWatcher(sys.stderr)
        return
    # A stream of its own: who sends stderr elsewhere while others work, as readers of corpora do, takes no bar along.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", 1, sys.stderr.encoding, sys.stderr.errors) as own, _bars(own) as progress:
        yield BarWatcher(progress)


@dataclass
class _Work:
    started_s: float
    first_done: float


class LineWatcher:
    """Whole lines without control characters, for log files: at the start and the end of work, and at most every 10 s.

    Args:
        stream: Where to write.
        clock: Seconds from any origin; tests pass their own.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._works: dict[str, _Work] = {}
        self._said_s = float("-inf")

    def log(self, message: str) -> None:
        print(harmless(message), file=self._stream, flush=True)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        now_s = self._clock()
        starts, ends = what not in self._works, done >= total
        work = self._works.setdefault(what, _Work(now_s, done))
        if ends:
            del self._works[what]
        if starts or ends or now_s - self._said_s >= LINE_EVERY_S:
            self._said_s = now_s
            self.log(_line(what, done, total, detail, now_s - work.started_s, done - work.first_done))


class BarWatcher:
    """One bar for each piece of work under way; a finished one leaves its last state as a line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, tuple[TaskID, float]] = {}

    def log(self, message: str) -> None:
        self._progress.console.print(harmless(message), soft_wrap=True)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        if what not in self._bars:
            bar = self._progress.add_task(harmless(what, breaks=False), total=total, completed=int(done), count="", detail="")
            self._bars[what] = bar, time.monotonic()
        bar, started_s = self._bars[what]
        self._progress.update(bar, total=total, completed=done, count=_count(done, total), detail=harmless(detail, breaks=False))
        if done >= total:
            del self._bars[what]
            self._progress.remove_task(bar)
            self.log(_line(what, done, total, detail, time.monotonic() - started_s, 0.0))


def _bars(stream: IO[str]) -> Progress:
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress_bar import ProgressBar
    from rich.table import Column
    from rich.text import Text

    screen = console(stream)

    class Bar(BarColumn):
        """As wide as the texts beside it leave room for: on a narrow terminal it goes first."""

        def render(self, task: Task) -> ProgressBar:
            texts = task.description, task.fields["count"], task.fields["detail"]
            bar = super().render(task)
            bar.width = max(0, min(BAR_WIDTH, screen.width - TIMES_WIDTH - sum(map(len, texts))))
            return bar

    class Detail(TextColumn):
        """Cut where the line ends. Its column may wrap: those that may not are the ones that rich leaves whole."""

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap = True
            return text

    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False, table_column=Column(no_wrap=True))

    return Progress(
        text("{task.description}"),
        Bar(),
        text("{task.fields[count]}"),
        TimeElapsedColumn(Column(no_wrap=True)),
        text("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        Detail("{task.fields[detail]}", markup=False, table_column=Column(overflow="ellipsis")),
        console=screen,
        transient=True,
        refresh_per_second=REFRESH_PER_S,
        # Results are printed after the bars are gone; stdout may be a file, which a bar must not reach.
        redirect_stdout=False,
    )


def _line(what: str, done: float, total: float, detail: str, elapsed_s: float, gained: float) -> str:
    left = f", left {_clock_text(elapsed_s * (total - done) / gained)}" if gained > 0 and done < total else ""
    return f"{what}  {_count(done, total)}  {_clock_text(elapsed_s)}{left}" + (f"  {detail}" if detail else "")


def _count(done: float, total: float) -> str:
    digits = 0 if float(total).is_integer() and float(done).is_integer() else 1
    return f"{done:,.{digits}f}/{total:,.{digits}f}"


def _clock_text(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
