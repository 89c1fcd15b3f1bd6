"""Files and folders of corpora: what is there, what one has no right to see, and which audio no table names.

`Path.rglob` passes over folders that it may not read, and `Path.is_file` takes what it may not see for a traceback or for nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from lhotse import Recording

from smoe_cli.audio import RIGHTS, describe
from smoe_cli.corpora.utterance import Work
from smoe_cli.errors import DataError, MissingAudio
from smoe_cli.records import name_digest

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".opus", ".ogg")
"""What files of audio are called that libsndfile reads."""
CALL_SUFFIXES = (".flac", ".wav", ".sph")
"""Suffixes of telephone calls, the preferred one first: who had to unpack a file of the LDC puts the result beside it."""
LONGEST_NAME = 200
"""Bytes: file systems take 255, and something comes behind an id."""
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_file(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        DataError: If that may not be known.
    """
    return stat.S_ISREG(_mode(path))


def is_dir(path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        DataError: If that may not be known.
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """What a path leads to, as `stat` says; 0: to nothing."""
    try:
        return path.stat().st_mode
    except ValueError:  # a zero byte
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        raise _unseen(path, error) from error


def _unseen(path: Path, error: OSError) -> DataError:
    """Why a file or folder that may be there cannot be looked at."""
    if not isinstance(error, PermissionError):
        return DataError(f"cannot look at `{path}`: {error.strerror}", "check the disk, or bring the file back")
    barred = next((folder for folder in reversed(path.absolute().parents) if not _may_enter(folder)), path)
    return DataError(f"no right to see `{path}`: the rights of `{barred}` forbid it", RIGHTS)


def _may_enter(folder: Path) -> bool:
    try:
        os.stat(os.path.join(folder, "."))
    except OSError:
        return False
    return True


def recording_of(path: Path, recording_id: str, channels: int | None = 1) -> Recording:
    """A Recording from a file's header, not yet read.

    Args:
        channels: How many it must have; None: any number.

    Raises:
        DataError: If the file is missing, unreadable, empty or has another number of channels, or one has no right to see it.
    """
    try:
        return describe(path, recording_id, channels)
    except MissingAudio:
        # Where it may not be looked for, that is said.
        is_file(path)
        raise


def entries(folder: Path, lost: Callable[[DataError], None]) -> list[Path]:
    """What lies in a folder, sorted by name.

    Args:
        lost: Called if the folder cannot be read: nobody knows what lies in it.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        lost(_unread(error, folder))
        return []


def files_below(folder: Path, lost: Callable[[DataError], None]) -> list[Path]:
    """All files in a folder and anywhere below it, sorted; links to folders are not followed.

    Args:
        lost: Called for each folder that cannot be read.
    """
    return sorted(_walk(folder, lost))


def _walk(folder: Path, lost: Callable[[DataError], None]) -> Iterator[Path]:
    for place, _, names in os.walk(folder, onerror=lambda error: lost(_unread(error, folder))):
        yield from (Path(place, name) for name in names)


def _unread(error: OSError, folder: Path) -> DataError:
    place = error.filename or folder
    if isinstance(error, PermissionError):
        return DataError(f"no right to read folder `{place}`", RIGHTS)
    return DataError(f"cannot read folder `{place}`: {error.strerror}", "bring it back, or correct the path")


def refuse(error: DataError) -> None:
    """For who has nothing to go on with.

    Raises:
        DataError: The error.
    """
    raise error


class Named:
    """The audio that tables name: what else lies beside it is counted, for most often a table lost some of its lines.

    Memory grows by a few bytes a file.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, path: Path) -> None:
        self._seen.add(_key(path))

    def report_others(self, folders: Iterable[Path], work: Work, what: str, suffixes: Collection[str] = AUDIO_SUFFIXES) -> None:
        """Count the audio in and below folders that was not named, for a note of `smoe prepare`.

        Args:
            what: Says what does not name it, e.g. `that no row of metadata.csv names`.
            suffixes: Those of audio.
        """
        if work.dry_run:
            return
        # One that is not there is said of each file that should be in it.
        there = [folder for folder in folders if is_dir(folder)]
        first, count = None, 0
        for path in (path for folder in there for path in _walk(folder, work.lost)):
            if path.suffix.lower() in suffixes and _key(path) not in self._seen:
                first, count = path if first is None else min(path, first), count + 1
        if count:
            work.left_out[f"files of audio {what} (the first: `{first}`)"] += count


def _key(path: Path) -> bytes:
    return name_digest(os.path.abspath(path))


def can_name_a_file(name: str) -> bool:
    """Whether a file can have this name: one part of a path, without control characters, and not too long."""
    plain = Path(name).name == name and name not in ("", ".", "..")
    return plain and len(os.fsencode(name)) <= LONGEST_NAME and not has_control_characters(name)


def has_control_characters(name: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in name)
