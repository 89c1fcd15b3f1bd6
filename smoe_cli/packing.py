"""Prepared manifests -> Lhotse Shar: a few large files to be read from their beginning, for clusters and object stores."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from lhotse import MonoCut
from lhotse.shar import SharWriter
from pydantic import Field, ValidationError

from smoe_cli.corpora.files import has_control_characters
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.manifests import read_lines, read_manifest
from smoe_cli.pack_part import Part
from smoe_cli.preparation import usable_cores
from smoe_cli.records import Record, file_digest, write_json
from smoe_cli.validation.validate import split_of
from smoe_cli.watch import Watcher

CARD = "pack.json"
"""In the folder of each split: what it was packed from. It is written last, so what has one is whole."""
Codec = Literal["flac", "opus"]
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Card(Record):
    """What one split was packed from and into."""

    made_from: str = Field(description="SHA-256 of the manifest.")
    audio: Codec
    shard_size: int
    cuts: int
    hours: float
    shards: dict[str, int] = Field(description="File -> bytes.")


class Packed(Record):
    """One split of a pack."""

    split: str
    cuts: int
    hours: float
    shards: int
    bytes: int
    kept: bool = Field(description="Whether an earlier, finished pack of the same manifest was left as it is.")


class PackReport(Record):
    """What `smoe pack` wrote."""

    folder: Path = Field(description="In it, one folder per split: `path` of a corpus of type `shar`.")
    audio: Codec
    splits: list[Packed]


def pack(manifests: Sequence[Path], out: Path, shard_size: int, audio: Codec, jobs: int, watcher: Watcher) -> PackReport:
    """Write each manifest as Shar into a folder of its split, whole or not at all.

    A split that was packed from the same manifest in the same way is left as it is; a pack that was stopped goes on with the next
    shard of the split that it was in.

    Args:
        manifests: One per split, which its name tells.
        out: Folder for the splits.
        shard_size: Cuts in one shard.
        audio: `flac` keeps 16-bit samples as they are; `opus` is smaller, and loses some.
        jobs: Shards that are written at once; 0: one per core.

    Raises:
        ConfigError: If something else lies where a split would be written, or two manifests are of the same split.
        DataError: If a manifest is missing, damaged or empty, audio cannot be read, or the folder cannot be written.
    """
    sources = check(manifests, out)
    splits = []
    for split, manifest in sources.items():
        digest, earlier = file_digest(manifest), _card(out / split)
        kept = earlier is not None and (earlier.made_from, earlier.audio, earlier.shard_size) == (digest, audio, shard_size)
        if earlier is None or not kept or not _whole(out / split, earlier):
            kept = False
            _clear(out, split)
            part = Part(out / split, {"made_from": digest, "audio": audio, "shard_size": shard_size})
            with _written(out / split), part.open():
                if part.done:
                    watcher.log(f"{split}: {len(part.done):,} shards were finished before the last call was stopped, and are kept")
                _Shards(manifest, part, shard_size, audio, watcher).write(jobs or usable_cores())
                shards = [part.done[number] for number in sorted(part.done)]
                earlier = Card(
                    made_from=digest,
                    audio=audio,
                    shard_size=shard_size,
                    cuts=sum(shard.cuts for shard in shards),
                    hours=round(sum(shard.seconds for shard in shards) / 3600, 4),
                    shards=dict(sorted((name, size) for shard in shards for name, size in shard.files.items())),
                )
                write_json(part.shards / CARD, earlier)
                part.put()
        archives = [name for name in earlier.shards if name.endswith(".tar")]
        size = sum(earlier.shards.values())
        splits.append(Packed(split=split, cuts=earlier.cuts, hours=earlier.hours, shards=len(archives), bytes=size, kept=kept))
    return PackReport(folder=out, audio=audio, splits=splits)


def check(manifests: Sequence[Path], out: Path) -> dict[str, Path]:
    """Split -> manifest; arguments and errors as of `pack`, but no cut is read and nothing is written."""
    sources: dict[str, Path] = {}
    for path in manifests:
        if not path.is_file():
            raise DataError(f"no manifest `{path}`", "run `smoe prepare` first, or name an existing manifest")
        if split_of(path) in sources:
            raise ConfigError(
                f"`{sources[split_of(path)]}` and `{path}` are of the same split, `{split_of(path)}`", "pack them into different folders"
            )
        sources[split_of(path)] = path
    if "%" in str(out.absolute()):
        raise ConfigError(
            f"`{out}`: Lhotse numbers shards with `%`, so no folder may have it in its name", "name another folder with --out"
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"`{out}` is a file", "name a folder with --out")
    for folder in (out / split for split in sources):
        if not _free(folder):
            raise ConfigError(f"`{folder}` is there already, and `smoe pack` did not write it", "name a new folder with --out")
    return sources


def _free(folder: Path) -> bool:
    """Whether a folder holds nothing but what was packed into it."""
    if not folder.is_dir():
        return not folder.exists()
    card = _card(folder)
    return {path.name for path in folder.iterdir()} <= ({CARD, *card.shards} if card is not None else set())


def _card(folder: Path) -> Card | None:
    """What a folder says that was packed into it; None: it is no pack."""
    try:
        return Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def _whole(folder: Path, card: Card) -> bool:
    """Whether all files of a pack are there, as long as they were."""
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in card.shards.items())


def _clear(out: Path, split: str) -> None:
    """Remove what processes left half-written that are no more."""
    for left in [*out.glob(f".{split}.*.tmp"), *out.glob(f".{split}.*.old")]:
        number = left.name.split(".")[-2]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, OSError):
            continue


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write `{folder}`: {error.strerror or error}", "check the folder's rights and the free disk space"
        ) from error


class _Shards:
    """The shards of one split, several of which are written at the same time.

    Args:
        manifest: What they are made of.
        part: Where they go; what is finished there is not written again.
        shard_size, audio: As of `pack`.
        watcher: Shown progress.
    """

    def __init__(self, manifest: Path, part: Part, shard_size: int, audio: Codec, watcher: Watcher) -> None:
        self.manifest, self.part, self.shard_size, self.audio, self.watcher = manifest, part, shard_size, audio, watcher
        self._cuts = sum(shard.cuts for shard in part.done.values())
        self._total = sum(1 for _ in read_lines(manifest))
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def write(self, jobs: int) -> None:
        """Write all of them.

        Raises:
            DataError: If the manifest is damaged or empty, or a cut cannot be packed.
            OSError: If the disk is full.
        """
        if not self._total:
            raise DataError(f"manifest `{self.manifest}` is empty", "prepare it again with `smoe prepare`")
        cuts = self._sound_cuts()
        with _one_thread(), ThreadPoolExecutor(jobs) as pool:
            under_way: list[Future[None]] = []
            try:
                for number in range(-(-self._total // self.shard_size)):
                    some = list(islice(cuts, self.shard_size))
                    if number in self.part.done:
                        continue
                    under_way.append(pool.submit(self._write_shard, number, some))
                    if len(under_way) > jobs:  # no more of the manifest is in memory than is worked on
                        under_way.pop(0).result()
                for shard in under_way:
                    shard.result()
            except BaseException:
                self._stopped.set()
                raise

    def _sound_cuts(self) -> Iterator[tuple[int, MonoCut]]:
        """(line, cut) of the manifest."""
        ids = set[str]()
        for item in read_manifest(self.manifest):
            if item.cut is None:
                raise item.problem or AssertionError
            _check_id(item.cut, ids, f"`{self.manifest}` line {item.number}")
            yield item.number, item.cut

    def _write_shard(self, number: int, cuts: Sequence[tuple[int, MonoCut]]) -> None:
        with self.part.writing(number) as folder:
            self._write_into(folder, number, cuts)
            if not self._stopped.is_set():
                self.part.finish(number, folder, len(cuts), sum(cut.duration for _, cut in cuts))

    def _write_into(self, folder: Path, number: int, cuts: Sequence[tuple[int, MonoCut]]) -> None:
        fields = {"recording": self.audio}
        with SharWriter(str(folder), fields, shard_size=self.shard_size, shard_offset=number, warn_unused_fields=False) as writer:
            for line, cut in cuts:
                if self._stopped.is_set():
                    return
                try:
                    writer.write(cut)
                except Exception as error:  # Lhotse passes on whatever its readers and writers raise
                    if isinstance(error, OSError) and error.errno in DISK:
                        raise
                    raise DataError(
                        f"`{self.manifest}` line {line}: cannot pack cut `{cut.id}`: {error}",
                        "`smoe validate` says what is wrong with its audio; opus takes 8, 12, 16, 24 and 48 kHz only",
                    ) from error
                with self._lock:
                    self._cuts += 1
                    self.watcher.progress(f"{self.manifest.name}: cuts packed", self._cuts, self._total)


def _check_id(cut: MonoCut, ids: set[str], where: str) -> None:
    """Refuse an id that cannot name a file in an archive, or occurs before."""
    name = PurePosixPath(f"{cut.id}.x")
    odd = has_control_characters(cut.id)  # a zero byte would end the name
    if odd or name.is_absolute() or ".." in name.parts or str(name.parent / name.stem) != cut.id:
        raise DataError(
            f"{where}: cut {f'{cut.id!r}' if odd else f'`{cut.id}`'} cannot name a file in an archive",
            "take control characters, `..`, `//` and a `/` in front out of its id",
        )
    if cut.id in ids:
        raise DataError(f"{where}: cut `{cut.id}` occurs before", "ids must be unique; `smoe validate --fix` takes out the second")
    ids.add(cut.id)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Each shard has a thread, so torch takes no more for itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
