"""Model variants: each states only how it differs from `base`, the paper's dense model.

Dimensions are inferred, not quoted: with them `base` has 107.05M parameters at a vocabulary of 40,000,
which is the figure the paper gives (arXiv:2508.10009, section 3).
"""

from __future__ import annotations

from typing import Any

from smoe_cli.errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "dec-ffn-x2": {"decoder_ffn_scale": 2},
    "dec-smoe": {"decoder_experts_by": "task"},
    "enc-smoe": {"encoder_experts_by": "bandwidth"},
    "encdec-smoe": {"encoder_experts_by": "bandwidth", "decoder_experts_by": "task"},
}
DEFAULT_PRESET = "encdec-smoe"


def apply_preset(model: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a recipe's `model:` leaves open from its preset.

    Raises:
        ConfigError: If the preset is unknown.
    """
    name = model.get("preset", DEFAULT_PRESET)
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset `{name}`; known presets: {', '.join(PRESETS)}", "correct `model.preset`")
    return {"preset": name} | PRESETS[name] | model
