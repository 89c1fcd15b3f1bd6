"""A recipe without data, and the pipeline replaced by one that only answers."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock, create_autospec

import pytest
from typer.testing import CliRunner, Result

from smoe_cli import pipeline
from smoe_cli.cli.app import app

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
tasks:
  transcribe: {languages: [en]}
  translate: {languages: [de, fr]}
model: {d_model: 32, heads: 2, encoder_layers: 1, decoder_layers: 1, ffn_dim: 64, subsampling_channels: 32}
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a recipe in it."""
    for name in ("SMOE_DEBUG", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "smoe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "smoe.yaml"


@pytest.fixture
def smoe() -> Callable[..., Result]:
    """Run a command inside this process."""
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="smoe")


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mock]:
    """Replace a function of the pipeline by one of the same signature that returns or raises what it is given."""

    def put(name: str, answer: object) -> Mock:
        real = getattr(pipeline, name)
        assert inspect.isfunction(real)
        raises = isinstance(answer, BaseException) or callable(answer)
        fake = create_autospec(real, **{"side_effect" if raises else "return_value": answer})
        monkeypatch.setattr(pipeline, name, fake)
        return fake

    return put


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command as a process of its own, after some Python that may replace parts of the pipeline."""

    def start(*words: str, before: str = "") -> subprocess.Popen[str]:
        code = f"import sys\n{before}\nfrom smoe_cli.cli.app import main\nsys.argv[1:] = {list(words)!r}\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
