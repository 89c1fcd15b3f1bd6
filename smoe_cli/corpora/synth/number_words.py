"""Number words of English, German and French; French as in France (70 is `soixante-dix`), traditional hyphens."""

from __future__ import annotations

EN_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
EN_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
EN_ORDINALS = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth", 12: "twelfth", 20: "twentieth", 30: "thirtieth"}

DE_SMALL = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
).split()
DE_TENS = "_ _ zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
DE_ORDINALS = {1: "ersten", 3: "dritten", 7: "siebten", 8: "achten"}

FR_SMALL = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf".split()
)
FR_TENS = "_ _ vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt".split()


def english(n: int) -> str:
    """Cardinal of 0 to 999, in words without hyphens."""
    _check(n)
    if n >= 100:
        rest = f" {english(n % 100)}" if n % 100 else ""
        return f"{EN_SMALL[n // 100]} hundred{rest}"
    if n < 20:
        return EN_SMALL[n]
    return EN_TENS[n // 10] + (f" {EN_SMALL[n % 10]}" if n % 10 else "")


def german(n: int) -> str:
    """Cardinal of 0 to 999 as it is counted; 1 is `eins`, and compounds end in `eins` (101 is `einhunderteins`)."""
    _check(n)
    if n >= 100:
        return _german_one(n // 100) + "hundert" + (german(n % 100) if n % 100 else "")
    if n < 20:
        return DE_SMALL[n]
    return (f"{_german_one(n % 10)}und" if n % 10 else "") + DE_TENS[n // 10]


def french(n: int) -> str:
    """Masculine cardinal of 0 to 999; `vingt` and `cent` take their plural s only at the end of the number."""
    _check(n)
    if n >= 100:
        hundreds = "cent" if n // 100 == 1 else f"{FR_SMALL[n // 100]} cent"
        if n % 100:
            return f"{hundreds} {french(n % 100)}"
        return hundreds if n == 100 else f"{hundreds}s"
    if n < 20:
        return FR_SMALL[n]
    if n == 80:
        return "quatre-vingts"
    # 70 to 79 and 90 to 99 count on from sixty and eighty by ten to nineteen.
    unit = n % 20 if n >= 60 else n % 10
    if not unit:
        return FR_TENS[n // 10]
    joint = " et " if unit in (1, 11) and n < 80 else "-"
    return f"{FR_TENS[n // 10]}{joint}{FR_SMALL[unit]}"


def english_ordinal(n: int) -> str:
    """Ordinal of 1 to 99, e.g. `twenty first`."""
    if n in EN_ORDINALS:
        return EN_ORDINALS[n]
    if n > 20 and n % 10:
        return f"{EN_TENS[n // 10]} {english_ordinal(n % 10)}"
    return english(n).removesuffix("y") + ("ieth" if n >= 20 else "th")


def german_ordinal(n: int) -> str:
    """Ordinal of 1 to 99 with the weak ending that dates take, e.g. `einundzwanzigsten`."""
    return DE_ORDINALS.get(n) or german(n) + ("sten" if n >= 20 else "ten")


def french_date_number(n: int) -> str:
    """Day of the month: only the first is an ordinal."""
    return "premier" if n == 1 else french(n)


def _german_one(n: int) -> str:
    """A unit inside a compound, where 1 loses its s."""
    return "ein" if n == 1 else DE_SMALL[n]


def _check(n: int) -> None:
    if not 0 <= n <= 999:
        raise ValueError(f"{n} has no number words here; 0 to 999 have")
