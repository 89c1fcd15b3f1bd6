"""What can be told of a text without knowing its language: is it text at all, in the right script, as long as the audio allows?"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Literal

import regex

Severity = Literal["error", "note"]
SCRIPTS = {
    "Arabic": "ar fa ur ps sd ug ckb prs azb arz",
    "Armenian": "hy",
    "Bengali": "bn as",
    "Cyrillic": "ru uk be bg mk kk ky tg mn tt ba cv sr bs uz tk az",
    "Devanagari": "hi mr ne sa bho mai kok",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "zh cmn yue ja wuu ko",
    "Hangul": "ko",
    "Hebrew": "he yi iw",
    "Hiragana": "ja",
    "Kannada": "kn",
    "Katakana": "ja",
    "Khmer": "km",
    "Lao": "lo",
    "Latin": "af az ca ceb co cs cy da de en eo es et eu fi fil fr fy ga gd gl ha haw hr ht hu id ig is it jv la lb lt lv mg mi ms "
    "mt nb nl nn no ny oc pl pt ro rw sk sl sm sn so sq st su sv sw tk tl tr uz vi xh yo zu bs sr",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thaana": "dv",
    "Thai": "th",
    "Tibetan": "bo dz",
}
"""Unicode script -> languages that are written in it, as ISO 639 names them; some have several."""
MOSTLY, PARTLY = 0.5, 0.1
"""Share of letters in foreign scripts from which a text is in the wrong one, or to be looked at: names and loans are short."""
REPEATS = 8
"""A word that often in a row is a fault of what wrote the text, not speech."""
MOJIBAKE = regex.compile(r"[ÃÂ][\u0080-\u00bf]|â€|Ð[\u0080-\u00bf]")
"""UTF-8 that was read as Latin-1 or Windows-1252: `Ã¼` for `ü`."""
REORDERING = regex.compile(r"[\u202a-\u202e\u2066-\u2069]")
"""Characters that make a text look otherwise than it reads."""
INVISIBLE = regex.compile(
    r"[\u00ad\u061c\u180e\u200e\u200f\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    r"|(?<![\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}\p{Script=Tibetan}])\u200b"
    r"|(?<=^|[\s\p{P}\p{N}\p{Script=Latin}\p{Script=Cyrillic}\p{Script=Greek}\p{Script=Han}\p{Script=Hangul}])[\u200c\u200d]"
)
"""Characters that nobody sees: soft hyphens, directions; spaces without width and joiners, but for scripts that need them."""
FASTEST, SLOWEST = 60.0, 0.03
"""Characters per second that no speech has: the fastest speakers reach 25; one character in half a minute is no transcript."""
ENOUGH = 50
"""Texts of a language below which its own median says nothing."""
DEVIATIONS, AT_LEAST = 6.0, math.log(3)
"""An outlier is this many (robust) standard deviations of the logarithm from the median, and at least three times off."""
BIN = 0.02
"""Width of the histogram's bins on the natural logarithm: 2 %."""


def faults(text: str) -> Iterator[tuple[Severity, str]]:
    """(severity, what) of everything that makes a text none, or an odd one."""
    if not any(character.isalnum() for character in text):
        yield "error", "has an empty text" if not text.strip() else f"has a text without a letter or a digit: {shown(text)}"
        return
    odd = next((c for c in text if c == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(c) in ("Cc", "Cs", "Co")), None)
    if odd is not None:
        yield "error", f"has the character U+{ord(odd):04X} in its text, which nobody wrote: {shown(text)}"
    if hidden := REORDERING.search(text):
        yield "error", f"has the character U+{ord(hidden[0]):04X} in its text, which turns the order of what is shown: {shown(text)}"
    if hidden := INVISIBLE.search(text):
        yield "note", f"has the character U+{ord(hidden[0]):04X} in its text, which nobody sees and a model would learn: {shown(text)}"
    if MOJIBAKE.search(text):
        yield "note", f"has a text that looks like UTF-8 read as Latin-1: {shown(text)}"
    words, run = text.casefold().split(), 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        if run == REPEATS:
            yield "note", f"says `{word}` {REPEATS} times in a row: {shown(text)}"


def script_fault(text: str, lang: str) -> tuple[Severity, str] | None:
    """(severity, what) of a text in a script that its language is not written in; None: it is, or the language is not known."""
    foreign = _foreign(lang)
    letters = [character for character in text if character.isalpha()]
    if foreign is None or not letters:
        return None
    found = foreign.findall("".join(letters))
    share = len(found) / len(letters)
    if share < PARTLY:
        return None
    return "error" if share >= MOSTLY else "note", (
        f"is tagged `{lang}`, but {100 * share:.0f} % of its letters are in another script, such as `{found[0]}`: {shown(text)}"
    )


@cache
def _foreign(lang: str) -> regex.Pattern[str] | None:
    """Letters that a language is not written with; a region or script after the language (`pt-br`) is left aside."""
    own = [script for script, languages in SCRIPTS.items() if regex.split("[-_]", lang)[0] in languages.split()]
    if not own:
        return None
    scripts = "".join(rf"\p{{Script={script}}}" for script in [*own, "Common", "Inherited"])
    return regex.compile(rf"[\p{{L}}--[{scripts}]]", regex.V1)


def shown(text: str) -> str:
    """The beginning of a text, on one line and with nothing that a terminal obeys."""
    return "`" + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:60]) + ("…`" if len(text) > 60 else "`")


def characters(text: str) -> int:
    """Letters and digits, as one would count them."""
    return sum(c.isalnum() for c in unicodedata.normalize("NFC", text))


class Ratios:
    """Characters per second, by group: a histogram each, so that memory does not grow with the manifest."""

    def __init__(self) -> None:
        self._bins: dict[str, Counter[int]] = defaultdict(Counter)

    def add(self, group: str, ratio: float) -> None:
        self._bins[group][_bin(ratio)] += 1

    def limits(self) -> dict[str, tuple[float, float, float]]:
        """Group -> (lowest, median, highest) characters per second; only groups that have outliers."""
        found = {}
        for group, bins in self._bins.items():
            if bins.total() < ENOUGH:
                continue
            median = _median(bins)
            spread = _median(_distances(bins, median)) * BIN
            # For a normal distribution, 1.4826 median absolute deviations are one standard deviation.
            far = max(DEVIATIONS * 1.4826 * spread, AT_LEAST)
            if any(abs(place - median) * BIN > far for place in bins):
                middle = median * BIN
                found[group] = math.exp(middle - far), math.exp(middle), math.exp(middle + far)
        return found


def _bin(ratio: float) -> int:
    return round(math.log(ratio) / BIN)


def _distances(bins: Counter[int], median: int) -> Counter[int]:
    distances: Counter[int] = Counter()
    for place, count in bins.items():
        distances[abs(place - median)] += count
    return distances


def _median(bins: Counter[int]) -> int:
    left = bins.total() / 2
    for place in sorted(bins):
        left -= bins[place]
        if left <= 0:
            return place
    raise ValueError("the median of nothing")
