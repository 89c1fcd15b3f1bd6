"""The part file of a decoding under way, so that one that was stopped goes on after its last whole batch.

Its first line says what decides the hypotheses; then every batch is one line, so that a line which `kill -9` cut off is
a batch that was not decoded.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import Field, TypeAdapter, ValidationError

from smoe_cli.config import DecodeSettings
from smoe_cli.errors import DataError, Interrupted
from smoe_cli.records import Hypothesis, Record
from smoe_cli.watch import Watcher

BATCH = TypeAdapter(list[Hypothesis])


class Header(Record):
    """What decides hypotheses; what was decoded under another header is of no use."""

    smoe: str = Field(description="Version.")
    model: str
    texts: str = Field(description="Digest of the tokenizer's card and the routing plan: two models can have the same weights.")
    settings: DecodeSettings
    batches: str = Field(description="Digest of all cuts in their batches.")
    utterances: int
    matmul: str = Field(description="Arithmetic, as torch calls it: measured anew by every process, so it is taken over instead.")


class Part:
    """The batches that are decoded, in order.

    Args:
        header: Under which they are decoded.
        batches: Those of an earlier call.
        file: Open at its end; None: they are only remembered.
    """

    def __init__(self, header: Header, batches: list[list[Hypothesis]], file: IO[bytes] | None) -> None:
        self.header, self.batches, self._file = header, batches, file

    @property
    def utterances(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def keep(self, batch: list[Hypothesis]) -> None:
        """Add the next batch; it then survives the end of the process."""
        if self._file is not None:
            self._file.write(BATCH.dump_json(batch) + b"\n")
            self._file.flush()
        self.batches.append(batch)


@contextmanager
def open_part(path: Path | None, header: Header, watcher: Watcher) -> Iterator[Part]:
    """Take up what an earlier call with the same header decoded, and keep what this one adds.

    Whoever has written the result removes the file.

    Args:
        path: The part file; None: nothing is kept.
        header: Of this call.
        watcher: Told what is taken up or discarded.

    Raises:
        DataError: If the file cannot be written, or another process is decoding into it.
        Interrupted: Instead of KeyboardInterrupt, saying how much is kept.
    """
    if path is None:
        yield Part(header, [], None)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise DataError(f"cannot write `{path}`: {error.strerror or error}", "check the folder's rights and the free disk space") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process is decoding the same into `{path.parent}`", "wait for it, or stop it") from None
        part = _take_up(file, header, watcher)
        try:
            yield part
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped after {part.utterances:,} of {header.utterances:,} utterances; they are saved in `{path}`",
                "run the same command again to go on from there",
            ) from None


def _take_up(file: IO[bytes], header: Header, watcher: Watcher) -> Part:
    """Read the batches of an earlier call, and cut off what cannot be used."""
    file.seek(0)
    # What follows the last line break was cut off while it was written.
    first, *lines = file.read().split(b"\n")[:-1] or [b""]
    earlier = _header(first)
    if earlier is None or earlier.model_copy(update={"matmul": header.matmul}) != header:
        if lines:
            watcher.log(f"discarding {len(lines):,} batches that were decoded with another model, other settings or other cuts")
        file.truncate(0)
        file.write(header.model_dump_json().encode() + b"\n")
        file.flush()
        return Part(header, [], file)
    part, length = Part(earlier, [], file), len(first) + 1
    for line in lines:
        try:
            part.batches.append(BATCH.validate_json(line))
        except ValidationError:
            break
        length += len(line) + 1
    file.truncate(length)
    watcher.log(f"continuing: {part.utterances:,} of {header.utterances:,} already decoded")
    return part


def _header(line: bytes) -> Header | None:
    try:
        return Header.model_validate_json(line)
    except ValidationError:
        return None
