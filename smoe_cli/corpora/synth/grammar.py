"""The built-in parallel text: templates of a telephone desk, English with exact German and French.

A template's translation is a function of its slots, so every sentence is right by construction. The size of a
template is the product of its slots' sizes; a number below it names one sentence, so that distinct sentences are
drawn by drawing distinct numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from random import Random
from string import Formatter

from smoe_cli.corpora.synth.slots import SLOTS, Words
from smoe_cli.errors import DataError


@dataclass(frozen=True)
class Sentence:
    """One sentence in three languages: lower case, numbers in words.

    Attributes:
        kind: Subject, e.g. `price`.
        en: What is spoken.
        de: German translation.
        fr: French translation.
    """

    kind: str
    en: str
    de: str
    fr: str


@dataclass(frozen=True)
class Template:
    """A sentence with slots in braces; `{digit_2}` is the second of several slots named `digit`.

    Attributes:
        kind: Subject.
        weight: Share of all sentences, relative to the other templates.
        patterns: English, German and French; German and French may order the same slots anew.
    """

    kind: str
    weight: int
    patterns: Words

    @cached_property
    def slots(self) -> list[str]:
        """Slot names in the order of the English pattern."""
        return [name for _, name, _, _ in Formatter().parse(self.patterns[0]) if name]

    @cached_property
    def size(self) -> int:
        """Number of different sentences."""
        return prod(len(_values(slot)) for slot in self.slots)

    def sentence(self, number: int) -> Sentence:
        """The sentence with this number.

        Raises:
            ValueError: If the number is not below `size`.
        """
        if not 0 <= number < self.size:
            raise ValueError(f"template has sentences 0 to {self.size - 1}, not {number}")
        chosen: dict[str, Words] = {}
        for slot in self.slots:
            values = _values(slot)
            number, index = divmod(number, len(values))
            chosen[slot] = values[index]
        en, de, fr = (
            pattern.format(**{slot: words[language] for slot, words in chosen.items()}) for language, pattern in enumerate(self.patterns)
        )
        return Sentence(self.kind, en, de, fr)


def _values(slot: str) -> Sequence[Words]:
    return SLOTS[slot.partition("_")[0]]


def _templates(text: str) -> list[Template]:
    """Blocks of four lines: subject and weight, then the English, German and French pattern."""
    blocks = [[line.strip() for line in block.splitlines()] for block in text.strip().split("\n\n")]
    return [Template(head.split()[0], int(head.split()[1]), (en, de, fr)) for head, en, de, fr in blocks]


TEMPLATES = _templates("""
    phone 6
    my phone number is {digit_1} {digit_2} {digit_3} {digit_4} {digit_5} {digit_6}
    meine telefonnummer ist {digit_1} {digit_2} {digit_3} {digit_4} {digit_5} {digit_6}
    mon numéro de téléphone est le {digit_1} {digit_2} {digit_3} {digit_4} {digit_5} {digit_6}

    phone 6
    please call me back on {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}
    bitte rufen sie mich unter {digit_1} {digit_2} {digit_3} {digit_4} {digit_5} zurück
    veuillez me rappeler au {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}

    account 4
    my account number is {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}
    meine kontonummer ist {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}
    mon numéro de compte est le {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}

    account 4
    the order number is {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}
    die bestellnummer ist {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}
    le numéro de commande est le {digit_1} {digit_2} {digit_3} {digit_4} {digit_5}

    account 4
    the invoice number is {digit_1} {digit_2} {digit_3} {digit_4}
    die rechnungsnummer ist {digit_1} {digit_2} {digit_3} {digit_4}
    le numéro de facture est le {digit_1} {digit_2} {digit_3} {digit_4}

    date 8
    my appointment is on {weekday} {date}
    mein termin ist am {weekday} dem {date}
    mon rendez-vous est le {weekday} {date}

    date 6
    the parcel will arrive on {date}
    das paket kommt am {date} an
    le colis arrivera le {date}

    date 6
    my contract ends on {date}
    mein vertrag endet am {date}
    mon contrat se termine le {date}

    date 6
    i need a room for {date}
    ich brauche ein zimmer für den {date}
    j'ai besoin d'une chambre pour le {date}

    time 5
    the {vehicle} to {city} leaves at {time}
    der {vehicle} nach {city} fährt um {time} ab
    le {vehicle} pour {city} part à {time}

    time 5
    is there a {vehicle} to {city} at {time}
    gibt es um {time} einen {vehicle} nach {city}
    y a-t-il un {vehicle} pour {city} à {time}

    time 5
    we can meet on {weekday} at {time}
    wir können uns am {weekday} um {time} treffen
    nous pouvons nous retrouver {weekday} à {time}

    time 5
    the {place} opens on {weekday} at {time}
    {place} öffnet am {weekday} um {time}
    {place} ouvre {weekday} à {time}

    time 4
    a table for {few} on {weekday} at {time} please
    einen tisch für {few} am {weekday} um {time} bitte
    une table pour {few} {weekday} à {time} s'il vous plaît

    price 4
    the total is {price}
    die summe beträgt {price}
    le total est de {price}

    price 5
    {item} costs {price}
    {item} kostet {price}
    {item} coûte {price}

    price 6
    i paid {price} for {item}
    ich habe {price} für {item} bezahlt
    j'ai payé {price} pour {item}

    address 6
    my address is {house} {street}
    meine adresse ist {street} {house}
    mon adresse est le {house} {street}

    address 6
    please send it to {house} {street}
    bitte senden sie es an die {street} {house}
    veuillez l'envoyer au {house} {street}

    address 6
    i need a taxi to {house} {street}
    ich brauche ein taxi zur {street} {house}
    j'ai besoin d'un taxi pour le {house} {street}

    address 2
    the {place} is on {street}
    {place} ist in der {street}
    {place} se trouve dans {street}

    request 14
    {ask} {action} {when}
    {ask} {when} {action}
    {ask} {action} {when}

    request 5
    {greeting} {ask} {action}
    {greeting} {ask} {action}
    {greeting} {ask} {action}

    request 5
    {you} {favour} {when}
    {you} mir {when} {favour}
    {you} {favour} {when}

    travel 5
    i would like to go to {city} {when}
    ich möchte {when} nach {city} fahren
    je voudrais aller à {city} {when}

    travel 6
    i need {few} tickets to {city} for {weekday}
    ich brauche {few} fahrkarten nach {city} für {weekday}
    j'ai besoin de {few} billets pour {city} pour {weekday}
