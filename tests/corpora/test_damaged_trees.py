"""Damage to corpora that have a recipe: each is named, with a cure, and nothing is written.

More of what can be wrong with tables and corpora of other toolkits: `test_tables.py`, `test_doors.py`, `test_shar.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.errors import ConfigError, DataError
from tests.corpora.trees import TREES, prepared, recipe, text, tone
from tests.rights import without_rights

Harm = Callable[[Path], object]


def edit(path: str, old: str, new: str, encoding: str = "utf-8") -> Harm:
    def harm(root: Path) -> None:
        before = (root / path).read_bytes().decode(encoding)
        assert old in before
        (root / path).write_bytes(before.replace(old, new, 1).encode(encoding))

    return harm


def break_off(path: str) -> Harm:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[: (root / path).stat().st_size // 2])


def lose(path: str) -> Harm:
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def latin(path: str) -> Harm:
    """The last character before the end of the file is an umlaut of another encoding."""
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-2] + b"\xfc\n")


def twice(*paths: str, line: int = -1) -> Harm:
    """A line, by default the last one, occurs again in each of these files."""

    def harm(root: Path) -> None:
        for path in paths:
            before = (root / path).read_bytes()
            (root / path).write_bytes(before + before.split(b"\n")[:-1][line] + b"\n")

    return harm


def write(path: str, *lines: str) -> Harm:
    return lambda root: text(root / path, *lines)


def sound(path: str, *arguments: float, **form: object) -> Harm:
    return lambda root: tone(root / path, *arguments, **form)


LIBRI = "LibriSpeech/dev-clean/13/100"
MUSTC = "must-c/en-de/data/train"
TEDX = "mtedx/es-en/data/train"
COVOST = "covost2/covost_v2.en_de.tsv"
CLIPS = "cv-corpus-4-2019-12-10/en"
PARL = "europarl-st/v1.1/en"
VOX = "voxpopuli/transcribed_data/de"
CALLS = "fisher-callhome-corpus"
FISHER = "LDC2010T04/fisher_spa_tr/data/transcripts/20050908_182943_20_fsp.tdf"
FISHER_CALL = "LDC2010S01/fisher_spa_d1/data/speech/20050908_182943_20_fsp.sph"
TALK = "TEDLIUM_release-3/legacy/dev"
SWB = "swb_ms98_transcriptions/20/2041/sw2041B-ms98-a-trans.text"

BINARY = {".wav", ".flac", ".mp3", ".ogg", ".sph", ".gz", ".tar"}

DAMAGES: dict[str, list[tuple[str, Harm, str]]] = {
    "librispeech": [
        ("missing audio", lose(LIBRI + "/13-100-0000.flac"), r"1 of 14 .*no audio file `.*13-100-0000.flac`"),
        ("broken audio", break_off(LIBRI + "/13-100-0001.flac"), r"1 of 14 .*13-100-0001.flac"),
        ("missing transcripts", lose(LIBRI + "/13-100.trans.txt"), r"no file `.*13-100.trans.txt`"),
        ("audio without transcript", sound(LIBRI + "/13-100-0002.flac"), r"has no transcript of `13-100-0002.flac`"),
        ("line without text", edit(LIBRI + "/13-100.trans.txt", " CHAPTER ONE", ""), r"13-100.trans.txt` line 1 has no transcript"),
        ("missing part", lose("LibriSpeech/test-other"), r"(?s)no folder `.*test-other`"),
        ("latin-1", latin(LIBRI + "/13-100.trans.txt"), r"13-100.trans.txt` line 2 is not UTF-8: byte 0xfc"),
        ("one id twice", twice(LIBRI + "/13-100.trans.txt"), r"13-100.trans.txt` line 3: utterance `13-100-0001` .* occurs twice"),
    ],
    "mini-librispeech": [("two channels", sound("LibriSpeech/dev-clean-2/2/100/2-100-0000.flac", levels=(0.1, 0.2)), "has 2 channels")],
    "mustc": [
        ("too few lines", write(MUSTC + "/txt/train.de", "Danke."), r"train.de` has 1 lines, `.*train.yaml` 3: which"),
        ("too many lines", write(MUSTC + "/txt/train.en", *"abcd"), r"train.en` has 4 lines"),
        ("missing audio", lose(MUSTC + "/wav/ted_1.wav"), r"no audio file `.*en-de/data/train/wav/ted_1.wav`"),
        ("outside", edit(MUSTC + "/txt/train.yaml", "offset: 2.000000", "offset: 3.900000"), r"from 3.90 to 4.90 s, but audio"),
        ("no number", edit(MUSTC + "/txt/train.yaml", "0.250000", "soon"), r"train.yaml` segment 1: `offset` `soon` is not a number"),
        ("no audio named", edit(MUSTC + "/txt/train.yaml", "wav: ted_1.wav", "x: y"), r"segment 1: names no audio as `wav`"),
        ("far outside", edit(MUSTC + "/txt/train.yaml", "duration: 1.0", "duration: 100.0"), r"from 2.00 to 102.00 s, but audio"),
        ("backwards", edit(MUSTC + "/txt/train.yaml", "duration: 1.0", "duration: -1.0"), r"lasts -1.00 s"),
        ("late", edit(MUSTC + "/txt/train.yaml", "0.250000", "1.0e306"), r"segment 1: `offset` `1.0e306` is out of all bounds"),
        ("deep", edit(MUSTC + "/txt/train.yaml", "0.250000", "[" * 200_000), r"train.yaml` is no list of segments from line 1 on"),
        (
            "a list in lists",
            edit(MUSTC + "/txt/train.yaml", "- {", "- " * 100_000 + "{"),
            r"train.yaml` is no list of segments from line 1",
        ),
        ("nested", edit(MUSTC + "/txt/train.yaml", "0.250000", "[0.25]"), r"train.yaml` is no list of segments from line 1 on"),
        ("no YAML", edit(MUSTC + "/txt/train.yaml", "}", ""), r"train.yaml` line \d is not YAML"),
        ("latin-1", lambda r: (r / MUSTC / "txt/train.de").write_bytes(b"a\n\xfcber\nc\n"), r"train.de` line 2 is not UTF-8: byte 0xfc"),
        (
            "one segment twice",
            twice(*(f"{MUSTC}/txt/train.{kind}" for kind in ("yaml", "en", "de")), line=0),
            r"en-de/.*train.yaml` segment 4: segment `train-ted_1-00000250-00001750` occurs before",
        ),
    ],
    "mtedx": [
        ("missing text", lose(TEDX + "/txt/train.en"), r"no file `.*es-en/data/train/txt/train.en`"),
        ("missing list", lose(TEDX + "/txt/train.yaml"), r"no file `.*es-en/data/train/txt/train.yaml`"),
        ("broken audio", break_off("mtedx/es-es/data/test/wav/xYz.flac"), r"2 of 6 .*xYz.flac"),
        ("latin-1", latin(TEDX + "/txt/train.en"), r"train.en` line 1 is not UTF-8: byte 0xfc"),
        (
            "one segment twice",
            twice(*(f"{TEDX}/txt/train.{kind}" for kind in ("yaml", "es", "en"))),
            r"es-en/.*train.yaml` segment 2: segment `train-0123e5-00000500-00001500` occurs before",
        ),
        (
            "one transcript twice",
            twice(*(f"mtedx/es-es/data/train/txt/train.{kind}" for kind in ("yaml", "es")), line=0),
            r"es-es/.*train.yaml` segment 3: segment `train-0123e5-00000500-00001500` occurs before",
        ),
    ],
    "covost": [
        ("missing clip", lose(CLIPS + "/clips/common_voice_en_2.mp3"), r"1 of 4 .*no audio file `.*common_voice_en_2.mp3`"),
        ("another release", edit(CLIPS + "/validated.tsv", "voice_en_3", "voice_en_33"), r"common_voice_en_3.mp3` is not in `.*validated"),
        ("stray tab", edit(COVOST, "Er sagte", "Er\tsagte"), r"covost_v2.en_de.tsv` line 2 has 4 fields, 3 are expected"),
        ("missing column", edit(COVOST, "translation\tsplit", "text\tsplit"), r"no column `translation`; it has: path, text, split"),
        ("unknown split", edit(COVOST, "\tdev\n", "\tdve\n"), r"line 4 is in split `dve`; known: .*train_covost"),
        ("missing table", lose(COVOST), r"no file `.*covost_v2.en_de.tsv`"),
        ("latin-1", latin(COVOST), r"covost_v2.en_de.tsv` line \d+ is not UTF-8: byte 0xfc"),
        ("one clip twice", edit(CLIPS + "/validated.tsv", "en_99.mp3", "en_0.mp3"), r"validated.tsv` line 7: clip .*_0.mp3` occurs before"),
        ("one row twice", twice(COVOST, line=1), r"covost_v2.en_de.tsv` line 8: clip `common_voice_en_0.mp3` occurs before"),
        (
            "two translations",
            edit(COVOST, "common_voice_en_1.mp3\tEr", "common_voice_en_0.mp3\tSie"),
            r"covost_v2.en_de.tsv` line 3: clip `common_voice_en_0.mp3` occurs before",
        ),
    ],
    "fleurs": [
        ("missing audio", lose("fleurs/en_us/audio/dev/200.wav"), r"1 of 9 .*no audio file `.*audio/dev/200.wav`"),
        ("cut-off audio", break_off("fleurs/en_us/audio/dev/200.wav"), r"200.wav.* breaks off"),
        ("lost field", edit("fleurs/en_us/test.tsv", "\tFEMALE", ""), r"test.tsv` line 1 has 6 fields, 7 are expected"),
        (
            "another length",
            edit("fleurs/en_us/test.tsv", "\t16000\t", "\t17000\t"),
            r"1 of 9 .*test.tsv` line 1 says that `.*300.wav` lasts 1.0625 s; it lasts 1\n",
        ),
        ("no length", edit("fleurs/en_us/test.tsv", "\t16000\t", "\tlong\t"), r"test.tsv` line 1: `num_samples` `long` is not a number"),
        ("missing translations", lose("fleurs/de_de/train.tsv"), r"no file `.*de_de/train.tsv`"),
        ("latin-1", latin("fleurs/de_de/train.tsv"), r"de_de/train.tsv` line \d is not UTF-8: byte 0xfc"),
        ("one file twice", twice("fleurs/en_us/test.tsv"), r"test.tsv` line 4: utterance `7-302` .* occurs twice"),
    ],
    "europarl-st": [
        (
            "not converted",
            lambda r: (
                (r / PARL / "audios/en.20080924.31.3-001.flac").rename(r / PARL / "audios/en.20080924.31.3-001.m4a")
                and (r / PARL / "audios/en.20080924.31.3-001.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
            ),
            r"cannot open audio `.*31.3-001.m4a`",
        ),
        ("too few lines", write(PARL + "/fr/dev/segments.fr", "Merci."), r"segments.fr` has 1 lines, `.*segments.lst` 2: which"),
        (
            "unknown speaker",
            write(PARL + "/de/dev/speakers.lst", "MEP_1", "MEP_2"),
            r"speakers.lst` has 2 lines, `.*speeches.lst` 1: which",
        ),
        (
            "unknown speech",
            edit(PARL + "/de/dev/segments.lst", "en.20080924.31.3-002 0.0", "en.19990101 0.0"),
            r"segments.lst` line 1: speech `en.19990101` is not in `.*speeches.lst`",
        ),
        (
            "no times",
            edit(PARL + "/de/test/segments.lst", " 0.0 1.25", ""),
            r"segments.lst` line 1: .* is not a speech, a start and an end",
        ),
        ("outside", edit(PARL + "/de/test/segments.lst", "2.75", "3.75"), r"from 1.25 to 3.75 s, but audio"),
        ("latin-1", latin(PARL + "/de/dev/segments.de"), r"segments.de` line 2 is not UTF-8: byte 0xfc"),
        (
            "one segment twice",
            twice(*(f"{PARL}/de/train/segments.{kind}" for kind in ("lst", "en", "de")), line=0),
            r"de/train/segments.lst` line 3: segment `train-en.20080924.31.3-001-00000000-00001250` occurs before",
        ),
    ],
    "voxpopuli": [
        ("missing table", lose(VOX + "/asr_dev.tsv"), r"no file `.*de/asr_dev.tsv`"),
        ("missing audio", lose(VOX + "/2009"), r"1 of 3 .*no audio file `.*2009/20090112.*ogg`"),
        ("lost field", edit(VOX + "/asr_test.tsv", "\tmale\tFalse", "\tmale"), r"asr_test.tsv` line 2 has 7 fields"),
        ("latin-1", latin(VOX + "/asr_test.tsv"), r"asr_test.tsv` line 2 is not UTF-8: byte 0xfc"),
        ("one id twice", twice(VOX + "/asr_dev.tsv"), r"asr_dev.tsv` line 3: utterance `20120112-.*` of corpus `de` occurs twice"),
    ],
    "fisher-callhome": [
        ("missing call", lose(FISHER_CALL), r"no audio file `.*LDC2010S01/20050908_182943_20_fsp.sph`"),
        ("one channel", sound(FISHER_CALL, 4.0, 8000, format="NIST", subtype="ULAW"), r"has 1 channels; 2 are expected"),
        ("packed audio", edit(FISHER_CALL, "-s4 ulaw", "-s26 ulaw,embedded-shorten-v2.00", "latin-1"), r"cannot open audio `.*20_fsp.sph`"),
        ("missing transcript", lose(FISHER), r"no transcript of call `20050908_182943_20_fsp` below"),
        ("other lines", edit(CALLS + "/mapping/fisher_train", " 4", " 9"), r"fisher_train` line 3: .* has no line `9`"),
        ("both speakers", edit(CALLS + "/mapping/fisher_train", " 1_3", " 1_2"), r"fisher_train` line 1: .* joins lines of both speakers"),
        (
            "too few translations",
            write(CALLS + "/corpus/ldc/fisher_dev.en.2", "Hi"),
            r"fisher_dev.en.2` has 1 lines, `.*mapping/fisher_dev` 3",
        ),
        ("line of many digits", edit(CALLS + "/mapping/fisher_train", " 4", " " + "9" * 5000), r"has no line `9+`"),
        ("latin-1", latin(FISHER), r"20050908_182943_20_fsp.tdf` line \d+ is not UTF-8: byte 0xfc"),
        ("damaged line", edit(FISHER, "\t0\t0.0\t0.9", "\t0\tnow\t0.9"), r"fisher_train` line 1: start `now` is not a number"),
        (
            "unknown call",
            edit("LDC2010S01/fisher_spa_d1/docs/fsp06_call.tbl", "20,", "99,"),
            r"call `20050908_182943_20_fsp` is not in the table of calls",
        ),
    ],
    "switchboard": [
        ("missing call", lose("LDC97S62/swb1_d1/data/sw02041.sph"), r"2 of 82 .*no audio file `.*sw02041.sph`"),
        ("damaged line", write(SWB, "sw2041B-ms98-a-0001 0.5"), r"sw2041B-ms98-a-trans.text` line 1: .* is not an id, a start"),
        ("outside", edit(SWB, "2.250000", "9.250000"), r"from 0.50 to 9.25 s, but audio"),
        ("latin-1", latin(SWB), r"sw2041B-ms98-a-trans.text` line 2 is not UTF-8: byte 0xfc"),
        ("one id twice", twice(SWB), r"sw2041B-ms98-a-trans.text` line 3: utterance `sw2041B-ms98-a-0002` .* occurs twice"),
        ("no transcripts", lambda r: [path.unlink() for path in r.rglob("*-trans.text")], r"no transcripts, such as"),
    ],
    "table": [
        ("missing audio", lose("mine/audio/dev-b.wav"), r"1 of 6 .*mine.tsv` line 5: no audio file `.*dev-b.wav`"),
        ("missing column", edit("mine/mine.tsv", "\tgerman", "\tdeutsch"), r"has no column `german`; it has: .*, deutsch"),
    ],
    "audiofolder": [
        ("missing audio", lose("clips/train/0001.wav"), r"1 of 6 .*train/metadata.csv` line 2: no audio file `.*0001.wav`"),
        ("missing split", lose("clips/validation"), r"no table `.*clips/validation/metadata.csv`"),
    ],
    "kaldi": [
        ("missing audio", lose("wav/phone-dev.flac"), r"1 of 9 .*dev/wav.scp` line 2: no audio file `.*phone-dev.flac`"),
        ("missing translations", lose("data/test/text.tc.de"), r"no file `.*data/test/text.tc.de`"),
        (
            "a command",
            edit("data/dev/wav.scp", " wav/phone-dev.flac", " flac -dc wav/phone-dev.flac |"),
            r"dev/wav.scp` line 2 is a command, and commands of a data folder are not run unless you allow it",
        ),
    ],
    "nemo": [
        ("missing audio", lose("nemo/wavs/test-a.wav"), r"1 of 9 .*test_manifest.json` line 1: no audio file `.*test-a.wav`"),
        ("missing split", lose("nemo/dev_manifest.json"), r"no manifest `.*nemo/dev_manifest.json`"),
    ],
    "lhotse": [
        (
            "missing audio",
            lose("audio/talk-train.flac"),
            r"1 of 9 .*cuts.train.jsonl.gz` line 3: audio `.*talk-train.flac` .* not exist",
        ),
        ("missing split", lose("manifests/cuts.dev.jsonl.gz"), r"no cut manifest `.*manifests/cuts.dev.jsonl.gz`"),
    ],
    "lhotse-recipe": [
        (
            "missing audio",
            lose(TALK + "/sph/AnnaLee_dev.sph"),
            r"Lhotse's recipe `tedlium` .* fails: AssertionError: Mismatch: found 0 sph",
        ),
        ("missing part", lose(TALK), r"fails: AssertionError: No recordings left .* \(tedlium.py, line \d+: `.*fix_manifests"),
        ("no number", edit(TALK + "/stm/AnnaLee_dev.stm", "0.25", "soon"), r"fails: ValueError: could not convert string to float: 'soon'"),
        ("outside", edit(TALK + "/stm/AnnaLee_dev.stm", "3.50", "9.50"), r"1 of 7 .*`tedlium` warns: Trimmed 1 supervisions exceeding"),
        (
            "line without text",
            edit(TALK + "/stm/AnnaLee_dev.stm", " thank you so much chris", ""),
            r"1 of 6 .*part `dev`: supervision `AnnaLee_dev-0`: .* has no transcript",
        ),
    ],
    "shar": [
        ("missing archive", lose("shar/dev/recording.000001.tar"), r"no archive `.*shar/dev/recording.000001.tar`"),
        ("missing split", lose("shar/test"), r"no shards `cuts.\*.jsonl.gz` in `.*shar/test`"),
    ],
}
"""Recipe -> kinds of damage: the name, what does it, what is said of it."""


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, damages in DAMAGES.items() for what, _, _ in damages])
def test_damage_is_named_and_nothing_is_written(name, what, tmp_path):
    TREES[name](tmp_path)
    harm, message = next((harm, message) for kind, harm, message in DAMAGES[name] if kind == what)
    harm(tmp_path)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        pipeline.prepare(recipe(name, tmp_path))
    assert caught.value.hint
    assert len(caught.value.message.splitlines()) <= 2, "one line for one damage"
    assert not list((tmp_path / "exp").rglob("cuts.*"))


def test_every_corpus_is_damaged_in_some_way():
    assert DAMAGES.keys() == TREES.keys()
    # Audio in archives: `test_shar.py`; what recipes of Lhotse open, they speak of themselves.
    assert TREES.keys() - RECORDINGS.keys() == {"shar", "lhotse-recipe"}


def test_a_clip_of_contradictory_rows_that_may_be_left_out_is_left_out(tmp_path):
    TREES["covost"](tmp_path)
    whole = {cut.supervisions[0].recording_id for cut in prepared("covost", tmp_path)[1]}
    edit(CLIPS + "/validated.tsv", "en_99.mp3", "en_0.mp3")(tmp_path)
    left = {cut.supervisions[0].recording_id for cut in prepared("covost", tmp_path, "data.corpora.en.max_unfit=1")[1]}
    (gone,) = whole - left
    assert left < whole and "common_voice_en_0" in gone


RECORDINGS = {
    "librispeech": LIBRI + "/13-100-0000.flac",
    "mini-librispeech": "LibriSpeech/dev-clean-2/2/100/2-100-0000.flac",
    "mustc": MUSTC + "/wav/ted_1.wav",
    "mtedx": "mtedx/es-es/data/test/wav/xYz.flac",
    "covost": CLIPS + "/clips/common_voice_en_0.mp3",
    "fleurs": "fleurs/en_us/audio/dev/200.wav",
    "europarl-st": PARL + "/audios/en.20080924.31.3-001.flac",
    "voxpopuli": VOX + "/2009/20090112-0900-PLENARY-8-de_20090112-17:12:56_4.ogg",
    "fisher-callhome": FISHER_CALL,
    "switchboard": "LDC97S62/swb1_d1/data/sw02001.sph",
    "table": "mine/audio/dev-a.wav",
    "audiofolder": "clips/train/0001.wav",
    "kaldi": "wav/meeting-dev.wav",
    "nemo": "nemo/wavs/dev-a.wav",
    "lhotse": "audio/call-dev.wav",
}
"""Recipe -> one of its recordings."""


def not_numbers(path: Path) -> None:
    info = soundfile.info(path)
    soundfile.write(path, np.full((info.frames, info.channels), np.nan), info.samplerate, format="WAV", subtype="FLOAT")


AUDIO_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "open"),
    "without samples": (lambda path: soundfile.write(path, np.zeros(0), 16000, format="WAV"), "holds no samples|breaks off: 0 samples"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "breaks off|to its end|malformed"),
    "another header": (lambda path: path.write_bytes(b"RIFF" + path.read_bytes()), "open"),
    "no numbers": (not_numbers, "holds values that are not numbers"),
    "96 kHz, three channels": (lambda path: tone(path, 4.0, 96000, (0.1, 0.2, 0.3), format="WAV"), "has 3 channels|not as promised"),
}
"""Damage -> what does it to a file, what is said."""


@pytest.mark.parametrize("what", [*AUDIO_DAMAGES, "no right"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_damage_to_a_recording_is_named_in_every_corpus(name, what, tmp_path):
    TREES[name](tmp_path)
    path = tmp_path / RECORDINGS[name]
    harm, said = AUDIO_DAMAGES.get(what, (lambda path: None, "no right to read"))
    harm(path)
    with without_rights(path) if what == "no right" else nullcontext(), pytest.raises(DataError) as caught:
        pipeline.prepare(recipe(name, tmp_path))
    assert re.search(said, caught.value.message) and path.name in caught.value.message
    assert caught.value.hint and len(caught.value.message.splitlines()) <= 3
    assert not list((tmp_path / "exp").rglob("cuts.*"))


@pytest.mark.parametrize("name", sorted(TREES))
def test_lines_that_end_as_in_windows_say_the_same(name, tmp_path):
    TREES[name](tmp_path)

    def said() -> list[tuple[object, ...]]:
        cuts = prepared(name, tmp_path)[1]
        return [(cut.id, cut.start, cut.duration, cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in cuts]

    before = said()
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_relative_to(tmp_path / "exp") and path.suffix.lower() not in BINARY:
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert said() == before


def test_a_split_that_the_corpus_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`splits` names `test`; this corpus has: train, dev, tst-COMMON, tst-HE"):
        recipe("mustc", tmp_path, "data.corpora.mustc.splits={test: null}")
