"""`smoe --version`."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

from smoe_cli import __version__

PACKAGES = ("torch", "torchaudio", "lhotse", "sentencepiece", "jiwer", "sacrebleu", "typer", "rich", "pydantic")


def show_version(asked: bool) -> None:
    """Print the versions that a report of a result or of a fault needs, without importing anything."""
    if not asked:
        return
    print(f"smoe {__version__}")
    print(f"python {platform.python_version()}")
    for name in PACKAGES:
        print(f"{name} {_installed(name)}")
    raise typer.Exit


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
