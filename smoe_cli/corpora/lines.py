"""What corpora share that are tables or manifests: which splits are wanted, their lines and rows, and one utterance of each."""

from __future__ import annotations

import codecs
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, Any, AnyStr, TypeVar

from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.files import is_dir, is_file
from smoe_cli.corpora.utterance import Utterance, Work, foreseen, placed
from smoe_cli.corpus_settings import CorpusSettings, FolderCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import LONGEST_LINE, check_within, read_lines, read_object, refuse_other_bytes
from smoe_cli.tags import Bandwidth

T = TypeVar("T")
P = TypeVar("P", Path, str)
AHEAD = 4
"""Rows for each thread that may be made before they are asked for: no thread waits while utterances are checked and listened to."""
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def wanted(settings: CorpusSettings, parts: Mapping[str, P]) -> list[tuple[str, P]]:
    """Splits and their files or folders, without those that the recipe leaves out."""
    return [(split, path) for split, path in parts.items() if settings.split_of(split) is not None]


def each_split(
    settings: CorpusSettings, parts: Mapping[str, P], work: Work, key: str, read: Callable[[str, P], Iterable[Utterance]]
) -> Iterator[Utterance]:
    """Yield what is read of each split that the recipe does not leave out; what ends one goes to `work.lost`, and the next is read.

    Args:
        key: The setting that says where they lie, e.g. `manifests`.
        read: Called with the split and its file or folder; raises DataError.

    Raises:
        Unwritable: If audio cannot be written.
    """
    folder = work.root / settings.path if isinstance(settings, FolderCorpus) else work.root
    paths = [folder / path for _, path in wanted(settings, parts)]
    # All hang on one setting, which is likelier to be wrong than each for itself.
    where = [folder] if isinstance(settings, FolderCorpus) else paths if len(paths) > 1 else []
    if where and paths and not any(_may_be_there(path) for path in where):
        listed = ", ".join(f"`{path}`" for path in paths)
        work.lost(DataError(f"nothing of the corpus is there: no {listed}", where_it_lies("them", f"data.corpora.{work.name}.{key}")))
        return
    for split, path in wanted(settings, parts):
        try:
            yield from read(split, path)
        except Unwritable:
            raise
        except DataError as error:
            work.lost(error)


def found(path: Path, settings: CorpusSettings, work: Work, key: str, what: str = "manifest", cure: str = "") -> Path:
    """A file that a corpus starts from.

    Args:
        key: The setting that names it, e.g. `manifests.train`.
        what: What to call it.
        cure: What to do if it is missing, where another setting than `key` is likelier to be wrong.

    Raises:
        DataError: If it is missing, or lies outside the corpus's folder and is not trusted.
    """
    where = f"data.corpora.{work.name}.{key}"
    if settings.untrusted:
        check_within(path, work.root, f"`{where}`")
    if not is_file(path):
        split = key.partition(".")[2]
        leave_out = f"if there is no such split, leave it out: `data.corpora.{work.name}.splits: {{{split}: null}}`"
        if is_file(packed := path.with_name(path.name + ".gz")):
            taken = packed.name.endswith(JSON_SUFFIXES)
            cure = f"there is `{packed.name}`: " + (f"name it in `{where}`" if taken else "unpack it (`gunzip`)")
        cure = cure or (f"correct `{where}` or `data.root`; {leave_out}" if split else where_it_lies("it", where))
        raise DataError(f"no {what} `{path}`", cure)
    return path


def _may_be_there(path: Path) -> bool:
    """Whether there is such a file or folder; one that nobody may see counts, and whoever reads it says so."""
    try:
        return is_file(path) or is_dir(path)
    except DataError:
        return True


def where_it_lies(what: str, key: str) -> str:
    """The cure for a corpus of which nothing is there."""
    return f"set `data.root` to the folder that holds {what}, for example --set data.root=FOLDER, or correct `{key}`"


