"""Text policy: the same clean-up for what is trained on and what is scored against."""

from __future__ import annotations

import unicodedata


def clean(text: str, lowercase: bool, strip_punctuation: bool) -> str:
    """NFC, single spaces, and as the recipe says lower case and no punctuation.

    Apostrophes and hyphens inside a word stay: `it's` and `rendez-vous` are words.
    """
    text = unicodedata.normalize("NFC", text)
    if lowercase:
        text = text.lower()
    if strip_punctuation:
        text = "".join(_kept(text, i) for i in range(len(text)))
    return " ".join(text.split())


def policy(lowercase: bool, strip_punctuation: bool) -> str:
    """What `clean` does, in words."""
    return ", ".join(["NFC, single spaces", *(["lower case"] if lowercase else []), *(["no punctuation"] if strip_punctuation else [])])


def _kept(text: str, i: int) -> str:
    character = text[i]
    if unicodedata.category(character)[0] not in "PS":
        return character
    inside = 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
    if inside and character in "'\u2019-":
        return "'" if character == "\u2019" else character
    return " "
