"""Tiny trees of published corpora: the folders, names and formats that their archives unpack to, with tones instead of speech.

`doors.py` has those of tables and other toolkits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lhotse import MonoCut

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts
from smoe_cli.layout import Layout
from smoe_cli.preparation import PrepareReport
from smoe_cli.recipe import load_config
from tests.corpora.doors import DOORS
from tests.corpora.writing import text, tone

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name: str, root: Path, *changes: str) -> Config:
    """A recipe as it is in its folder, over the corpus in `root`."""
    return load_config(RECIPES / name / "smoe.yaml", [f"data.root={root}", f"exp_dir={root / 'exp'}", *changes])


def prepared(name: str, root: Path, *changes: str) -> tuple[PrepareReport, list[MonoCut]]:
    """What `smoe prepare` says, and the cuts of all splits that it wrote."""
    config = recipe(name, root, *changes)
    report = pipeline.prepare(config)
    paths = [Layout.of(config).cuts(split) for split in ("train", "dev", "test")]
    return report, [cut for path in paths if path.is_file() for cut in read_cuts(path)]


def _librispeech_part(root: Path, part: str, speaker: int) -> None:
    chapter = root / "LibriSpeech" / part / str(speaker) / "100"
    names = [f"{speaker}-100-{number:04d}" for number in range(2)]
    for name in names:
        tone(chapter / f"{name}.flac")
    text(chapter / f"{speaker}-100.trans.txt", f"{names[0]} CHAPTER ONE", f"{names[1]} HE SAID NOTHING")


def librispeech(root: Path) -> None:
    parts = "train-clean-100 train-clean-360 train-other-500 dev-clean dev-other test-clean test-other".split()
    for speaker, part in enumerate(parts, start=10):
        _librispeech_part(root, part, speaker)


def mini_librispeech(root: Path) -> None:
    _librispeech_part(root, "train-clean-5", 1)
    _librispeech_part(root, "dev-clean-2", 2)


def _ted_pair(folder: Path, spoken: Sequence[str], targets: dict[str, Sequence[str]], source: str, part: str, entries: list[str]) -> None:
    text(folder / "txt" / f"{part}.yaml", *entries)
    for lang, lines in {source: spoken, **targets}.items():
        text(folder / "txt" / f"{part}.{lang}", *lines)


def mustc(root: Path) -> None:
    """Talks of 4 s; in the train split a segment of laughter, and one that French has cut in another way."""
    for part, talk in {"train": 1, "dev": 2, "tst-COMMON": 3, "tst-HE": 4}.items():
        entry = f"- {{duration: %s, offset: %s, rW: 2, uW: 0, speaker_id: spk.{talk}, wav: ted_{talk}.wav}}"
        spans = [("1.500000", "0.250000"), ("1.000000", "2.000000"), ("0.500000", "3.250000")]
        said = ["Thank you so much, Chris.", "It\u2019s a great\u2028honor.", "♫ ♫"]
        for lang, texts in {
            "de": ["Vielen Dank, Chris.", "Es ist eine Ehre.", "♫"],
            "fr": ["Merci, Chris.", "C'est un honneur.", "♫"],
        }.items():
            folder = root / "must-c" / f"en-{lang}" / "data" / part
            own = spans if lang == "de" else [spans[0], ("1.100000", "2.000000"), spans[2]]
            tone(folder / "wav" / f"ted_{talk}.wav", 4.0)
            _ted_pair(folder, said, {lang: texts}, "en", part, [entry % span for span in own])


def mtedx(root: Path) -> None:
    """A talk whose id looks like a number; the pair with translations has one of the two segments."""
    for part, talk in {"train": "0123e5", "valid": "-ab_9", "test": "xYz"}.items():
        entry = f"- {{speaker_id: '{talk}', offset: %s, duration: 1.0, wav: '{talk}.wav'}}"
        for pair, count in {"es-es": 2, "es-en": 1}.items():
            folder = root / "mtedx" / pair / "data" / part
            tone(folder / "wav" / f"{talk}.flac", 3.0)
            targets = {"en": ["Good morning."]} if pair == "es-en" else {}
            _ted_pair(folder, ["Buenos días.", "Muchas gracias."][:count], targets, "es", part, [entry % at for at in (0.5, 1.75)][:count])


def covost(root: Path) -> None:
    folder = root / "cv-corpus-4-2019-12-10" / "en"
    rows, said = [], ["client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"]
    for number, split in enumerate(["train", "train_covost", "dev", "test", "dev_covost"]):
        name = f"common_voice_en_{number}.mp3"
        tone(folder / "clips" / name, 1.5, 32000, format="MP3")
        rows.append(f'{name}\tEr sagte \\"nein\\".\t{split}')
        said.append(f'speaker{number}\t{name}\tHe said "no".\t2\t0\t\t\t')
    rows.append("common_voice_en_99.mp3\tREMOVE\ttrain")
    text(root / "covost2" / "covost_v2.en_de.tsv", "path\ttranslation\tsplit", *rows)
    text(folder / "validated.tsv", *said, "speaker9\tcommon_voice_en_99.mp3\tNobody translated this.\t2\t0\t\t\t")


FLEURS = {
    "en_us": {"7": "A cat, two dogs.", "8": "Only in English."},
    "de_de": {"7": "Eine Katze, zwei Hunde."},
    "fr_fr": {"7": "Un chat, deux chiens."},
}


def fleurs(root: Path) -> None:
    """Two people read the first sentence in English."""
    for code, sentences in FLEURS.items():
        for split, base in {"train": 100, "dev": 200, "test": 300}.items():
            rows = []
            for file, (number, sentence) in enumerate([*sentences.items(), *list(sentences.items())[:1]], start=base):
                tone(root / "fleurs" / code / "audio" / split / f"{file}.wav")
                plain = sentence.lower().replace(",", "").replace(".", "")
                rows.append(f"{number}\t{file}.wav\t{sentence}\t{plain}\t{' '.join(plain)} |\t16000\tFEMALE")
            text(root / "fleurs" / code / f"{split}.tsv", *rows)


def europarl_st(root: Path) -> None:
    folder = root / "europarl-st" / "v1.1" / "en"
    translated = {"de": ["Herr Präsident!", "Das ist alles."], "fr": ["Monsieur le Président,", "C'est tout."]}
    for split, number in {"train": 1, "dev": 2, "test": 3}.items():
        speech = f"en.20080924.31.3-{number:03d}"
        tone(folder / "audios" / f"{speech}.flac", 3.0, 44100)
        for lang, lines in translated.items():
            text(folder / lang / split / "speeches.lst", speech)
            text(folder / lang / split / "speakers.lst", f"MEP_{number}")
            text(folder / lang / split / "segments.lst", f"{speech} 0.0 1.25", f"{speech} 1.25 2.75")
            text(folder / lang / split / "segments.en", "Mr President,", "that is all.")
            text(folder / lang / split / f"segments.{lang}", *lines)


def voxpopuli(root: Path) -> None:
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
    for code, said in {"en": "thank you mister president", "de": "vielen dank herr präsident"}.items():
        folder = root / "voxpopuli" / "transcribed_data" / code
        for split, year in {"train": "2009", "dev": "2012", "test": "2020"}.items():
            name = f"{year}0112-0900-PLENARY-8-{code}_{year}0112-17:12:56_4"
            tone(folder / year / f"{name}.ogg", 2.0, format="OGG", subtype="VORBIS")
            text(folder / f"asr_{split}.tsv", header, f"{name}\t\t{said}\t96{len(split)}\t{split}\tmale\tFalse\tNone")


TDF = "file;unicode\tchannel;int\tstart;float\tend;float\tspeaker;unicode\tspeakerType;unicode\tspeakerDialect;unicode\ttranscript;unicode"


def fisher_callhome(root: Path) -> None:
    """One call per part, one speaker on each channel; the second one is louder. Line 3 belongs to line 1."""
    calls = []
    form = {"format": "NIST", "subtype": "ULAW"}
    for number, part in enumerate(["fisher_train", "fisher_dev", "fisher_dev2", "fisher_test"], start=20):
        call = f"20050908_182943_{number}_fsp"
        calls.append(f"{number},2005-09-08,1{number},f,,,,,2{number},m")
        tone(root / "LDC2010S01" / "fisher_spa_d1" / "data" / "speech" / f"{call}.sph", 4.0, 8000, (0.2, 0.6), **form)
        rows = [
            f'{call}.sph\t0\t0.0\t0.9\tAna\tfemale\tnative\tAló, <foreign lang="English"> Ana </foreign>\t0\t0\t-1',
            f"{call}.sph\t1\t1.0\t2.0\tLuis\tmale\tnative\t((buenas)) tardes\t0\t1\t-1",
            f"{call}.sph\t0\t2.1\t3.0\tAna\tfemale\tnative\t¿cómo estás? {{laugh}}\t0\t2\t-1",
            f"{call}.sph\t1\t3.1\t3.9\tLuis\tmale\tnative\t<laugh></laugh>\t0\t3\t-1",
        ]
        comments = [";;MM sectionTypes\t[u'None', None]", ";;MM sectionBoundaries\t[0.0, 9999999.0]"]
        text(root / "LDC2010T04" / "fisher_spa_tr" / "data" / "transcripts" / f"{call}.tdf", TDF, *comments, *rows)
        _translations(root, part, call, ["1_3", "2", "4"], 1 if part == "fisher_train" else 4)
    header = "CALL_ID,DATE,APIN,ASEX,ADIALECT,APHONE,ALANG,ATYPE,BPIN,BSEX"
    text(root / "LDC2010S01" / "fisher_spa_d1" / "docs" / "fsp06_call.tbl", header, *calls)
    for number, part in {85: "callhome_train", 897: "callhome_devtest", 53: "callhome_evltest"}.items():
        call, kind = f"sp_{number:04d}", part.removeprefix("callhome_")
        tone(root / "LDC96S35" / "CALLHOME" / "SPANISH" / "SPEECH" / kind.upper() / f"{call.upper()}.SPH", 4.0, 8000, (0.2, 0.6), **form)
        lines = ["0.37 1.10 A: Ah, señora.", "1.20 2.00 B1: [distortion] sí, *dime", "2.10 3.00 A: [[noise]] adiós", "3.10 3.90 B: {laugh}"]
        folder = root / "LDC96T17" / "callhome_spanish_trans_970711" / "transcrp" / kind
        text(folder / f"{call}.txt", *lines, encoding="iso8859-1")
        _translations(root, part, call, ["1_3", "2", "4"], 1)


def _translations(root: Path, part: str, call: str, numbers: Sequence[str], translators: int) -> None:
    folder = root / "fisher-callhome-corpus"
    text(folder / "mapping" / part, *(f"{call} {number}" for number in numbers))
    for translator in range(translators):
        name = f"{part}.en" if translators == 1 else f"{part}.en.{translator}"
        text(folder / "corpus" / "ldc" / name, f"Hello, how are you? ({translator})", "Good afternoon.", "")


def switchboard(root: Path) -> None:
    """Calls 2001 to 2041: with the recipe's 20 and 20, the last one is the train split."""
    for call in range(2001, 2042):
        tone(root / "LDC97S62" / "swb1_d1" / "data" / f"sw0{call}.sph", 2.5, 8000, (0.2, 0.6), format="NIST", subtype="ULAW")
        folder = root / "swb_ms98_transcriptions" / str(call)[:2] / str(call)
        for side in "AB":
            name = f"sw{call}{side}-ms98-a"
            text(folder / f"{name}-word.text", f"{name}-0001 0.0 0.5 [silence]")
            lines = [
                "0.000000 0.500000 [silence]",
                "0.500000 2.250000 [laughter-yeah] them_1 ab[solute]- -[an]y [it'n/isn't] {yup} [noise]",
            ]
            text(folder / f"{name}-trans.text", *(f"{name}-{number:04d} {line}" for number, line in enumerate(lines, start=1)))


PUBLISHED: dict[str, Callable[[Path], None]] = {
    "librispeech": librispeech,
    "mini-librispeech": mini_librispeech,
    "mustc": mustc,
    "mtedx": mtedx,
    "covost": covost,
    "fleurs": fleurs,
    "europarl-st": europarl_st,
    "voxpopuli": voxpopuli,
    "fisher-callhome": fisher_callhome,
    "switchboard": switchboard,
}
TREES = PUBLISHED | DOORS
"""Recipe -> what writes the corpus that it expects."""
