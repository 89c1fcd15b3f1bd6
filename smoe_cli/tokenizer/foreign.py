"""Tokenizers of converted models: their own pieces keep their ids, and guiding tokens follow after them.

A converted model has routes that its own prefix already stands for (`prefixes` in the card); every other route gets guiding
tokens between the beginning and the end of that prefix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece as spm
import tokenizers

from smoe_cli.errors import DataError
from smoe_cli.records import write_text_atomically
from smoe_cli.tags import Route
from smoe_cli.tokenizer.base import CARD_FILE, Tokenizer, broken_characters


class ForeignTokenizer(Tokenizer):
    """What converted tokenizers share.

    Their card says besides: `pieces` (how many the model came with), `end_id`, `blank_id`, `suppressed` (ids that are never
    written, besides special ones), `prefixes` (task/language -> ids), `before` and `after` (ids around the guiding tokens of a
    new route).
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        super().__init__(folder, card)
        self.pieces = int(card["pieces"])
        self.end_id, self.blank_id = int(card["end_id"]), int(card["blank_id"])
        self._prefixes: dict[str, list[int]] = card["prefixes"]
        self._before, self._after = list(card["before"]), list(card["after"])
        self._guiding_ids = {token: self.pieces + place for place, token in enumerate(self.guiding_tokens)}
        self.model_bytes = b"".join((folder / name).read_bytes() for name in self.files)

    def _silence(self, special: Iterable[int]) -> None:
        """Let a search never write special pieces, suppressed ones and guiding tokens; a text must be able to end."""
        never = {*special, *self.card["suppressed"], *self._guiding_ids.values()} - {self.end_id}
        self.silent_ids = tuple(sorted(never))

    @property
    def vocab_size(self) -> int:
        return self.pieces + len(self.guiding_tokens)

    def extend(self, guiding_tokens: Iterable[str], folder: Path) -> Tokenizer:
        """See `Tokenizer.extend`; only the card changes."""
        new = [token for token in dict.fromkeys(guiding_tokens) if token not in self._guiding_ids]
        card = self.card | {"guiding_tokens": [*self.guiding_tokens, *new], "vocab_size": self.vocab_size + len(new)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in self.files:
                shutil.copyfile(self.folder / name, folder / name)
        except OSError as error:
            raise DataError(f"cannot write `{folder}`: {error.strerror}", "check the folder's rights and the free disk space") from error
        write_text_atomically(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")
        return type(self)(folder, card)

    def tokens_of(self, route: Route) -> tuple[str, ...]:
        """None where the model's own prefix stands for the route."""
        return () if f"{route.task}/{route.lang}" in self._prefixes else route.guiding_tokens

    def guiding_ids(self, route: Route) -> list[int]:
        """The model's own prefix where it stands for the route; else the guiding tokens inside the prefix."""
        own = self._prefixes.get(f"{route.task}/{route.lang}")
        if own is not None:
            return own
        return [*self._before, *(self._guiding_id(token, route, self._guiding_ids) for token in route.guiding_tokens), *self._after]

    def like(self, route: Route) -> tuple[int, int]:
        """What the prefix begins with: a piece that is never written, and that says what will be."""
        del route
        return self._before[0], self._before[0]


class WhisperTokenizer(ForeignTokenizer):
    """GPT-2's byte-level BPE as Whisper has it, by the `tokenizers` library.

    Whisper writes a text with a space before it.
    """

    kind = "Whisper's byte-level BPE"
    files = ("whisper.json",)

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        super().__init__(folder, card)
        self._model = tokenizers.Tokenizer.from_str(self.model_bytes.decode("utf-8"))
        # Text that looks like a special token stays text.
        self._model.encode_special_tokens = True
        # Beyond the pieces that the library knows there are times.
        self._silence([*self._model.get_added_tokens_decoder(), *range(self._model.get_vocab_size(), self.pieces)])

    @property
    def merged_ids(self) -> frozenset[int]:
        return frozenset(i for piece, i in self._model.get_vocab(with_added_tokens=False).items() if len(piece) > 1)

    def broken(self, text: str) -> list[str]:
        """See `Tokenizer.broken`."""
        # Each character of a piece stands for one byte.
        return broken_characters(text, map(len, self._model.encode(" " + text, add_special_tokens=False).tokens))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; an empty one has none."""
        return list(self._model.encode(" " + text, add_special_tokens=False).ids) if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special and guiding tokens are silent."""
        text: str = self._model.decode([i for i in ids if i < self.pieces], skip_special_tokens=True)
        return text.removeprefix(" ")


class FairseqTokenizer(ForeignTokenizer):
    """SentencePiece whose pieces have the ids of a fairseq dictionary, as Speech2Text has it.

    Its card says besides: `lowercase` (texts before they are encoded) and `uppercase` (texts that are decoded).
    """

    kind = "SentencePiece with a fairseq dictionary"
    exact = False
    files = ("sentencepiece.bpe.model", "vocab.json")

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        super().__init__(folder, card)
        self._model = spm.SentencePieceProcessor(model_file=str(folder / self.files[0]))
        self._ids: dict[str, int] = json.loads((folder / self.files[1]).read_text(encoding="utf-8"))
        self._pieces_by_id = {number: piece for piece, number in self._ids.items()}
        self._unknown = self._ids["<unk>"]
        self._special = {number for piece, number in self._ids.items() if piece in ("<s>", "</s>", "<pad>") or piece.startswith("<lang:")}
        self._silence({*self._special, self._unknown})

    @property
    def merged_ids(self) -> frozenset[int]:
        return frozenset(self._ids.values()) - self._special - {self._unknown}

    def broken(self, text: str) -> list[str]:
        """See `Tokenizer.broken`; the characters are as the pieces would have them, in lower case if they are."""
        pieces = self._model.encode(self._as_learned(text), out_type=str)
        return [character for piece in pieces if self._id_of(piece) == self._unknown for character in piece if character != "\u2581"]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; characters that the pieces lack are unknown."""
        return [self._id_of(piece) for piece in self._model.encode(self._as_learned(text), out_type=str)]

    def _as_learned(self, text: str) -> str:
        return text.lower() if self.card["lowercase"] else text

    def _id_of(self, piece: str) -> int:
        number = self._ids.get(piece, self._unknown)
        return self._unknown if number in self._special else number

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special and guiding tokens are silent."""
        pieces = [self._pieces_by_id[i] for i in ids if i in self._pieces_by_id and i not in self._special]
        text: str = self._model.decode(pieces).strip()
        return text.upper() if self.card["uppercase"] else text
