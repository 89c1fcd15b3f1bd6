"""Reading cut manifests as a stream. A manifest is data: reading it runs nothing, reaches nothing and fills no memory."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lhotse import MonoCut
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from smoe_cli.corpus_settings import Outsider
from smoe_cli.errors import DataError
from smoe_cli.records import whole_file
from smoe_cli.transforms import Rate, check_transforms

SUFFIXES = (".jsonl", ".jsonl.gz")
LONGEST_LINE = 4 * 2**20
"""Bytes of one cut: a thousand times what one takes."""
MOST_EXPANSION, SMALL = 200, 64 * 2**20
"""How many times as large as its file a manifest may become, once it is larger than `SMALL` bytes: ours grow 15 to 40 times,
gzip can make it a thousand."""
MEMBER_LINES = 64
"""Cuts that are packed together: reading one out of a million then unpacks as many, and packing loses nothing."""
HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""How JSON writes what may be half of a character; alone, it is no text that could be written anywhere."""
NOT_A_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")
"""What Lhotse would take for an address or a program where a path is expected."""
LHOTSE_RAISES = (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, OSError)
"""What Lhotse raises on an object of a wrong shape."""
HINT = "prepare the manifest with `smoe prepare`"


class _Supervision(BaseModel):
    recording_id: str
    start: FiniteFloat
    duration: FiniteFloat = Field(gt=0)
    channel: int | list[int] = 0
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    custom: dict[str, Any] | None = None


class _Source(BaseModel):
    channels: list[int]


class _Recording(BaseModel):
    id: str
    sources: list[_Source] = Field(min_length=1)
    sampling_rate: Rate
    num_samples: int = Field(gt=0)
    duration: FiniteFloat = Field(gt=0)


class _Cut(BaseModel):
    """What is relied on of a cut. Lhotse's own classes take any value for any field."""

    id: str = Field(min_length=1)
    start: FiniteFloat
    duration: FiniteFloat = Field(gt=0)
    channel: int
    supervisions: list[_Supervision]
    recording: _Recording


class NoCuts(DataError):
    """A whole manifest is of something else."""


@dataclass(frozen=True)
class Item:
    """One line of a manifest: a cut, or what is wrong with it.

    Attributes:
        number: Of the line, from 1.
        raw: The line as it is, its end included.
        cut: None where the line holds no cut that may be used.
        problem: What is wrong; None where there is a cut.
    """

    number: int
    raw: bytes
    cut: MonoCut | None
    problem: DataError | None


def read_manifest(path: Path, within: Path | None = None) -> Iterator[Item]:
    """Yield a manifest's lines one by one; no audio is opened.

    Args:
        path: `.jsonl` or `.jsonl.gz`, one cut a line.
        within: Folder that audio must lie in, symbolic links followed, because the manifest is not trusted; None: anywhere.

    Raises:
        DataError: If the manifest is missing or unreadable, of something else than cuts, or would fill the memory. What is wrong with
            one line is in its item.
    """
    for number, raw in read_lines(path):
        cut, problem, where = None, None, f"`{path}` line {number}"
        try:
            tree = read_object(raw, where)
            if number == 1:
                refuse_parts(tree, path)
            cut = make_cut(tree, where, within, archives=False)
        except NoCuts:
            raise
        except DataError as error:
            problem = error
        yield Item(number, raw, cut, problem)


