"""What commands print: results on stdout, everything else on stderr, colours only on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

PIPED_WIDTH = 200
"""Columns of a table that goes into a file or a pipe, where a terminal's 80 would cut words."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would move a terminal's cursor, name its window, or turn the direction of writing; and halves of characters, which nothing can
print. Ids, texts and paths can hold any of it, and are printed."""
_NUMBER = re.compile(r"(-?[\d,]+(\.\d+)?)?")


def console(stream: IO[str]) -> Console:
    """A console on a stream; without colours and control codes unless that is a terminal."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            """Pass on the exception that Rich is handling: `failures` decides how a command ends, Rich would exit by itself."""
            raise

    terminal = stream.isatty()
    width = None if terminal else PIPED_WIDTH
    return PipedConsole(file=stream, force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False)


def harmless(text: object, breaks: bool = True) -> str:
    """A text as a terminal may have it, control characters as Python writes them.

    Args:
        breaks: Whether line breaks and tabs stay what they are.
    """
    shown = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return shown if breaks else shown.replace("\n", "\\n").replace("\t", "\\t")


def say(*lines: object, stderr: bool = False) -> None:
    """Print lines; what somebody else wrote in them does nothing to a terminal."""
    for line in lines:
        print(harmless(line), file=sys.stderr if stderr else sys.stdout)


def print_error(message: str, hint: str) -> None:
    """Print `error: ...` and, after a blank line, `hint: ...` on stderr."""
    from rich.text import Text

    text = Text.assemble(("error:", "bold red"), f" {harmless(message)}")
    if hint:
        text.append("\n\n").append("hint:", style="bold cyan").append(f" {harmless(hint)}")
    console(sys.stderr).print(text, soft_wrap=True)


def print_json(report: BaseModel) -> None:
    """Print a report as the only thing on stdout."""
    print(report.model_dump_json(indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout; columns of numbers stand right, an empty table prints nothing.

    Args:
        header: Column names, with units.
        rows: One cell per column; None is shown as an empty cell, an integer with thousands separators.
        title: A line above the table.
    """
    from rich import box
    from rich.table import Table

    rows = [list(row) for row in rows]
    if not rows:
        return
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        numeric = all(_NUMBER.fullmatch(_cell(row[index])) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # As wide as it is, whatever the terminal: a number that is broken in two reads as another number.
    out = console(sys.stdout)
    out.print(table, width=max(out.width, out.measure(table, options=out.options.update(max_width=1000)).maximum), crop=False)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else harmless(value, breaks=False)
