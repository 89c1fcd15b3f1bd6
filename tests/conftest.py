"""Shared fixtures: real speech where it is at hand, a tiny system, and a tiny recipe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Files are tested side by side, and more threads than cores would wait for each other. Torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from smoe_cli.config import Config
from smoe_cli.model.speech_to_text import Dimensions, SpeechToText
from smoe_cli.recipe import parse_config

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a background job of a shell has it; every process that a test starts would be deaf too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_TABLES = ("real-digits/real-digits.tsv", "real-digits/connected.tsv", "real-read/real-read.tsv", "real-prompts/real-prompts.tsv")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder with recorded speech, named by SMOE_DATA; required when SMOE_REQUIRE_REAL_SPEECH is set."""
    folder = os.environ.get("SMOE_DATA")
    missing = [name for name in REAL_TABLES if not folder or not (Path(folder) / name).is_file()]
    if folder and not missing:
        return Path(folder)
    if os.environ.get("SMOE_REQUIRE_REAL_SPEECH"):
        pytest.fail(f"real speech is required, but SMOE_DATA ({folder}) lacks {', '.join(missing)}")
    pytest.skip(f"no recorded speech: set SMOE_DATA to a folder that holds {', '.join(REAL_TABLES)}")


def tiny_model(**changes: object) -> SpeechToText:
    """A model of two layers a stack in evaluation mode."""
    fields = {
        "vocab_size": 30,
        "mel_bins": 8,
        "dim": 16,
        "heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_hidden_dim": 32,
        "decoder_hidden_dim": 32,
        "encoder_experts": ("nb", "wb"),
        "decoder_experts": ("transcribe", "translate"),
        "subsampling_channels": 16,
    }
    return SpeechToText(Dimensions(**(fields | changes))).eval()  # type: ignore[arg-type]


def tiny_config(exp_dir: Path, **changes: object) -> Config:
    """A recipe whose model learns in seconds; sections are merged into it."""
    tree: dict[str, object] = {
        "name": "tiny",
        "exp_dir": str(exp_dir),
        "tasks": {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de"]}},
        "tokenizer": {"vocab_size": 300},
        "features": {"mel_bins": 40, "cache_mb": 200},
        "model": {
            "d_model": 32,
            "heads": 2,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "ffn_dim": 64,
            "subsampling_channels": 32,
            "dropout": 0.1,
        },
        "train": {
            "max_steps": 8,
            "batch_s": 10.0,
            "max_utterances": 8,
            "warmup_steps": 4,
            "validate_every": 4,
            "precision": "fp32",
            "threads": 1,
        },
        "decode": {"beam": 2},
    }
    for key, value in changes.items():
        base = tree.get(key)
        tree[key] = {**base, **value} if isinstance(base, dict) and isinstance(value, dict) and key not in ("tasks", "data") else value
    return parse_config(tree, "tiny.yaml")


def as_given(size: int) -> torch.nn.Linear:
    """An output layer that hands on its inputs: scores that a test chooses."""
    layer = torch.nn.Linear(size, size, bias=False).requires_grad_(False)
    torch.nn.init.eye_(layer.weight)
    return layer


@pytest.fixture(scope="session")
def five_tasks(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The recipe of `tests.many_tasks` up to its hypotheses. Twelve steps do not even reach all twenty routes, which no law here needs."""
    from smoe_cli import pipeline
    from tests.many_tasks import recipe, write_corpus

    folder = tmp_path_factory.mktemp("tasks")
    config = recipe(write_corpus(folder / "corpus"), folder / "exp", train={"max_steps": 12, "temperature": 4.0})
    pipeline.prepare(config)
    pipeline.tokenize(config)
    pipeline.train(config)
    pipeline.decode(config)
    return config