""")

CAPACITY = sum(template.size for template in TEMPLATES)
"""Number of different sentences that the grammar can give."""


def draw(count: int, seed: int) -> list[Sentence]:
    """Draw distinct sentences in random order; no two share their text in any of the three languages.

    Args:
        count: How many.
        seed: Same seed and count, same sentences.

    Raises:
        DataError: If the grammar has fewer sentences.
    """
    if count > CAPACITY:
        raise DataError(
            f"the synthetic corpus is asked for {count:,} distinct sentences in all; its grammar has {CAPACITY:,}",
            "lower the numbers under `sentences` of the synth corpus",
        )
    rng = Random(seed)
    sentences = [
        template.sentence(number)
        for template, share in zip(TEMPLATES, _shares(count), strict=True)
        for number in rng.sample(range(template.size), share)
    ]
    rng.shuffle(sentences)
    return sentences


def _shares(count: int) -> list[int]:
    """Sentences per template, by weight; what a small template cannot give, the others do."""
    shares = [0] * len(TEMPLATES)
    while count:
        open_templates = [i for i, template in enumerate(TEMPLATES) if shares[i] < template.size]
        weights = sum(TEMPLATES[i].weight for i in open_templates)
        wanted = count
        for i in open_templates:
            # At least one, so that every round brings the end nearer; the rounding's rest goes to the first templates.
            more = min(max(1, wanted * TEMPLATES[i].weight // weights), TEMPLATES[i].size - shares[i], count)
            shares[i] += more
            count -= more
    return shares
