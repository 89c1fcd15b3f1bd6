"""What a pack of a split has finished so far, on disk: a call that was stopped goes on with the next shard."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import Field, ValidationError

from smoe_cli.errors import ConfigError
from smoe_cli.records import Record, flush, put_folder

STATE, SHARDS, WRITING = "state.jsonl", "shards", "writing"


class Shard(Record):
    """One finished shard."""

    number: int
    cuts: int
    seconds: float
    files: dict[str, int] = Field(description="File -> bytes.")


class Part:
    """The folder `.SPLIT.part`: finished shards, and a line about each of them, which is written last.

    A shard without a line, or whose files have another length than its line says, is none. A shard is written in a folder of its own,
    flushed to disk and renamed; so is the whole split in the end.

    Args:
        folder: Where the split goes.
        made: What it is made from and how; shards of another kind are thrown away.

    Attributes:
        done: Number of a shard -> what is known of it.

    Raises:
        ConfigError: If the folder has files that no pack wrote, or another process packs into it.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.target = folder.absolute()
        self.path = self.target.with_name(f".{folder.name}.part")
        self.shards = self.path / SHARDS
        self.done: dict[int, Shard] = {}
        self._made, self._lock = made, threading.Lock()
        self._file: IO[str] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Only one process at a time; a part without any finished shard is removed at the end, as is one that became the split."""
        self.path.mkdir(parents=True, exist_ok=True)
        if strange := [path for path in self.path.iterdir() if path.name.partition(".")[0] not in (SHARDS, WRITING, "state", "lock")]:
            raise ConfigError(f"`{strange[0]}` is there already, and `smoe pack` did not write it", "name a new folder with --out")
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another process packs into `{self.target}`", "wait for it, stop it, or name another --out") from None
            self._go_on()
            try:
                with (self.path / STATE).open("a", encoding="utf-8") as self._file:
                    yield
            finally:
                self._file = None
                if not self.done or not self.shards.exists():
                    shutil.rmtree(self.path, ignore_errors=True)

    def _go_on(self) -> None:
        """Find what is finished, and remove what is not."""
        for left in self.path.glob(f"{WRITING}.*"):
            shutil.rmtree(left)
        lines: list[str] = []
        with suppress(FileNotFoundError, UnicodeDecodeError):
            lines = (self.path / STATE).read_text(encoding="utf-8").splitlines()
        if _tree(lines[0] if lines else "") == self._made:
            for line in lines[1:]:
                with suppress(ValidationError):  # the line that was being written when the machine stopped
                    shard = Shard.model_validate_json(line)
                    if all(_size(self.shards / name) == size for name, size in shard.files.items()):
                        self.done[shard.number] = shard
        self.shards.mkdir(exist_ok=True)
        known = {name for shard in self.done.values() for name in shard.files}
        for path in self.shards.iterdir():
            if path.name not in known:
                path.unlink()
        whole = [json.dumps(self._made), *(shard.model_dump_json() for shard in self.done.values())]
        (self.path / f"{STATE}.new").write_text("\n".join(whole) + "\n", encoding="utf-8")
        flush(self.path / f"{STATE}.new")
        (self.path / f"{STATE}.new").replace(self.path / STATE)

    @contextmanager
    def writing(self, number: int) -> Iterator[Path]:
        """An empty folder for the files of a shard; it is gone after the block."""
        folder = self.path / f"{WRITING}.{number}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, number: int, folder: Path, cuts: int, seconds: float) -> None:
        """Keep a shard that is whole; for several threads at once.

        Args:
            number: Of the shard.
            folder: Has its files.
            cuts, seconds: What it holds.
        """
        files = sorted(folder.iterdir())
        for path in files:
            flush(path)
        shard = Shard(number=number, cuts=cuts, seconds=seconds, files={path.name: path.stat().st_size for path in files})
        for path in files:
            path.replace(self.shards / path.name)
        flush(self.shards)
        with self._lock:
            assert self._file is not None
            self._file.write(shard.model_dump_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.done[number] = shard

    def put(self) -> None:
        """Let the shards be the split, in the place of what was there before."""
        put_folder(self.shards, self.target)


def _tree(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _size(path: Path) -> int:
    """Bytes of a file; -1: there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
