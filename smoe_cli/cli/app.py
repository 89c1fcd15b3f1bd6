"""The `smoe` command: options for all commands, the commands in the order of the data, and signals."""

from __future__ import annotations

import inspect
import re
import signal
from typing import Annotated

import typer

from smoe_cli.cli.convert import convert
from smoe_cli.cli.decode import decode
from smoe_cli.cli.export import export
from smoe_cli.cli.failures import EXIT_CODES, Group, interrupt
from smoe_cli.cli.features import features
from smoe_cli.cli.pack import pack
from smoe_cli.cli.params import params
from smoe_cli.cli.prepare import prepare
from smoe_cli.cli.route_audit import route_audit
from smoe_cli.cli.run import run
from smoe_cli.cli.score import score
from smoe_cli.cli.slim import slim
from smoe_cli.cli.tokenize import tokenize
from smoe_cli.cli.train import train
from smoe_cli.cli.validate import validate
from smoe_cli.cli.version import show_version

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="smoe",
    cls=Group,
    epilog=EPILOG,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (prepare, validate, tokenize, train, decode, score, route_audit, run, features, pack, convert, slim, export, params):
    # Typer keeps the line breaks of a docstring's paragraphs, which fit no terminal.
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command) or "")
    app.command(command.__name__.replace("_", "-"), help=text, epilog=EPILOG)(command)


@app.callback()
def smoe(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the versions of smoe and of what it stands on.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="SMOE_DEBUG", help="Show the traceback of an unexpected failure.")] = False,
) -> None:
    """Speech-to-text models whose experts are chosen by supervision (S-MoE): prepare, train, decode, score, audit.

    Every command reads `smoe.yaml` in this folder, and finds its inputs where the step before left them.

    Results go to stdout, progress to stderr.

    Example: cd recipes/quickstart && smoe run
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; SIGTERM ends it like Ctrl-C, so that work is put away in both cases."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell lets its background jobs ignore SIGINT.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    app(prog_name="smoe")
