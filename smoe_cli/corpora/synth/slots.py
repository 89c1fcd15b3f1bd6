"""What fills the templates' slots: English with its German and French, in the form that the templates need."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from smoe_cli.corpora.synth.number_words import english, english_ordinal, french, french_date_number, german, german_ordinal

Words = tuple[str, str, str]
"""The same in English, German and French."""


def _table(text: str) -> list[Words]:
    """One entry per line: `english | german | french`."""
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]
    return [(en, de, fr) for en, de, fr in rows]


def _numbers(first: int, last: int) -> list[Words]:
    return [(english(n), german(n), french(n)) for n in range(first, last + 1)]


def _dates() -> Iterator[Words]:
    """Every day of a year as `march first`, in German in the weak form that follows `am` and `dem`."""
    for (en, de, fr), days in zip(MONTHS, (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True):
        for day in range(1, days + 1):
            yield f"{en} {english_ordinal(day)}", f"{german_ordinal(day)} {de}", f"{french_date_number(day)} {fr}"


def _times() -> Iterator[Words]:
    """Clock times of the hours one to eleven; twelve is left out, for French then says `midi` or `minuit`."""
    for hour in range(1, 12):
        french_hour = "une heure" if hour == 1 else f"{french(hour)} heures"
        yield f"{english(hour)} o'clock", "ein uhr" if hour == 1 else f"{german(hour)} uhr", french_hour
        # German names the half hour by the hour that it leads to.
        yield f"half past {english(hour)}", f"halb {german(hour + 1)}", f"{french_hour} et demie"
        yield f"quarter past {english(hour)}", f"viertel nach {german(hour)}", f"{french_hour} et quart"
        yield f"quarter to {english(hour)}", f"viertel vor {german(hour)}", f"{french_hour} moins le quart"
        for minutes in (10, 20):
            en, de, fr = english(minutes), german(minutes), french(minutes)
            yield f"{en} past {english(hour)}", f"{de} nach {german(hour)}", f"{french_hour} {fr}"
            yield f"{en} to {english(hour)}", f"{de} vor {german(hour)}", f"{french_hour} moins {fr}"


def _prices() -> Iterator[Words]:
    """2 to 99, then by fifty to 950, and small sums with cents, in two currencies (whose German plural is the singular)."""
    for en, de, fr in (("euros", "euro", "euros"), ("dollars", "dollar", "dollars")):
        for n in (*range(2, 100), *range(100, 1000, 50)):
            yield f"{english(n)} {en}", f"{german(n)} {de}", f"{french(n)} {fr}"
        for n, cents in product(range(2, 20), range(10, 100, 10)):
            yield f"{english(n)} {en} {english(cents)}", f"{german(n)} {de} {german(cents)}", f"{french(n)} {fr} {french(cents)}"


def _when() -> Iterator[Words]:
    yield from _table("""
        today             | heute             | aujourd'hui
        tomorrow          | morgen            | demain
        this evening      | heute abend       | ce soir
        tomorrow morning  | morgen früh       | demain matin
        tomorrow evening  | morgen abend      | demain soir
        next week         | nächste woche     | la semaine prochaine
    """)
    for (en, de, fr), (en_part, de_part, fr_part) in product(WEEKDAYS, [("", "", ""), *PARTS_OF_DAY]):
        yield f"on {en} {en_part}".rstrip(), f"am {de}{de_part}", f"{fr} {fr_part}".rstrip()


WEEKDAYS = _table("""
    monday    | montag     | lundi
    tuesday   | dienstag   | mardi
    wednesday | mittwoch   | mercredi
    thursday  | donnerstag | jeudi
    friday    | freitag    | vendredi
    saturday  | samstag    | samedi
    sunday    | sonntag    | dimanche
""")
PARTS_OF_DAY = _table("""
    morning   | morgen     | matin
    afternoon | nachmittag | après-midi
    evening   | abend      | soir
""")
MONTHS = _table("""
    january   | januar    | janvier
    february  | februar   | février
    march     | märz      | mars
    april     | april     | avril
    may       | mai       | mai
    june      | juni      | juin
    july      | juli      | juillet
    august    | august    | août
    september | september | septembre
    october   | oktober   | octobre
    november  | november  | novembre
    december  | dezember  | décembre
