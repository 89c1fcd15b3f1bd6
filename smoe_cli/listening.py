"""Every recording of a corpus is read to its end, once, by an executor; what was heard outlives an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from hashlib import blake2b
from pathlib import Path

from lhotse import Recording

from smoe_cli.audio import Heard, listen
from smoe_cli.errors import DataError
from smoe_cli.validation.validate import promise_of

TOGETHER = 16
"""Recordings that an executor is handed at once: on a cluster, sending one costs more than reading it."""
SOUND = Heard(whole=True)
"""One object for all that is as it should be."""


class Listener:
    """Listens to recordings, each once.

    Args:
        pool: Does the work; threads here, or a cluster's.
        log: File that keeps which recordings are sound, so that a call which was stopped goes on there. A file that changed since is
            read again. Whoever is done removes it.

    Raises:
        DataError: If the log cannot be read.
    """

    def __init__(self, pool: Executor, log: Path) -> None:
        self._pool, self._log = pool, log
        self._known: dict[bytes, Heard] = {}
        if not log.exists():
            return
        try:
            lines = log.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read `{log}`: {error}", "remove it; recordings are then read again") from error
        for line in lines:
            try:
                key, notes = json.loads(line)
                self._known[bytes.fromhex(key)] = Heard(notes=tuple(notes), whole=True) if notes else SOUND
            except (ValueError, TypeError):
                continue  # the line that was being written when the machine stopped

    @property
    def remembered(self) -> int:
        """Recordings that need not be read."""
        return len(self._known)

    def hear(self, recordings: Sequence[Recording]) -> list[Heard]:
        """What reading each to its end showed, in the same order.

        Raises:
            DataError: If the log cannot be written.
        """
        keys = [_key(recording) for recording in recordings]
        new = {key: recording for key, recording in zip(keys, recordings, strict=True) if key not in self._known}
        names, waiting = list(new), list(new.values())
        parts = [waiting[start : start + TOGETHER] for start in range(0, len(waiting), TOGETHER)]
        heard = [one for some in self._pool.map(_listen_to_all, parts) for one in some]
        self._known |= {name: one if one.problem or one.notes else SOUND for name, one in zip(names, heard, strict=True)}
        self._remember((name, one) for name, one in zip(names, heard, strict=True) if one.problem is None)
        return [self._known[key] for key in keys]

    def _remember(self, sound: Iterable[tuple[bytes, Heard]]) -> None:
        text = "".join(json.dumps([key.hex(), one.notes]) + "\n" for key, one in sound)
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DataError(f"cannot write `{self._log}`: {error.strerror}", "check the folder's rights and the free disk space") from error


def _listen_to_all(recordings: Sequence[Recording]) -> list[Heard]:
    return [listen(recording) for recording in recordings]


def _key(recording: Recording) -> bytes:
    """The same for recordings that promise the same of the same, unchanged files."""
    files = [_state(Path(source.source)) for source in recording.sources]
    return blake2b(f"{promise_of(recording)} {files}".encode(), digest_size=16).digest()


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
