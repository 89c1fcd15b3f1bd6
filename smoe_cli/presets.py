"""Model variants: each states only how it differs from `base`, the paper's dense model.

Dimensions are inferred, not quoted: with them `base` has 107.05M parameters at a vocabulary of 40,000,
which is the figure the paper gives (arXiv:2508.10009, section 3).
"""

from __future__ import annotations

from typing import Any

from smoe_cli.errors import ConfigError

SINGLE_TASK = "single-task"
PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    # The same model, for a recipe of one task in one language: the control without any sharing between tasks.
    SINGLE_TASK: {},
    "dec-ffn-x2": {"decoder_ffn_scale": 2},
    "dec-smoe": {"decoder_experts_by": "task"},
    "enc-smoe": {"encoder_experts_by": "bandwidth"},
    "encdec-smoe": {"encoder_experts_by": "bandwidth", "decoder_experts_by": "task"},
    "small": {"d_model": 256, "heads": 4, "encoder_layers": 6, "decoder_layers": 3, "ffn_dim": 1024, "subsampling_channels": 512},
    "tiny": {"d_model": 144, "heads": 4, "encoder_layers": 4, "decoder_layers": 2, "ffn_dim": 576, "subsampling_channels": 256},
}
DEFAULT_PRESET = "encdec-smoe"
PAPER_SCALE: dict[str, Any] = {
    "name": "paper-scale",
    "tasks": {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de"]}},
    "tokenizer": {"vocab_size": 40_000},
}
"""What a preset is counted with where there is no recipe: the paper's two tasks, two bands and vocabulary."""


def known_preset(name: object) -> str:
    """Return a preset's name if there is such a preset.

    Raises:
        ConfigError: With the list of those there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset `{name}`; known presets: {', '.join(PRESETS)}", "correct the name of the preset")
    return name


def apply_preset(model: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a recipe's `model:` leaves open from its preset.

    Raises:
        ConfigError: If the preset is unknown.
    """
    name = known_preset(model.get("preset", DEFAULT_PRESET))
    return {"preset": name} | PRESETS[name] | model
