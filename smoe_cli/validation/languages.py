"""Which language a text is in, as far as its letters tell: py3langid, a classifier of byte n-grams for 140 languages."""

from __future__ import annotations

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

FEWEST_WORDS, LIKELIER = 5, 50.0
"""Shorter texts, and a language that is not so many times as likely as the one of the tag, say nothing. Of Tatoeba's sentences in English,
German and French at most one in a thousand may be called wrong, and 97 % must be where tags are exchanged: `tests/test_validation.py`."""
ALIKE = [set("hr sr bs sh".split()), set("no nb nn da".split()), set("id ms jv su".split()), set("gl pt".split()), set("cs sk".split())]
"""Languages that are too near each other to tell by a sentence."""
OTHER_NAMES = {"cmn": "zh", "fil": "tl", "iw": "he", "ji": "yi"}


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def other_language(text: str, lang: str) -> str | None:
    """The language that a text is surely in, if that is another than it is tagged with; None: it may well be right.

    Case does not count. A language that the classifier does not know is never called wrong.
    """
    lang = OTHER_NAMES.get(lang, lang).split("-")[0].split("_")[0]
    if len(text.split()) < FEWEST_WORDS or lang not in _identifier().labels:
        return None
    ranked = _identifier().rank(text.lower())
    found, likely = ranked[0]
    if likely <= LIKELIER * dict(ranked)[lang] or any({found, lang} <= some for some in ALIKE):
        return None
    return str(found)
