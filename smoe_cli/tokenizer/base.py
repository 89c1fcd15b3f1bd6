"""What every kind of tokenizer offers."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from smoe_cli.errors import RouteError
from smoe_cli.tags import Route

CARD_FILE = "tokenizer.json"
EXTENDED = ("guiding_tokens", "vocab_size")
"""What a card says of a tokenizer that has got more guiding tokens."""


class Tokenizer(ABC):
    """Text <-> token ids, and routes -> guiding-token ids: what every kind of tokenizer offers.

    A tokenizer is some files and a card (`tokenizer.json`) that names the kind, the number of pieces and the guiding tokens.

    Args:
        folder: Holds the files.
        card: What `tokenizer.json` says.

    Attributes:
        end_id: Ends a text.
        blank_id: Padding, and CTC's blank: neither is ever written.
        silent_ids: Pieces that a search must not write.
        guiding_tokens: In the order of their ids.
        exact: Whether every text comes back as it was.
        model_bytes: What makes two tokenizers the same, but for their guiding tokens.
    """

    kind: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    exact: ClassVar[bool] = True
    end_id: int
    blank_id: int
    silent_ids: tuple[int, ...]
    model_bytes: bytes

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.folder, self.card = folder, card
        self.guiding_tokens: tuple[str, ...] = tuple(card["guiding_tokens"])

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Pieces in all, guiding tokens included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never a special or guiding token, whatever the text says."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special and guiding tokens are silent."""

    @property
    @abstractmethod
    def merged_ids(self) -> frozenset[int]:
        """Pieces that a text can have and that are more than one byte: what the size of the vocabulary is spent on."""

    @abstractmethod
    def broken(self, text: str) -> list[str]:
        """Characters of a text, as often as they occur, that no piece holds whole: spread over several as bytes, or unknown."""

    @abstractmethod
    def extend(self, guiding_tokens: Iterable[str], folder: Path) -> Tokenizer:
        """Write a copy that has these guiding tokens too: those it lacks follow after all other pieces, which keep their ids.

        Args:
            guiding_tokens: e.g. `<transcribe>`, `<fr>`.
            folder: Where to write.

        Raises:
            DataError: If the folder cannot be written.
        """

    @abstractmethod
    def guiding_ids(self, route: Route) -> list[int]:
        """The decoder's prefix for a route.

        Raises:
            RouteError: If the tokenizer has no such guiding token.
        """

    @abstractmethod
    def like(self, route: Route) -> tuple[int, int]:
        """Pieces whose weights a new task's and a new language's guiding token start with, of a model that has this route."""

    def tokens_of(self, route: Route) -> tuple[str, ...]:
        """Guiding tokens that a route needs here."""
        return route.guiding_tokens

    def continues(self, other: Tokenizer) -> bool:
        """Whether this is the other tokenizer, or the other one extended: every piece of it has the same id here."""
        same_tokens = self.guiding_tokens[: len(other.guiding_tokens)] == other.guiding_tokens
        return self._rest() == other._rest() and same_tokens and self.model_bytes.startswith(other.model_bytes)

    def _rest(self) -> dict[str, Any]:
        """What the card says besides what `extend` changes, such as the kind and the prefix of each route."""
        return {name: said for name, said in self.card.items() if name not in EXTENDED}

    def same_as(self, other: Tokenizer) -> bool:
        """Whether every text and every route has the same ids in both."""
        return self.continues(other) and other.continues(self)

    def difference(self, other: Tokenizer) -> str:
        """The first thing in which another tokenizer differs; empty: nothing."""
        if self.kind != other.kind:
            return f"kind {self.kind} -> {other.kind}"
        if self.vocab_size != other.vocab_size:
            return f"{self.vocab_size:,} -> {other.vocab_size:,} pieces"
        if self.guiding_tokens != other.guiding_tokens:
            return f"guiding tokens {' '.join(self.guiding_tokens)} -> {' '.join(other.guiding_tokens)}"
        own, theirs = self._rest(), other._rest()
        if unlike := [name for name in own | theirs if own.get(name) != theirs.get(name)]:
            return f"`{unlike[0]}` in {CARD_FILE}: {own.get(unlike[0])} -> {theirs.get(unlike[0])}"
        return "" if self.same_as(other) else "its pieces, learned from other text"

    def save(self, folder: Path) -> None:
        """Copy into another folder, e.g. a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*self.files, CARD_FILE):
            shutil.copyfile(self.folder / name, folder / name)

    def _guiding_id(self, token: str, route: Route, ids: Mapping[str, int]) -> int:
        if token not in ids:
            raise RouteError(f"route `{route}`: no guiding token `{token}`; known: {', '.join(ids)}", "correct the tag")
        return ids[token]


def broken_characters(text: str, lengths: Iterable[int]) -> list[str]:
    """Characters of a text that its pieces break into bytes.

    Args:
        lengths: Bytes of each piece; together those of the text, with one space before it.
    """
    if text.isascii():
        return []
    data, starts, at = text.encode("utf-8"), dict[int, None](), -1
    for length in lengths:
        start = at = at + length
        while 0 < start < len(data) and data[start] & 0xC0 == 0x80:  # inside a character
            start -= 1
        if 0 <= start < at < len(data):
            starts[start] = None
    return [data[start : start + 4].decode("utf-8", errors="ignore")[0] for start in starts]