def utterances(
    rows: Iterable[tuple[str, T]], total: int, make: Callable[[str, T], Utterance], work: Work, what: str
) -> Iterator[Utterance]:
    """Yield what is made of each row; one that cannot be used goes to `work.unfit`, with its place.

    Args:
        rows: (place, row), the place as it stands in messages.
        total: How many there are, for the progress.
        make: Called with both; raises DataError.
        what: What the rows are called in the progress.
    """
    for done, (where, row) in enumerate(rows, start=1):
        try:
            with foreseen():
                utterance = make(where, row)
        except DataError as error:
            work.unfit(error, where)
            continue
        yield utterance
        work.progress(done, total, f"{work.name}: {what}")


def made_at_once(rows: Iterable[tuple[str, T]], make: Callable[[str, T], Utterance], work: Work) -> Iterator[Utterance | None]:
    """Yield what `work.jobs` threads make of each row, in the order of the rows, whichever is finished first.

    Threads do: what takes long is disks and libsndfile, which hold no lock of Python's. Who is stopped waits for the rows that are being
    made, and begins no other.

    Args:
        rows: (place, row), the place as it stands in messages. They are read ahead, so they must not go to `work` themselves.
        make: Called with both, by several threads at the same time; raises DataError for a row that cannot be used, which goes to
            `work.unfit`, with its place, when it is its turn; then None is yielded.

    Raises:
        Unwritable: If audio cannot be written; of the rows behind, none is begun.
        DataError: What reading the rows raises, after those before are made.
    """
    stop = threading.Event()

    def one(where: str, row: T) -> Utterance | DataError:
        if stop.is_set():
            raise CancelledError
        try:
            with foreseen():
                return make(where, row)
        except BaseException as error:
            if isinstance(error, DataError) and not isinstance(error, Unwritable):
                return placed(error, where)
            stop.set()
            raise

    pool, waiting = ThreadPoolExecutor(work.jobs), iter(rows)
    under_way: deque[Future[Utterance | DataError]] = deque()
    ended: StopIteration | DataError | None = None
    try:
        while True:
            while ended is None and len(under_way) < AHEAD * work.jobs:
                try:
                    under_way.append(pool.submit(one, *next(waiting)))
                except (StopIteration, DataError) as error:
                    ended = error
            if not under_way:
                break
            try:
                made = under_way.popleft().result()
            except CancelledError:
                continue  # not begun, as a row behind it ended all: its error comes
            if isinstance(made, DataError):
                work.unfit(made)
            yield None if isinstance(made, DataError) else made
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if isinstance(ended, DataError):
        raise ended


def text_lines(
    path: Path, unfit: Callable[[DataError], None], encoding: str = "utf-8", cure: str = "convert the file to UTF-8"
) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a text file; only a line feed ends a line.

    Args:
        unfit: Called for a line that is no text, which is left out.
        cure: What to do about it.

    Raises:
        DataError: If the file cannot be read, is UTF-16, or has a line that would fill the memory.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(bounded(file, path), start=1):
                if number == 1:
                    refuse_other_bytes(raw, path, cure)
                line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).removesuffix(b"\n").removesuffix(b"\r")
                try:
                    yield number, line.decode(encoding)
                except UnicodeDecodeError as error:
                    unfit(DataError(f"`{path}` line {number} is not UTF-8: byte {line[error.start]:#x} at {error.start + 1}", cure))
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror}", "check the file and its rights") from error


