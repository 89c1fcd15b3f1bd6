"""Taking audio out of tar archives that others made: an archive is data, and says neither what is run nor where anything is written."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from smoe_cli.corpora.files import AUDIO_SUFFIXES
from smoe_cli.errors import DataError
from smoe_cli.manifests import read_object
from smoe_cli.records import whole_file

LARGEST_AUDIO = 4 * 2**30
"""Bytes of one recording: twelve hours of uncompressed stereo at 24 kHz."""
LARGEST_TEXT = 4 * 2**20
"""Bytes of a recording's description, and of any header: thousands of times what one takes."""
CHUNK = 2**20
TARFILE_RAISES = (tarfile.TarError, OSError, EOFError, ValueError, IndexError, KeyError, TypeError, OverflowError)
"""What `tarfile` raises on archives that are damaged, or made to confuse it."""
CURE = "bring back the whole archive, or pack it again"


class Unwritable(DataError):
    """Audio that cannot be written: no other can be either, so nothing more is tried."""


class _Bounded:
    """A file that reads no more at once than a header takes: an archive says how long its own headers are."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_TEXT:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self.file.read(size)


class Archive:
    """One tar archive of a Shar folder: for each cut its audio and, as JSON, the description of it.

    Lhotse's own reader is not used: it holds whole recordings in memory, follows links, believes any manifest that it finds, and stops
    in silence where cuts and archive differ in number.

    Several threads may take audio out of it at the same time.

    Attributes:
        audio: Cut's id -> the member with its audio; None: the cut has none.
        problems: What cannot be used in it, a member each.
        broken: Why it could not be read to its end, if so.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        stat = path.stat()
        self._size = stat.st_size
        self._identity = f"{path.resolve()}\t{stat.st_size}\t{stat.st_mtime_ns}"
        self.audio: dict[str, tarfile.TarInfo | None] = {}
        self.problems: list[DataError] = []
        self.broken: DataError | None = None
        self._described: dict[str, tarfile.TarInfo] = {}
        for member in self._members():
            try:
                self._take(member)
            except DataError as error:
                self.problems.append(error)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            # Plain archives only: what is not packed cannot unpack to more than it is. The stubs of `tarfile` ask for a whole file; it
            # calls no more of one than `_Bounded` has.
            with tarfile.open(fileobj=_Bounded(self._file), mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    yield member
        except TARFILE_RAISES as error:
            packed = "; packed archives are not read: unpack it to a plain `.tar`" if not self.audio else ""
            self.broken = DataError(f"cannot read archive `{self.path}`: {error}", CURE + packed)

    def _take(self, member: tarfile.TarInfo) -> None:
        name, where = PurePosixPath(member.name), f"`{self.path}`: member `{member.name}`"
        if member.isdir():
            return
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{where} is no plain file, but a link, a device or the like", "leave it out; archives hold audio and nothing else"
            )
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"{where} leads out of the archive's folder", "pack it again under a name without `..` and without `/` in front"
            )
        if member.offset_data + member.size > self._size:
            raise DataError(f"{where} claims {member.size:,} bytes, and the archive ends before", CURE)
        limit = LARGEST_TEXT if name.suffix == ".json" else LARGEST_AUDIO
        if member.size > limit:
            raise DataError(f"{where} has {member.size:,} bytes; at most {limit:,} are read", "split the recording, or leave it out")
        key = str(name.parent / name.stem)
        if name.suffix == ".nometa":
            return
        table: dict[str, Any] = self._described if name.suffix == ".json" else self.audio
        if key in table:
            raise DataError(f"{where} occurs twice", "pack it again: each cut has its own audio")
        table[key] = None if name.suffix == ".nodata" else member

    def description(self, cut_id: str) -> dict[str, Any]:
        """What the archive says of a cut's audio.

        Raises:
            DataError: If it says nothing, or what is no JSON object.
        """
        member = self._described.get(cut_id)
        if member is None:
            raise DataError(f"`{self.path}` has no description `{cut_id}.json` of the audio", CURE)
        return read_object(self._part(member, 0, member.size), f"`{self.path}`: member `{member.name}`")

    def take_out(self, cut_id: str, folder: Path) -> Path:
        """A cut's audio as a file of its own, written whole or not at all; what was taken out before is not written again.

        Its name comes from the archive's place, size and time, never from a name in the archive.

        Raises:
            DataError: If the archive has no such audio, or breaks off.
            Unwritable: If the folder cannot be written or the disk is full.
        """
        member = self.audio.get(cut_id)
        if member is None:
            raise DataError(f"cut `{cut_id}` has no audio in `{self.path}`", "bring back the archive of this manifest, or remove the cut")
        # Any other file is recognised by its content: some suffixes would make a reader start a program.
        suffix = PurePosixPath(member.name).suffix.lower()
        name = hashlib.sha256(f"{self._identity}\t{member.offset_data}\t{member.size}".encode()).hexdigest()[:32]
        target = folder / name[:2] / (name + (suffix if suffix in AUDIO_SUFFIXES else ""))
        if target.is_file() and target.stat().st_size == member.size:
            return target
        try:
            with whole_file(target) as file:
                for block in self._blocks(member):
                    file.write(block)
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise Unwritable(error.message, error.hint) from error
            raise
        return target

    def _blocks(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """The bytes of a member, a bounded number at a time."""
        done = 0
        while done < member.size:
            block = self._part(member, done, min(CHUNK, member.size - done))
            if not block:
                raise DataError(f"`{self.path}` breaks off in member `{member.name}`", CURE)
            yield block
            done += len(block)

    def _part(self, member: tarfile.TarInfo, start: int, size: int) -> bytes:
        """Bytes of a member, read from their own place: the file's position is everybody's."""
        try:
            return os.pread(self._file.fileno(), size, member.offset_data + start)
        except OSError as error:
            raise DataError(f"cannot read `{self.path}` in member `{member.name}`: {error.strerror}", CURE) from None


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Read the table of an archive, and keep it open.

    Raises:
        DataError: If there is no such file. What is damaged in it is among its problems.
    """
    with archive_file(path) as file:
        yield Archive(path, file)


def archive_file(path: Path) -> IO[bytes]:
    """An archive, opened and not read.

    Raises:
        DataError: If there is no such file.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"no archive `{path}`: {error.strerror}", "bring it back, or remove its manifest of cuts") from error
