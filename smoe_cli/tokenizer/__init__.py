"""Text <-> tokens, with guiding tokens that no text can forge: our own byte-level BPE, and the tokenizers of converted models."""

from __future__ import annotations

import json
from pathlib import Path

from smoe_cli.errors import CheckpointError
from smoe_cli.tokenizer.base import CARD_FILE, Tokenizer
from smoe_cli.tokenizer.byte_bpe import END_ID, PAD_ID, UNKNOWN_ID, ByteBPE
from smoe_cli.tokenizer.foreign import FairseqTokenizer, WhisperTokenizer

__all__ = ["END_ID", "PAD_ID", "UNKNOWN_ID", "ByteBPE", "FairseqTokenizer", "Tokenizer", "WhisperTokenizer", "open_tokenizer"]

KINDS: dict[str, type[Tokenizer]] = {found.kind: found for found in (ByteBPE, WhisperTokenizer, FairseqTokenizer)}


def open_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer of any kind.

    Raises:
        CheckpointError: If the folder is incomplete, damaged, or holds a kind that is not known.
    """
    if not (folder / CARD_FILE).exists():
        raise CheckpointError(f"there is no tokenizer in `{folder}`", "run `smoe tokenize`")
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        kind = card["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no usable tokenizer in `{folder}`: {error}", "run `smoe tokenize`") from error
    if kind not in KINDS:
        raise CheckpointError(f"tokenizer in `{folder}` is `{kind}`; known kinds: {', '.join(KINDS)}", "run `smoe tokenize` to make one")
    try:
        return KINDS[kind](folder, card)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"no usable tokenizer in `{folder}`: {error}", "run `smoe tokenize`") from error