""")
YOU = _table("""
    can you          | können sie          | pouvez-vous
    could you please | könnten sie bitte   | pourriez-vous s'il vous plaît
""")

SLOTS: dict[str, list[Words]] = {
    "digit": _numbers(0, 9),
    "few": _numbers(2, 9),
    "house": _numbers(2, 40),
    "weekday": WEEKDAYS,
    "date": list(_dates()),
    "time": list(_times()),
    "price": list(_prices()),
    "when": list(_when()),
    "city": _table("""
        london | london   | londres
        paris  | paris    | paris
        berlin | berlin   | berlin
        vienna | wien     | vienne
        rome   | rom      | rome
        lisbon | lissabon | lisbonne
        boston | boston   | boston
        geneva | genf     | genève
    """),
    # A street keeps its name; German and French only place it.
    "street": [
        (name, name, name)
        for name in (
            f"{first} {second}"
            for first, second in product("park hill church station river garden market mill bridge queen".split(), ("street", "road"))
        )
    ],
    # German in the nominative and the accusative alike (neuter or feminine).
    "item": _table("""
        the room    | das zimmer   | la chambre
        the ticket  | die fahrkarte | le billet
        the taxi    | das taxi     | le taxi
        the parcel  | das paket    | le colis
    """),
    "place": _table("""
        bank    | die bank     | la banque
        office  | das büro     | le bureau
        shop    | das geschäft | le magasin
        museum  | das museum   | le musée
    """),
    # Masculine in German and French.
    "vehicle": _table("""
        train | zug | train
        bus   | bus | bus
    """),
    "greeting": _table("""
        hello        | hallo          | bonjour
        good evening | guten abend    | bonsoir
        excuse me    | entschuldigung | excusez-moi
    """),
    "you": YOU,
    "ask": YOU
    + _table("""
        i would like to | ich möchte   | je voudrais
        i need to       | ich muss     | je dois
        can i           | kann ich     | puis-je
    """),
    # German with its object first and the infinitive at the end, as after a modal verb.
    "action": _table("""
        cancel my order        | meine bestellung stornieren | annuler ma commande
        cancel my booking      | meine buchung stornieren    | annuler ma réservation
        cancel my appointment  | meinen termin absagen       | annuler mon rendez-vous
        cancel my contract     | meinen vertrag kündigen     | résilier mon contrat
        change my order        | meine bestellung ändern     | modifier ma commande
        change my booking      | meine buchung ändern        | modifier ma réservation
        change my address      | meine adresse ändern        | modifier mon adresse
        change my ticket       | meine fahrkarte umtauschen  | échanger mon billet
        confirm my order       | meine bestellung bestätigen | confirmer ma commande
        confirm my booking     | meine buchung bestätigen    | confirmer ma réservation
        confirm my appointment | meinen termin bestätigen    | confirmer mon rendez-vous
        check my account       | mein konto prüfen           | vérifier mon compte
        check the invoice      | die rechnung prüfen         | vérifier la facture
        check the parcel       | das paket prüfen            | vérifier le colis
        pay the invoice        | die rechnung bezahlen       | payer la facture
        block my card          | meine karte sperren         | bloquer ma carte
        order a new card       | eine neue karte bestellen   | commander une nouvelle carte
        order a taxi           | ein taxi bestellen          | commander un taxi
        book a room            | ein zimmer buchen           | réserver une chambre
        book a table           | einen tisch reservieren     | réserver une table
    """),
    # German without `mir`, which the template puts before the time.
    "favour": _table("""
        send me the invoice  | die rechnung senden   | m'envoyer la facture
        send me the contract | den vertrag senden    | m'envoyer le contrat
        send me the ticket   | die fahrkarte senden  | m'envoyer le billet
        send me the parcel   | das paket senden      | m'envoyer le colis
        send me a new card   | eine neue karte senden | m'envoyer une nouvelle carte
        send me a taxi       | ein taxi schicken     | m'envoyer un taxi
        book me a room       | ein zimmer buchen     | me réserver une chambre
        book me a table      | einen tisch reservieren | me réserver une table
    """),
}
"""Slot name -> its values; the number of a sentence counts through them, so their order decides what a seed draws."""
