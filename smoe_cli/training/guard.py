"""One process per training folder, and stopping where nothing is lost instead of anywhere."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from smoe_cli.errors import SmoeError
from smoe_cli.training.ranks import Ranks


class Stopped(Exception):
    """Some process was asked to stop; all of them leave what they do."""


class Stop:
    """Whether the processes of a run are to stop, which they find out together.

    Args:
        flag: Raised when this process is asked to.
        ranks: The processes.
    """

    def __init__(self, flag: threading.Event, ranks: Ranks) -> None:
        self.flag, self.ranks = flag, ranks

    def heed(self, busy: bool = True) -> bool:
        """Leave if any process was asked to stop; every process must come here.

        Args:
            busy: Whether this process will come here again for the same work.

        Returns:
            Whether any process will.

        Raises:
            Stopped: On all processes, if any was asked to.
            SmoeError: If a process has gone.
        """
        asked, more = self.ranks.total(self.flag.is_set(), busy)
        if asked:
            raise Stopped
        return more > 0


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM raise a flag that is looked at between the parts of all that takes long; a second SIGINT stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_held: list[IO[str]] = []
"""The locks of this process, which one that it forks has too, for as long as it lives."""


def leave_locks() -> None:
    """In a process that was forked: the locks are its parent's alone, and end with it."""
    while _held:
        _held.pop().close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process per folder; the lock ends with the process, however that ends.

    Raises:
        SmoeError: If another process has it, or the file system has no locks.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SmoeError(f"another process is training in `{path.parent}`", "wait for it, stop it, or set another exp_dir") from None
        except OSError as error:
            raise SmoeError(
                f"`{path}` cannot be locked, so that no second process trains in its folder: {error.strerror or error}",
                "set exp_dir to a folder on a file system that has locks, or mount this one with them",
            ) from error
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)