def read_lines(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line with its end).

    Args:
        suffixes: What the file's name may end in.

    Raises:
        DataError: As `read_manifest`.
    """
    if not path.name.endswith(suffixes):
        raise DataError(f"`{path}` is no manifest: its name ends in neither {' nor '.join(suffixes)}", "name JSON lines, one object each")
    if not os.path.isfile(path):
        raise DataError(f"no manifest `{path}`", "run `smoe prepare` first, or name an existing manifest")
    read = 0
    try:
        limit = max(SMALL, MOST_EXPANSION * path.stat().st_size)
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                read += len(line)
                if number == 1:
                    refuse_other_bytes(line, path, "convert the file to UTF-8")
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"`{path}` line {number} is longer than {LONGEST_LINE:,} bytes: no cut is", "audio and arrays belong into files"
                    )
                if read > limit:
                    raise DataError(
                        f"`{path}` unpacks to more than {limit:,} bytes from {path.stat().st_size:,}, which no manifest of cuts does",
                        "unpack it yourself if you trust it, and name the unpacked file",
                    )
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read manifest `{path}`: {error}", "bring back the whole file, or prepare it again") from error


def refuse_other_bytes(head: bytes, path: Path, cure: str) -> None:
    """Refuse a file that begins as UTF-16 does, or as what gzip packed.

    Raises:
        DataError: If it does.
    """
    if head.startswith(b"\x1f\x8b"):
        raise DataError(f"`{path}` is packed with gzip", "unpack it: `gunzip < PACKED > UNPACKED`, and name the unpacked file")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"`{path}` is UTF-16", cure)


def read_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        DataError: If it is none, or holds text that is not UTF-8.
    """
    try:
        # Python would take bytes for text that are none.
        tree = json.loads(raw.decode("utf-8-sig"))
        if HALF_A_CHARACTER.search(raw):
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise DataError(f"{where} is not UTF-8: it has half a character, {half}", "correct or remove the line") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#x} at {error.start + 1}"
        raise DataError(f"{where} is not UTF-8: {byte}", "convert the file to UTF-8, or correct the line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", "one object a line; correct or remove the line") from error
    if not isinstance(tree, dict):
        raise DataError(f"{where} is no JSON object", "one object a line; correct or remove the line")
    return tree


def refuse_parts(tree: dict[str, Any], path: Path) -> None:
    """Refuse a manifest whose first line is a recording or a supervision: what Lhotse makes cuts of.

    Raises:
        NoCuts: If it is one.
    """
    if "recording" in tree or "supervisions" in tree:
        return
    what = "recordings" if "sources" in tree else "supervisions" if "recording_id" in tree else None
    if what is not None:
        raise NoCuts(
            f"`{path}` is a manifest of {what}, not of cuts", "make cuts of both: `lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS`"
        )


def make_cut(tree: dict[str, Any], where: str, within: Path | None, archives: bool, start: Path | None = None) -> MonoCut:
    """The cut that a JSON object describes.

    Args:
        where: Names the place that has it.
        within: As of `read_manifest`.
        archives: Whether it may name archives of features and arrays. They are never opened.
        start: Folder that relative paths of audio start from; None: the working folder, as in Lhotse.

    Raises:
        DataError: If it describes none, or one that may not be used.
    """
    if isinstance(tree.get("id"), str):
        where = f"{where}: cut `{tree['id']}`"
    if "text" in tree and "references" in tree:
        raise DataError(f"{where} is a hypothesis, no cut", "`smoe score` reads hypotheses; name the manifest that was decoded")
    if tree.get("type", "MonoCut") not in ("MonoCut", "Cut") or tree.get("recording") is None:
        raise DataError(f"{where} is not one channel of one recording", "export mixed or feature-only cuts to audio first")
    _check_recordings(tree, where, archives, lambda source: _check_source(source, where, within, start))
    try:
        _Cut.model_validate(tree, strict=True)
        cut = MonoCut.from_dict(tree)
    except ValidationError as error:
        wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg'].lower()}" for item in error.errors())
        raise DataError(f"{where} is no sound cut: {wrong}", "correct or remove the line") from None
    except LHOTSE_RAISES as error:
        raise DataError(f"{where} is no cut of Lhotse: {type(error).__name__}: {error}", "correct or remove the line") from error
    _check_supervisions(cut, where)
    return cut


