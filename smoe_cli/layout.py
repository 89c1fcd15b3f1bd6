"""Where the steps leave their files for the next one: the only place that knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from smoe_cli.config import CHECKPOINTS, FINAL, MODEL, Config
from smoe_cli.errors import CheckpointError, DataError

WEIGHTS, DIGESTS = "model.safetensors", "digests.json"
"""In every checkpoint: the weights, and the SHA-256 of each of its files."""
EXPORT_CARD = "export.json"
"""In every exported model: what it is."""
VALIDATION = "validation.json"
MODEL_DIGITS = 12
"""Digits of a model's digest: no two models of one experiment will share them."""


@dataclass(frozen=True)
class Layout:
    """Paths inside a recipe's experiment folder."""

    root: Path

    @classmethod
    def of(cls, config: Config) -> Layout:
        return cls(config.exp_dir)

    @property
    def audio(self) -> Path:
        """Audio that a corpus had to make (synthesis, joined segments)."""
        return self.root / "audio"

    @property
    def features(self) -> Path:
        """Stored features."""
        return self.root / "features"

    @property
    def heard(self) -> Path:
        """What a preparation that was stopped has read so far."""
        return self.root / "heard.jsonl"

    @property
    def cuts_dir(self) -> Path:
        return self.root / "cuts"

    def unfit(self, corpus: str) -> Path:
        """What is wrong with the utterances of a corpus that were left out."""
        return self.cuts_dir / f"unfit.{corpus}.txt"

    def refused(self, corpus: str) -> Path:
        """What is wrong with a corpus that was refused."""
        return self.root / f"refused.{corpus}.txt"

    def cuts(self, split: str) -> Path:
        return self.cuts_dir / f"cuts.{split}.jsonl.gz"

    @property
    def prepare_report(self) -> Path:
        return self.cuts_dir / "report.json"

    @property
    def validation(self) -> Path:
        return self.cuts_dir / VALIDATION

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def model(self) -> Path:
        return self.root / MODEL

    @property
    def final(self) -> Path:
        return self.model / FINAL

    def ahead_of_final(self) -> Path | None:
        """The last checkpoint of a training that has gone on since `final` was written; None: there is none."""
        steps = sorted((self.model / CHECKPOINTS).glob("step-*"))
        return steps[-1] if steps and self.final.is_dir() and steps[-1].stat().st_mtime > self.final.stat().st_mtime else None

    def hypotheses_dir(self, split: str) -> Path:
        return self.root / "hypotheses" / split

    def unfinished(
        self, split: str, task: str | None, lang: str | None, bandwidth: str | None, tags: tuple[tuple[str, str], ...] = ()
    ) -> Path:
        """What a decoding of these tags has done, until it ends; apart for other tags, which may be decoded at the same time."""
        named = [*(tag or "all" for tag in (task, lang, bandwidth)), *(f"{axis}={value}" for axis, value in tags)]
        return self.hypotheses_dir(split) / f".{'-'.join(named)}.part"

    def hypotheses(self, split: str, task: str, lang: str) -> Path:
        return self.hypotheses_dir(split) / f"{task}-{lang}.jsonl"

    def all_hypotheses(self, config: Config) -> list[Path]:
        """The files that `decode` wrote for the recipe's tasks and its test split.

        Raises:
            DataError: If there is none.
        """
        wanted = [self.hypotheses("test", task, lang) for task, lang in config.targets()]
        paths = [path for path in wanted if path.is_file()]
        if not paths:
            raise DataError(f"no hypotheses in `{self.hypotheses_dir('test')}`", "run `smoe decode` first, or name files to score")
        return paths

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    def stamp(self, step: str) -> Path:
        return self.root / ".done" / f"{step}.json"

    def checkpoint(self) -> Path:
        """The trained model.

        Raises:
            CheckpointError: If training has not finished.
        """
        if not self.final.is_dir():
            raise CheckpointError(f"no trained model `{self.final}`", "run `smoe train` to its end, or name a checkpoint with --checkpoint")
        return self.final


def model_digest(checkpoint: Path) -> str:
    """Which model a checkpoint holds: the first digits of the SHA-256 of its weights, as `sha256sum` gives them.

    Raises:
        CheckpointError: If the folder is no checkpoint.
    """
    try:
        return str(json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))[WEIGHTS])[:MODEL_DIGITS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"`{checkpoint}` is no checkpoint or an incomplete one: {error}", "name a folder that `smoe train` wrote"
        ) from error
