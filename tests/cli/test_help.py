"""Help, versions, completion and the generated reference."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer.main
from rich.markup import render

from smoe_cli import __version__
from smoe_cli.cli import reference
from smoe_cli.cli.app import app
from smoe_cli.cli.failures import EXIT_CODES
from smoe_cli.cli.version import PACKAGES

ROOT = Path(__file__).parents[2]
COMMANDS = "prepare validate tokenize train decode score route-audit run features pack convert slim export params".split()
HEAVY = {"torch", "torchaudio", "lhotse", "numpy", "pydantic", "yaml", "sentencepiece", "sacrebleu", "jiwer"}


def test_the_commands_stand_in_the_order_of_the_data():
    assert list(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_done_checked_and_returned_with_an_example(smoe, command):
    result = smoe(command, "--help")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "Checks " in text
    assert f"Example: smoe {command}" in text
    assert "Exit codes: 0 done; 1 a check failed; 2 " in text
    assert "\x1b" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    params = typer.main.get_command(app).commands[command].params
    assert len(params) >= 3
    assert all(param.help for param in params)


@pytest.mark.parametrize("command", COMMANDS)
def test_brackets_of_a_help_text_reach_the_terminal(command):
    """Rich would take `smoe[onnx]` for markup."""
    found = typer.main.get_command(app).commands[command]
    texts = [found.help, *(param.help for param in found.params)]
    assert [render(text).plain for text in texts] == [text.replace("\\[", "[") for text in texts]


def test_help_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "smoe_cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_version_names_everything_that_a_result_depends_on(smoe):
    result = smoe("--version")
    lines = dict(line.split() for line in result.stdout.splitlines())
    assert result.exit_code == 0
    assert lines.pop("smoe") == __version__
    assert lines.pop("python") == sys.version.split()[0]
    assert lines == {name: metadata.version(name) for name in PACKAGES}


def complete(monkeypatch, smoe, line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_SMOE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return smoe().stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("smoe route", ["route-audit"]),
        ("smoe params --preset dec", ["dec-ffn-x2", "dec-smoe"]),
        ("smoe decode --task ", ["transcribe", "translate"]),
        ("smoe decode --lang ", ["en", "de", "fr"]),
        ("smoe decode --bandwidth ", ["nb", "wb"]),
        ("smoe train --resume ", ["auto", "never"]),
    ],
)
def test_the_shell_completes_commands_and_values(monkeypatch, smoe, line, expected):
    assert complete(monkeypatch, smoe, line) == expected


def test_tasks_are_completed_without_a_recipe_too(monkeypatch, smoe, recipe):
    recipe.unlink()
    assert complete(monkeypatch, smoe, "smoe decode --task ") == ["transcribe", "translate", "identify", "classify"]
    assert complete(monkeypatch, smoe, "smoe decode --lang ") == []
    assert complete(monkeypatch, smoe, "smoe decode --tag ") == []


def test_the_reference_pages_are_as_the_source_says():
    pages = reference.pages()
    assert sorted(pages) == ["cli.md", "config.md"]
    for name, text in pages.items():
        written = (ROOT / reference.FOLDER / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is out of date: run `python -m smoe_cli.cli.reference`"


def test_the_reference_names_every_command_exit_code_and_group_of_settings():
    text = reference.cli_page()
    assert [line[len("## smoe ") :] for line in text.splitlines() if line.startswith("## smoe ")] == COMMANDS
    assert all(f"| {code} | " in text for code in EXIT_CODES)
    groups = [line[3:] for line in reference.config_page().splitlines() if line.startswith("## ")]
    assert groups[:2] == ["Top level", "data"]
    assert {"data.corpora.NAME (type: synth)", "tasks.NAME", "model", "train", "decode"} < set(groups)
