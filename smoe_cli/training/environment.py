"""On what, with what and of which sources a run was made: `environment.json` beside its checkpoints."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from smoe_cli import __version__
from smoe_cli.config import Config
from smoe_cli.errors import DataError
from smoe_cli.records import write_text_atomically

ENVIRONMENT = "environment.json"
OWN_SOURCES = Path(__file__).parents[2]
"""A checkout, or where packages are installed, which may lie in a repository of something else."""
LIBRARIES = ("torch", "torchaudio", "lhotse", "numpy", "sentencepiece", "safetensors", "pydantic")


def note_environment(path: Path, config: Config, device: torch.device, step: int, processes: int = 1) -> None:
    """Append an account of this process: a run that is stopped and goes on has several.

    Args:
        path: Of the file; a list of accounts, oldest first.
        config: With everything that was merged into it.
        device: What it computes on.
        step: Steps that were done when it began.
        processes: Of the run, this one among them.

    Raises:
        DataError: If the file is there and is no such list, or cannot be written.
    """
    try:
        accounts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not isinstance(accounts, list):
            raise ValueError("it holds no list")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read `{path}`: {error}", "move the file away; training will begin a new one") from error
    accounts.append(_account(config, device, step, processes))
    write_text_atomically(path, json.dumps(accounts, indent=2) + "\n")


def _account(config: Config, device: torch.device, step: int, processes: int) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": sys.argv,
        "smoe": __version__,
        "smoe_git": git_state(OWN_SOURCES) if (OWN_SOURCES / ".git").exists() else None,
        "git": git_state(config.folder or Path.cwd()),
        "seed": config.train.seed,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "config": config.model_dump(mode="json"),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and changed files of the repository that a folder lies in; None outside of one, or without git."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout

    try:
        commit, changed = ask("rev-parse", "HEAD").strip(), ask("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": changed.splitlines()}