def bounded(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """The lines of an open file, with their ends.

    Raises:
        DataError: If one is longer than any text, and would fill the memory.
    """
    for number in count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise DataError(f"`{path}` line {number} is longer than {LONGEST_LINE:,} bytes: no text is", "bring back the right file")
        yield line


def table_rows(
    path: Path,
    lines: Iterator[tuple[int, str]],
    needed: Iterable[str | None],
    work: Work,
    columns: Sequence[str] = (),
    escaped: bool = False,
    cure: str | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, row) of a tab-separated table; a line with more or fewer fields goes to `work.unfit`.

    Args:
        lines: As `text_lines` gives them.
        needed: Columns that it must have; None is none.
        columns: All of them, where the table has no header.
        escaped: Whether a backslash takes away the meaning of what follows, as CoVoST's own scripts read it.
        cure: What to do about a table that is not as expected; None: what mends one's own.

    Raises:
        DataError: If the header is no text, or a column is missing.
    """
    if not columns:
        number, header = next(lines, (1, ""))
        if number != 1:
            raise DataError(f"`{path}` line 1 is not UTF-8", cure or "convert the table to UTF-8")
        columns = header.split("\t")
    lacking(needed, columns, path, cure)
    for number, line in lines:
        fields = re.split(r"(?<!\\)\t", line) if escaped else line.split("\t")
        fields = [re.sub(r"\\(.)", r"\1", field) for field in fields] if escaped else fields
        where = f"`{path}` line {number}"
        if row := row_of(columns, fields, where, work, cure or "remove stray tabs or line breaks"):
            yield where, row


def row_of(columns: Sequence[str], fields: Sequence[str], where: str, work: Work, cure: str) -> dict[str, str] | None:
    """Column -> field; None: there are more or fewer fields, which went to `work.unfit`."""
    if len(fields) == len(columns):
        return dict(zip(columns, fields, strict=True))
    what = f"has {len(fields)} fields, {len(columns)} are expected" if any(field.strip() for field in fields) else "is empty"
    work.unfit(DataError(f"{where} {what}", cure))
    return None


def objects(path: Path, work: Work) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of JSON lines, empty ones left out; a line that is none goes to `work.unfit`.

    Raises:
        DataError: If the file cannot be read, or would fill the memory.
    """
    for number, raw in read_lines(path, JSON_SUFFIXES):
        where = f"`{path}` line {number}"
        if not raw.strip():
            continue
        try:
            yield where, read_object(raw, where)
        except DataError as error:
            work.unfit(error)


def text_of(row: Mapping[str, Any], field: str) -> str:
    """A field as text, without spaces around it; empty where there is none.

    Raises:
        DataError: If it is neither text nor a number.
    """
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"`{field}` is `{value}`, which is no text", "correct the manifest")
    text = str(value).strip()
    if not text.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise DataError(f"`{field}` is not UTF-8", "convert the file to UTF-8")
    return text


def texts_of(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, str]:
    """Name -> what its field says, where it says something.

    Raises:
        DataError: If one is neither text nor a number.
    """
    said = {name: text_of(row, field) for name, field in fields.items()}
    return {name: text for name, text in said.items() if text}


def said_band(row: Mapping[str, Any], field: str | None) -> Bandwidth | None:
    """What a row says that its recording carries; None: it says nothing.

    Raises:
        DataError: If that is no bandwidth.
    """
    said = text_of(row, field) if field else ""
    if said and said not in list(Bandwidth):
        raise DataError(f"`{field}` is `{said}`, which is no bandwidth; known: {', '.join(Bandwidth)}", "correct it, or leave it empty")
    return Bandwidth(said) if said else None


def answers_of(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Target language -> right answers, from a field that holds a text or a list of texts.

    Raises:
        DataError: If one is neither.
    """
    right: dict[str, list[str]] = {}
    for lang, field in fields.items():
        value = row.get(field)
        texts = [text_of({field: one}, field) for one in (value if isinstance(value, list) else [value])]
        if texts := [text for text in texts if text]:
            right[lang] = texts
    return right


def lacking(needed: Iterable[str | None], columns: Sequence[str], path: Path, cure: str | None = None) -> None:
    """Refuse a table without a column, or with two of one name: which of them is meant, nobody can tell.

    Raises:
        DataError: Naming all that it lacks, or has twice.
    """
    if not any(columns):
        raise DataError(f"table `{path}` is empty, or its first line is", cure or "its first line names the columns")
    if twice := [f"`{name}`" for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"table `{path}` has several columns named {', '.join(twice)}", cure or "give each column a name of its own")
    if missing := [f"`{name}`" for name in dict.fromkeys(needed) if name is not None and name not in columns]:
        raise DataError(
            f"table `{path}` has no column {', '.join(missing)}; it has: {', '.join(columns)}",
            cure or "rename columns in the table, or name those that the recipe can name as the table does; tabs separate columns of `tsv`",
        )


def id_of(audio: Path, folder: Path) -> str:
    """An utterance's id from the path of its audio: `train/anna/001.wav` in a folder gives `train-anna-001`, wherever that folder lies."""
    path, root = (PurePosixPath(os.path.abspath(one)) for one in (audio, folder))
    named = path.relative_to(root) if path.is_relative_to(root) else path
    return "-".join(part for part in named.with_suffix("").parts if part != "/")
