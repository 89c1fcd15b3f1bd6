"""Write the reference pages from the help texts and the settings: `python -m smoe_cli.cli.reference [FOLDER]`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
import yaml
from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticUndefined

from smoe_cli.cli.app import app
from smoe_cli.cli.failures import EXIT_CODES
from smoe_cli.config import Config
from smoe_cli.corpus_settings import Settings
from smoe_cli.records import write_text_atomically

FOLDER = Path("docs/reference")
TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", JsonValue: "any value"}
GENERATED = "<!-- Written by `python -m smoe_cli.cli.reference`; change the source instead. -->\n"


def cli_page() -> str:
    """The commands, their options and the exit codes, in Markdown."""
    root = typer.main.get_command(app)
    commands: dict[str, Any] = root.commands  # type: ignore[attr-defined]
    parts = [GENERATED, "# Command line\n", *_command("smoe", root)]
    for name, command in commands.items():
        parts += [f"## smoe {name}\n", *_command(f"smoe {name}", command)]
    parts += ["## Exit codes\n", _table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()])]
    return "\n".join(parts)


def config_page() -> str:
    """Every setting of a recipe with its type, default and meaning, in Markdown."""
    parts = [
        GENERATED,
        "# Settings of a recipe\n",
        "`smoe.yaml` holds them; `--set group.name=value` changes one for one command. An unknown setting is an error. "
        "A setting without a default must be given.\n",
    ]
    header = ("setting", "type", "default", "meaning")
    for heading, model in _models("", Config):
        rows = [
            (f"`{name}`", f"`{_type_name(field.annotation)}`", _default(field), field.description or "")
            for name, field in model.model_fields.items()
            if not _groups(field.annotation) and name != "type"
        ]
        parts += [f"## {heading or 'Top level'}\n", f"{inspect.cleandoc(model.__doc__ or '')}\n", *([_table(header, rows)] if rows else [])]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"cli.md": cli_page(), "config.md": config_page()}


def _command(title: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    chosen = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    names = " ".join(f"[{param.display_name_raw}]..." for param in arguments)
    yield f"```\n{title} [OPTIONS]{' ' + names if names else ''}{' COMMAND' if hasattr(command, 'commands') else ''}\n```\n"
    yield f"{_plain(command.help)}\n"
    rows = [(f"`{param.display_name_raw}`", _default_text(param), _plain(param.help)) for param in arguments]
    rows += [(_option_name(param), _default_text(param), _plain(param.help)) for param in chosen]
    yield _table(("argument or option", "default", "meaning"), rows)


def _plain(text: str | None) -> str:
    """A help text as terminals show it: brackets, which Rich would take for its own, are escaped there."""
    return (text or "").replace("\\[", "[")


def _option_name(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*sorted(param.opts, key=len, reverse=True), *param.secondary_opts])
    if param.metavar:
        return f"{names} {param.metavar}"
    return names if param.is_flag else f"{names} {param.display_type(None).strip('<>').replace('|', ' or ')}"


def _default_text(param: Any) -> str:
    if isinstance(param.show_default, str):
        return param.show_default
    if param.default is None or param.default is False or param.default == []:
        return ""
    return "yes" if param.default is True else f"`{param.default}`"


def _models(prefix: str, model: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """A group of settings and every group below it, with the key under which each stands."""
    yield prefix, model
    for name, field in model.model_fields.items():
        groups = _groups(field.annotation)
        path = f"{prefix}.{name}" if prefix else name
        for group in groups:
            key = path + (".NAME" if get_origin(field.annotation) is dict else "")
            yield from _models(key if len(groups) == 1 else f"{key} (type: {group.model_fields['type'].default})", group)


def _groups(annotation: Any) -> list[type[Settings]]:
    """The groups of settings inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation] if issubclass(annotation, Settings) else []
    return [group for inner in get_args(annotation) for group in _groups(inner)]


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _type_name(part) for part in inner)
    if origin in (list, tuple):
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return f"{_type_name(inner[0])} -> {_type_name(inner[1])}"
    if hasattr(annotation, "__metadata__"):
        return _type_name(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " or ".join(annotation)
    return TYPE_NAMES[annotation]


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    value = field.default
    if value is None:
        return "null"
    if value in ("", {}, []):
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return f"`{yaml.safe_dump(value, default_flow_style=True, sort_keys=False).strip()}`"
    return f"`{value}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines)


def main(folder: Path) -> None:
    """Write every page into a folder.

    Raises:
        DataError: If the folder cannot be written.
    """
    for name, text in pages().items():
        write_text_atomically(folder / name, text)
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
