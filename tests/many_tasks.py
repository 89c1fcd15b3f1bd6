"""A corpus and a recipe of five kinds of answer, with an axis of the recipe's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from smoe_cli.config import Config
from tests.conftest import tiny_config

TASKS = {
    "transcribe": {"languages": ["en"]},
    "translate": {"languages": ["de", "fr"]},
    "identify": {},
    "intent": {"kind": "classify", "label": "wish"},
}


AXES = {"accent": ["us", "uk"]}


MODEL = {
    "encoder_experts_by": "bandwidth+accent",
    "decoder_experts_by": "task+lang",
    "decoder_expert_groups": {"german": ["translate-de"], "naming": ["identify-any", "intent-any"]},
}


SAID = {
    "one": ("en", "one", "eins", "un", "count", 300.0),
    "stop": ("en", "stop", "halt", "arrêt", "order", 700.0),
    "hola": ("es", "", "hallo", "", "", 1300.0),
}
"""Word -> spoken language, transcript, German, French, label, pitch in hertz."""


def write_corpus(folder: Path, per_word: int = 10) -> Path:
    """Tones that stand for words, of two languages and two accents; no transcript, no French and no label of the Spanish one.

    One label of the test split is never in the train split.
    """
    generator = np.random.default_rng(0)
    rows = ["id\tpath\tsplit\tspeaker\tlang\taccent\twish\ttranscript\tde\tfr"]
    folder.mkdir(parents=True, exist_ok=True)
    for word, (lang, transcript, german, french, label, pitch_hz) in SAID.items():
        for number in range(per_word):
            t = np.arange(int(16000 * (0.5 + 0.03 * number))) / 16000
            name = f"{word}{number}"
            soundfile.write(
                folder / f"{name}.flac", 0.3 * np.sin(2 * np.pi * pitch_hz * t) + 0.01 * generator.standard_normal(len(t)), 16000
            )
            split = ("dev", "test")[number % 2] if number % 5 == 0 else "train"
            wish = "never-heard" if (split, word) == ("test", "stop") else label
            accent = ("us", "uk")[number // 5 % 2]
            rows.append(f"{name}\t{name}.flac\t{split}\ts{number}\t{lang}\t{accent}\t{wish}\t{transcript}\t{german}\t{french}")
    (folder / "table.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def recipe(corpus: Path, exp_dir: Path, **changes: object) -> Config:
    table = {
        "type": "tsv",
        "path": "table.tsv",
        "language_column": "lang",
        "translations": {"de": "de", "fr": "fr"},
        "tag_columns": {"accent": "accent"},
        "label_columns": {"wish": "wish"},
    }
    data = {"root": str(corpus), "nb_downsample": True, "corpora": {"tones": table}}
    settings = {"data": data, "tasks": TASKS, "axes": AXES, "model": MODEL, "decode": {"min_max_tokens": 2, "max_tokens_per_s": 2.0}}
    return tiny_config(exp_dir, **(settings | changes))
