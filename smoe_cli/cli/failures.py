"""Every way in which a command ends: the one place where exceptions become messages and exit codes.

Typer ignores a returned number and prints a traceback for exceptions that it does not know, so the conversion
happens in the group itself: a real run and Typer's test runner then behave alike.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

import typer
from typer.core import TyperGroup

from smoe_cli.cli.console import print_error, say
from smoe_cli.cli.watcher import complains
from smoe_cli.errors import Interrupted, SmoeError

FAULT = 70
BROKEN_PIPE = 141
EXIT_CODES = {
    0: "done",
    1: "a check failed",
    2: "you must change something: an option, a setting, a file",
    FAULT: "a fault in smoe itself",
    Interrupted.exit_code: "stopped by Ctrl-C or SIGTERM",
    BROKEN_PIPE: "the program that read the output went away",
}
"""Exit code -> what it says; 70 is sysexits' EX_SOFTWARE, 130 and 141 are what shells report for SIGINT and SIGPIPE."""

INTERRUPTED = ("finished files are kept, unfinished ones begin again", "run the same command again")
_DISK_FULL = ("is full", "free some space there, or write elsewhere with --set exp_dir=FOLDER; finished files are kept")
_NO_RIGHTS = ("may not be used by this user", "change its rights, or write elsewhere with --set exp_dir=FOLDER")
_ENVIRONMENT = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EACCES: _NO_RIGHTS,
    errno.EPERM: _NO_RIGHTS,
    errno.EROFS: _NO_RIGHTS,
}
"""Errors of the system that the user can mend -> what is the matter, what to do."""


interrupted = threading.Event()
"""Set when SIGINT or SIGTERM came."""


def interrupt(number: int, frame: object) -> NoReturn:
    """What `main` lets both signals do."""
    interrupted.set()
    raise KeyboardInterrupt


class Group(TyperGroup):
    """The `smoe` command; reports what its own options and its commands raise."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with reported():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with reported(debug=ctx.params["debug"]):
            return super().invoke(ctx)


@contextmanager
def reported(debug: bool = False) -> Iterator[None]:
    """Turn any exception into a message on stderr and an exit code.

    Args:
        debug: Show the traceback of an unexpected exception.

    Raises:
        typer.Exit: With a code of `EXIT_CODES`, whenever the block did not end well.
    """
    try:
        try:
            yield
        except typer.Exit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if complains(error):
            print_error(error.format_message(), f"`{context.command_path if context else 'smoe'} --help` lists what is allowed")
        raise typer.Exit(2) from None
    except (KeyboardInterrupt, Interrupted) as error:
        said = (error.message, error.hint) if isinstance(error, Interrupted) else INTERRUPTED
        say("interrupted: " + "; ".join(part for part in said if part), stderr=True)
        raise typer.Exit(Interrupted.exit_code) from None
    except SmoeError as error:
        if complains(error):
            print_error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except Exception as error:
        # Ctrl-C while a library is loading can come out as an error of its own: half-loaded modules lack names.
        if interrupted.is_set():
            print("interrupted: " + "; ".join(INTERRUPTED), file=sys.stderr)
            raise typer.Exit(Interrupted.exit_code) from None
        raise typer.Exit(_report(error, debug)) from None


def _report(error: Exception, debug: bool) -> int:
    """Say what an exception outside our family means; returns the exit code."""
    if isinstance(error, BrokenPipeError) and any(_reader_left(stream) for stream in (sys.stdout, sys.stderr)):
        _discard_output()
        return BROKEN_PIPE
    if debug:
        say("".join(traceback.format_exception(error)), stderr=True)
    number = _system_error(error)
    if number in _ENVIRONMENT:
        matter, cure = _ENVIRONMENT[number]
        place = f"`{error.filename}`" if isinstance(error, OSError) and error.filename else "the disk or folder that is written to"
        print_error(f"{place} {matter}: {os.strerror(number)}", cure)
        return SmoeError.exit_code
    print_error(
        f"smoe failed unexpectedly: {type(error).__name__}: {error}",
        "this is a fault in smoe: please open an issue where you got it, with the output of `smoe --version` and of this command"
        + ("" if debug else " run as `smoe --debug ...`"),
    )
    return FAULT


def _system_error(error: Exception) -> int:
    """The system's error number, also where a library only quotes its text (safetensors, torch); 0: none."""
    if isinstance(error, OSError):
        return error.errno or 0
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else 0


def _reader_left(stream: IO[str]) -> bool:
    """Whether a stream is a pipe that nobody reads any more; tells `| head` from a worker's broken pipe."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _discard_output() -> None:
    """Send what is still buffered to nowhere, or the interpreter complains about it while it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
