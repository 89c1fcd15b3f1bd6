"""Code of others at work: what it prints and warns of goes to files; whatever it raises is an error that names it."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO

from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.outside import WRITABLE
from smoe_cli.errors import DataError, SmoeError

PRINTED, WARNINGS, ELSEWHERE = "printed.txt", "warnings.txt", "warnings-elsewhere.txt"
"""What others print; what loggers and the others' own sources warn of; Python's warnings from anywhere else, as of other libraries."""
LONGEST = 500
"""Characters of a warning, or of an error."""


@contextmanager
def apart(folder: Path, what: str, home: str, cure: str) -> Iterator[None]:
    """While others work: files in `folder` get what they print, and what they warn of, a line each.

    Args:
        what: Names their work, in an error.
        home: A part of the path of their own sources.
        cure: What to do if they fail.

    Raises:
        DataError: Instead of whatever the block raises, but for our own errors and what stops a program.
        Unwritable: If one of the files cannot be written to.
    """
    try:
        with _printing_to(folder / PRINTED), _warnings_to(folder / WARNINGS, folder / ELSEWHERE, home):
            try:
                yield
            except SmoeError:
                raise
            except (Exception, SystemExit) as error:
                frames = traceback.extract_tb(error.__traceback__)
                at = next((frame for frame in reversed(frames) if home in frame.filename), frames[-1])
                said = _line(f"{type(error).__name__}: {error}").removesuffix(":")
                raise DataError(
                    f"{what} fails: {said} ({Path(at.filename).name}, line {at.lineno}: `{at.line}`)",
                    f"{cure}; `{folder / PRINTED}` has what it printed",
                ) from error
    except OSError as error:
        # Of these files, when they are opened, or closed: what could not be written is tried again then.
        raise Unwritable(f"cannot write `{error.filename or folder}`: {error.strerror}", WRITABLE) from error


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Programs that are started print there too: nothing may mix with results, or break a bar of progress."""
    with _opened(path) as file, redirect_stdout(file), redirect_stderr(file):
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


@contextmanager
def _warnings_to(path: Path, elsewhere: Path, home: str) -> Iterator[None]:
    """What any logger warns of, in processes that are forked too, and what Python itself warns of: in the others' sources, or elsewhere."""

    def of_others(record: logging.LogRecord) -> bool:
        return record.name == "py.warnings" and home not in record.getMessage()

    with _opened(path) as ours, _opened(elsewhere) as theirs:
        handlers = [_handler(ours, lambda record: not of_others(record)), _handler(theirs, of_others)]
        logging.getLogger().handlers += handlers
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for handler in handlers:
                logging.getLogger().removeHandler(handler)


def _opened(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _handler(file: IO[str], wanted: Callable[[logging.LogRecord], bool]) -> logging.Handler:
    handler = logging.StreamHandler(file)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Lines())
    handler.addFilter(wanted)
    return handler


class _Lines(logging.Formatter):
    """One line for each record, also where a logger was called in a wrong way."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return _line(record.getMessage())
        except (TypeError, ValueError):
            return _line(f"{record.msg} {record.args}")


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]
