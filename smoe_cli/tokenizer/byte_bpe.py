"""Our own tokenizer: byte-level BPE on SentencePiece.

"Byte-level" means: text becomes UTF-8 bytes, each byte one printable character, and BPE merges those. There are
256 base symbols, so no text in any script is unknown, and every text comes back exactly.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import sentencepiece as spm

from smoe_cli.errors import CheckpointError, ConfigError, DataError, SmoeError
from smoe_cli.records import write_atomically, write_text_atomically
from smoe_cli.tags import Route
from smoe_cli.tokenizer.base import CARD_FILE, Tokenizer, broken_characters

MODEL_FILE = "bpe.model"
PAD_ID, UNKNOWN_ID, END_ID = 0, 1, 2
"""Padding is also CTC's blank: neither is ever written. Unknown exists because SentencePiece wants one; bytes never need it."""

_MOST = re.compile(r"Vocabulary size too high .* value <= (\d+)")
"""In the message of SentencePiece's error."""


def _printable_bytes() -> dict[int, str]:
    """Each byte but the space -> one printable character; visible ASCII stands for itself, the rest starts at U+0100.

    The space stays a space, so that SentencePiece keeps merges inside words.
    """
    visible = set(range(0x21, 0x7F))
    return {byte: chr(byte) if byte in visible else chr(0x100 + byte) for byte in range(256) if byte != 0x20} | {0x20: " "}


_TO_CHARACTER = _printable_bytes()
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}
_SPACE = "\u2581"
_CONTROL = 3
"""SentencePiece's type of pieces that no text can give."""


def _as_characters(text: str) -> str:
    return "".join(_TO_CHARACTER[byte] for byte in text.encode("utf-8"))


def _control_piece(token: str) -> bytes:
    """A control symbol as one more entry of `ModelProto.pieces` (field 1): the piece (1), its score (2) and its type (3)."""
    text = token.encode("utf-8")
    entry = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + _varint(_CONTROL)
    return b"\x0a" + _varint(len(entry)) + entry


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


class ByteBPE(Tokenizer):
    """Byte-level BPE that was learned here: `bpe.model`, as `ByteBPE.train` leaves it.

    Raises:
        CheckpointError: If card and model do not belong together.
    """

    kind = "byte-level BPE"
    files = (MODEL_FILE,)
    end_id = END_ID
    blank_id = PAD_ID
    silent_ids = (PAD_ID, UNKNOWN_ID)

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        super().__init__(folder, card)
        self.model_bytes = (folder / MODEL_FILE).read_bytes()
        self._model = spm.SentencePieceProcessor(model_proto=self.model_bytes)
        self._guiding_ids = {token: self._model.piece_to_id(token) for token in self.guiding_tokens}
        strange = [token for token, number in self._guiding_ids.items() if not self._model.is_control(number)]
        if strange or card["vocab_size"] != self.vocab_size:
            what = f"does not know {', '.join(strange)}" if strange else f"has {self.vocab_size} pieces, not {card['vocab_size']}"
            raise CheckpointError(f"in `{folder}` {CARD_FILE} is of another tokenizer: {MODEL_FILE} {what}", "run `smoe tokenize` again")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, guiding_tokens: Sequence[str], folder: Path) -> ByteBPE:
        """Learn merges from texts and write the tokenizer's folder.

        Args:
            texts: Training sentences; gone through once.
            vocab_size: Pieces in all: 256 bytes, 3 special and the guiding tokens, and merges.
            guiding_tokens: e.g. `<transcribe>`, `<de>`; control symbols, so text that looks like them stays text.
            folder: Where to write.

        Raises:
            DataError: If there is no text.
            ConfigError: If the texts cannot give so many pieces.
        """
        broken: list[SmoeError] = []

        def characters() -> Iterator[str]:
            try:
                yield from filter(None, map(_as_characters, texts))
            except SmoeError as error:
                broken.append(error)  # which the trainer would hand on as text
                raise

        lines = characters()
        first = next(lines, None)
        if first is None:
            raise DataError("no text to learn a tokenizer from", "check that the train split has transcripts")
        model = io.BytesIO()
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=chain([first], lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,
                required_chars="".join(_TO_CHARACTER[byte] for byte in range(256) if byte != 0x20),
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                split_by_unicode_script=False,
                split_by_number=False,
                max_sentence_length=1 << 20,
                pad_id=PAD_ID,
                unk_id=UNKNOWN_ID,
                eos_id=END_ID,
                bos_id=-1,
                control_symbols=list(guiding_tokens),
                minloglevel=2,
            )
        except RuntimeError as error:
            if broken:
                raise broken[0] from None
            most = _MOST.search(str(error))
            raise ConfigError(
                f"cannot learn {vocab_size:,} pieces from these texts: " + (f"they give at most {int(most[1]):,}" if most else str(error)),
                f"`tokenizer.vocab_size: {most[1]}`, or less; or train on more text" if most else "lower `tokenizer.vocab_size`",
            ) from error
        write_atomically(folder / MODEL_FILE, model.getvalue())
        card = {"kind": cls.kind, "vocab_size": vocab_size, "guiding_tokens": list(guiding_tokens)}
        write_text_atomically(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")
        return cls(folder, card)

    def extend(self, guiding_tokens: Iterable[str], folder: Path) -> ByteBPE:
        """See `Tokenizer.extend`; the new pieces become part of the model file."""
        new = [token for token in dict.fromkeys(guiding_tokens) if token not in self._guiding_ids]
        # A serialized model is a sequence of fields, and its pieces may stand anywhere in it.
        model = self.model_bytes + b"".join(map(_control_piece, new))
        card = {"kind": self.kind, "vocab_size": self.vocab_size + len(new), "guiding_tokens": [*self.guiding_tokens, *new]}
        write_atomically(folder / MODEL_FILE, model)
        write_text_atomically(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")
        return ByteBPE(folder, card)

    @property
    def vocab_size(self) -> int:
        return int(self._model.get_piece_size())

    @property
    def merged_ids(self) -> frozenset[int]:
        return frozenset(
            i
            for i in range(self.vocab_size)
            if len(self._model.id_to_piece(i)) > 1 and not self._model.is_control(i) and not self._model.is_unknown(i)
        )

    def broken(self, text: str) -> list[str]:
        """See `Tokenizer.broken`."""
        return broken_characters(text, map(len, self._model.encode(_as_characters(text), out_type=str)))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never a special or guiding token, whatever the text says."""
        return list(self._model.encode(_as_characters(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special and guiding tokens are silent.

        A cut-off multi-byte character, which a model can write, becomes U+FFFD.
        """
        pieces = "".join(self._model.id_to_piece(i) for i in ids if not self._model.is_control(i) and not self._model.is_unknown(i))
        spaced = pieces.replace(_SPACE, " ").removeprefix(" ")
        return bytes(_TO_BYTE[character] for character in spaced).decode("utf-8", errors="replace")

    def guiding_ids(self, route: Route) -> list[int]:
        """The decoder's prefix for a route: its task's and its language's token."""
        return [self._guiding_id(token, route, self._guiding_ids) for token in route.guiding_tokens]

    def like(self, route: Route) -> tuple[int, int]:
        """The guiding tokens of the route itself."""
        task, language = self.guiding_ids(route)
        return task, language
