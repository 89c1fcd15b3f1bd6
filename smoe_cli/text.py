"""Text policy: the same clean-up for what is trained on, what is scored against, and what is scored."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class TextPolicy:
    """What is done to texts: Unicode NFC and single spaces always, case and punctuation as a recipe says.

    Attributes:
        lowercase: Whether all text becomes lower case.
        strip_punctuation: Whether punctuation and symbols go. Apostrophes and hyphens inside a word stay: `it's` and
            `rendez-vous` are words.
    """

    lowercase: bool = False
    strip_punctuation: bool = False

    def clean(self, text: str) -> str:
        """A text by this policy; cleaning it again changes nothing."""
        text = unicodedata.normalize("NFC", text)
        if self.lowercase:
            # Lower case of a composed letter may be decomposed: `İ` becomes `i` and a dot above.
            text = unicodedata.normalize("NFC", text.lower())
        if self.strip_punctuation:
            text = "".join(_kept(text, i) for i in range(len(text)))
        return " ".join(text.split())

    def __str__(self) -> str:
        """As people read it."""
        return ", ".join(["NFC, single spaces", *["lower case"] * self.lowercase, *["no punctuation"] * self.strip_punctuation])

    @property
    def signature(self) -> str:
        """As the signature of a score names it: `nfc+lower+nopunct`."""
        return "+".join(["nfc", *["lower"] * self.lowercase, *["nopunct"] * self.strip_punctuation])


def _kept(text: str, i: int) -> str:
    character = text[i]
    if unicodedata.category(character)[0] not in "PS":
        return character
    inside = 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
    if inside and character in "'\u2019-":
        return "'" if character == "\u2019" else character
    return " "