def _check_supervisions(cut: MonoCut, where: str) -> None:
    """Refuse supervisions of something else than the cut. As in Lhotse, they may begin before it and end after it.

    Raises:
        DataError: If there is one.
    """
    recording = cut.recording
    several = sum(len(source.channels) for source in recording.sources) > 1
    for one in cut.supervisions:
        # Where Lhotse saves cuts as audio, of one channel, their supervisions still name the recording and the channel of before.
        saved = not several and one.recording_id != recording.id
        channels = one.channel if isinstance(one.channel, list) else [one.channel]
        if not saved and one.recording_id != recording.id:
            wrong = f"is of recording `{one.recording_id}`, the cut of `{recording.id}`"
        elif not saved and cut.channel not in channels:
            wrong = f"is of channel {', '.join(map(str, channels))}, the cut of {cut.channel}"
        elif one.start >= cut.duration or one.end <= 0:
            wrong = f"goes from {one.start:.2f} to {one.end:.2f} s of the cut, which lasts {cut.duration:.2f} s"
        else:
            continue
        raise DataError(f"{where}: its supervision `{one.id}` {wrong}", "correct or remove the line")


def _check_recordings(tree: dict[str, Any], where: str, archives: bool, check_source: Callable[[object], None]) -> None:
    """Look at every recording, however deep: a transform, too, may have one, and Lhotse would open it.

    Raises:
        DataError: If a source is none that may be read, or a transform none that may be applied; or if there is an archive of arrays.
    """
    waiting: list[Any] = [tree]
    later: list[dict[str, Any]] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, dict):
            continue
        if not archives and "storage_type" in node:
            raise DataError(
                f"{where} names an archive of arrays, `{node.get('storage_path')}`", "leave features out; smoe computes its own"
            )
        sources = node.get("sources", [])
        for source in sources if isinstance(sources, list) else [sources]:
            check_source(source)
        waiting += node.values()
        if "transforms" in node and "sources" in node:
            later.append(node)
    # Last, so that a program in a transform is called what it is.
    for node in later:
        check_transforms(node["transforms"], node.get("sampling_rate"), where)


def _check_source(source: object, where: str, within: Path | None, start: Path | None) -> None:
    kind, named = (source.get("type"), source.get("source")) if isinstance(source, dict) else (None, None)
    if kind != "file" or not isinstance(named, str) or NOT_A_PATH.match(named):
        raise DataError(
            f"{where} takes audio from a source of type `{kind}`{f', `{named}`' if kind == 'file' else ''}: "
            "it could run a program or reach the network",
            cure_of(kind if within is None else None),
        )
    if within is not None:
        check_within(Path(start or "", named), within, where)


def cure_of(kind: object) -> str:
    """What to do about a source of audio that is no file."""
    cure = "save the audio as a file and name that"
    if kind not in get_args(Outsider):
        return cure
    return f"{cure}; `smoe prepare --allow-sources {kind}` does so, once, for a corpus that you trust"


def check_within(path: Path, folder: Path, where: str) -> None:
    """Refuse a path that leaves a folder, by `..`, by its own root or by a symbolic link.

    Raises:
        DataError: If it does.
    """
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        inside = False
    if not inside:
        raise DataError(
            f"{where}: `{path}` leads out of `{folder}`, and what is marked untrusted may not",
            "bring the file into that folder; if you know whose manifest this is, take away `untrusted`, or `--within`",
        )


@contextmanager
def manifest_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Write a manifest line by line, packed if its name ends in `.gz`, whole or not at all.

    The same lines always give the same bytes. A packed manifest is a row of members of a few lines each, which every program reads
    as one file; ours can begin in the middle.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    with whole_file(path) as file:
        packed = path.name.endswith(".gz")
        waiting: list[bytes] = []

        def flush() -> None:
            content = b"".join(waiting)
            file.write(gzip.compress(content, 6, mtime=0) if packed else content)
            waiting.clear()

        def write(line: bytes) -> None:
            waiting.append(line)
            if len(waiting) == MEMBER_LINES:
                flush()

        yield write
        if waiting:
            flush()


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write all lines of a manifest, as `manifest_writer` does.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    with manifest_writer(path) as write:
        for line in lines:
            write(line)
