"""Prepared manifests -> Lhotse Shar: a few large files to be read from their beginning, for clusters and object stores."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from lhotse import MonoCut
from lhotse.audio.backend import get_current_audio_backend, set_current_audio_backend
from lhotse.shar import SharWriter
from pydantic import Field, ValidationError

from smoe_cli.errors import ConfigError, DataError
from smoe_cli.manifests import read_lines, read_manifest
from smoe_cli.records import Record, file_digest, whole_folder, write_json
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


def pack(manifests: Sequence[Path], out: Path, shard_size: int, audio: Codec, watcher: Watcher) -> PackReport:
    """Write each manifest as Shar into a folder of its split, whole or not at all.

    A split that was packed from the same manifest in the same way is left as it is, so that a pack that was stopped goes on with
    the split that it was in.

    Args:
        manifests: One per split, which its name tells.
        out: Folder for the splits.
        shard_size: Cuts in one shard.
        audio: `flac` keeps 16-bit samples as they are; `opus` is smaller, and loses some.

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
            with _written(out / split) as folder:
                cuts, seconds = _write(manifest, folder, shard_size, audio, watcher)
                shards = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
                earlier = Card(
                    made_from=digest, audio=audio, shard_size=shard_size, cuts=cuts, hours=round(seconds / 3600, 4), shards=shards
                )
                write_json(folder / CARD, earlier)
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
def _written(folder: Path) -> Iterator[Path]:
    try:
        with whole_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"cannot write `{folder}`: {error.strerror or error}", "check the folder's rights and the free disk space"
        ) from error


def _write(manifest: Path, folder: Path, shard_size: int, audio: Codec, watcher: Watcher) -> tuple[int, float]:
    """Cuts and seconds that were written."""
    total = sum(1 for _ in read_lines(manifest))
    if not total:
        raise DataError(f"manifest `{manifest}` is empty", "prepare it again with `smoe prepare`")
    done, seconds, ids = 0, 0.0, set[str]()
    with _libsndfile(), SharWriter(str(folder), {"recording": audio}, shard_size=shard_size, warn_unused_fields=False) as writer:
        for item in read_manifest(manifest):
            if item.cut is None:
                raise item.problem or AssertionError
            _check_id(item.cut, ids, f"`{manifest}` line {item.number}")
            try:
                writer.write(item.cut)
            except Exception as error:  # Lhotse passes on whatever its readers and writers raise
                if isinstance(error, OSError) and error.errno in DISK:
                    raise
                raise DataError(
                    f"`{manifest}` line {item.number}: cannot pack cut `{item.cut.id}`: {error}",
                    "`smoe validate` says what is wrong with its audio; opus takes 8, 12, 16, 24 and 48 kHz only",
                ) from error
            done, seconds = done + 1, seconds + item.cut.duration
            watcher.progress(f"{manifest.name}: cuts packed", done, total)
    return done, seconds


def _check_id(cut: MonoCut, ids: set[str], where: str) -> None:
    """Refuse an id that cannot name a file in an archive, or occurs before."""
    name = PurePosixPath(f"{cut.id}.x")
    if name.is_absolute() or ".." in name.parts or str(name.parent / name.stem) != cut.id:
        raise DataError(f"{where}: cut `{cut.id}` cannot name a file in an archive", "take `..`, `//` and a `/` in front out of its id")
    if cut.id in ids:
        raise DataError(f"{where}: cut `{cut.id}` occurs before", "ids must be unique; `smoe validate --fix` takes out the second")
    ids.add(cut.id)


@contextmanager
def _libsndfile() -> Iterator[None]:
    """Let Lhotse read and write with the library that the audio was checked with; another brings opus to 48 kHz first."""
    before = get_current_audio_backend()
    set_current_audio_backend("LibsndfileBackend")
    try:
        yield
    finally:
        set_current_audio_backend(before)
