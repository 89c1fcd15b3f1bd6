"""Laws of the synthetic corpus: exact text, disjoint splits, reproducible audio, a voice that is truly unseen."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from smoe_cli.corpora import synth
from smoe_cli.corpora.synth import voices
from smoe_cli.corpora.synth.grammar import CAPACITY, SLOTS, TEMPLATES, draw
from smoe_cli.corpora.synth.number_words import english, english_ordinal, french, french_date_number, german, german_ordinal
from smoe_cli.corpora.synth.plan import SEEN, UNSEEN, plan
from smoe_cli.corpora.synth.speak import SAMPLE_RATE_HZ, Saying, check_output, speak_all, trimmed
from smoe_cli.corpora.synth.voices import VOICES, Engine
from smoe_cli.corpora.utterance import Work
from smoe_cli.corpus_settings import SynthCorpus
from smoe_cli.errors import DataError

TINY = {"train": 4, "dev": 1, "test": 2}


def _work(folder: Path, jobs: int = 1, progress=lambda done, total, what: None) -> Work:
    return Work(name="synth", root=folder, audio_dir=folder / "audio", jobs=jobs, progress=progress)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.flac"))}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A tiny corpus with two renditions: its utterances and the folder of its audio."""
    folder = tmp_path_factory.mktemp("synth")
    return list(synth.read(SynthCorpus(sentences=TINY, renditions=2), _work(folder))), folder / "audio"


def test_every_sentence_is_labelled_with_its_subject(spoken):
    subjects = {template.kind for template in TEMPLATES}
    assert all(utterance.labels.keys() == {"subject"} for utterance in spoken[0])
    assert {utterance.labels["subject"] for utterance in spoken[0]} <= subjects and len(subjects) == 8


# --- number words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "en", "de", "fr"),
    [
        (0, "zero", "null", "zéro"),
        (1, "one", "eins", "un"),
        (16, "sixteen", "sechzehn", "seize"),
        (17, "seventeen", "siebzehn", "dix-sept"),
        (20, "twenty", "zwanzig", "vingt"),
        (21, "twenty one", "einundzwanzig", "vingt et un"),
        (22, "twenty two", "zweiundzwanzig", "vingt-deux"),
        (30, "thirty", "dreißig", "trente"),
        (61, "sixty one", "einundsechzig", "soixante et un"),
        (67, "sixty seven", "siebenundsechzig", "soixante-sept"),
        (70, "seventy", "siebzig", "soixante-dix"),
        (71, "seventy one", "einundsiebzig", "soixante et onze"),
        (72, "seventy two", "zweiundsiebzig", "soixante-douze"),
        (77, "seventy seven", "siebenundsiebzig", "soixante-dix-sept"),
        (80, "eighty", "achtzig", "quatre-vingts"),
        (81, "eighty one", "einundachtzig", "quatre-vingt-un"),
        (90, "ninety", "neunzig", "quatre-vingt-dix"),
        (91, "ninety one", "einundneunzig", "quatre-vingt-onze"),
        (97, "ninety seven", "siebenundneunzig", "quatre-vingt-dix-sept"),
        (100, "one hundred", "einhundert", "cent"),
        (101, "one hundred one", "einhunderteins", "cent un"),
        (121, "one hundred twenty one", "einhunderteinundzwanzig", "cent vingt et un"),
        (180, "one hundred eighty", "einhundertachtzig", "cent quatre-vingts"),
        (200, "two hundred", "zweihundert", "deux cents"),
        (271, "two hundred seventy one", "zweihunderteinundsiebzig", "deux cent soixante et onze"),
        (750, "seven hundred fifty", "siebenhundertfünfzig", "sept cent cinquante"),
        (999, "nine hundred ninety nine", "neunhundertneunundneunzig", "neuf cent quatre-vingt-dix-neuf"),
    ],
)
def test_cardinals_are_spelled_as_the_languages_spell_them(n, en, de, fr):
    assert (english(n), german(n), french(n)) == (en, de, fr)


@pytest.mark.parametrize(
    ("n", "en", "de", "fr"),
    [
        (1, "first", "ersten", "premier"),
        (2, "second", "zweiten", "deux"),
        (3, "third", "dritten", "trois"),
        (4, "fourth", "vierten", "quatre"),
        (5, "fifth", "fünften", "cinq"),
        (7, "seventh", "siebten", "sept"),
        (8, "eighth", "achten", "huit"),
        (9, "ninth", "neunten", "neuf"),
        (11, "eleventh", "elften", "onze"),
        (12, "twelfth", "zwölften", "douze"),
        (19, "nineteenth", "neunzehnten", "dix-neuf"),
        (20, "twentieth", "zwanzigsten", "vingt"),
        (21, "twenty first", "einundzwanzigsten", "vingt et un"),
        (28, "twenty eighth", "achtundzwanzigsten", "vingt-huit"),
        (30, "thirtieth", "dreißigsten", "trente"),
        (31, "thirty first", "einunddreißigsten", "trente et un"),
    ],
)
def test_days_of_the_month_are_spelled_as_the_languages_spell_them(n, en, de, fr):
    assert (english_ordinal(n), german_ordinal(n), french_date_number(n)) == (en, de, fr)


@pytest.mark.parametrize("count", [english, german, french])
def test_every_number_has_words_of_its_own(count):
    assert len({count(n) for n in range(1000)}) == 1000
    with pytest.raises(ValueError, match="1000 has no number words"):
        count(1000)


def test_slots_are_right_where_german_and_french_count_differently():
    times = {en: (de, fr) for en, de, fr in SLOTS["time"]}
    assert times["one o'clock"] == ("ein uhr", "une heure")
    assert times["half past eleven"] == ("halb zwölf", "onze heures et demie")
    assert times["half past one"] == ("halb zwei", "une heure et demie")
    assert times["quarter to eight"] == ("viertel vor acht", "huit heures moins le quart")
    assert times["twenty past nine"] == ("zwanzig nach neun", "neuf heures vingt")
    assert times["ten to one"] == ("zehn vor eins", "une heure moins dix")
    prices = {en: (de, fr) for en, de, fr in SLOTS["price"]}
    assert prices["eighty euros"] == ("achtzig euro", "quatre-vingts euros")
    assert prices["two hundred dollars"] == ("zweihundert dollar", "deux cents dollars")
    assert prices["twelve euros ninety"] == ("zwölf euro neunzig", "douze euros quatre-vingt-dix")
    dates = {en: (de, fr) for en, de, fr in SLOTS["date"]}
    assert dates["march first"] == ("ersten märz", "premier mars")
    assert dates["may twenty first"] == ("einundzwanzigsten mai", "vingt et un mai")
    assert "february thirtieth" not in dates


# --- sentences -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_small_sentence():
    """Every sentence of the templates without long digit strings; each of those is told apart by its first words."""
    return [template.sentence(n) for template in TEMPLATES if template.size <= 5000 for n in range(template.size)]


def test_no_two_numbers_name_the_same_sentence_in_any_language(every_small_sentence):
    assert len(every_small_sentence) == sum(template.size for template in TEMPLATES if template.size <= 5000) > 20_000
    for language in ("en", "de", "fr"):
        assert len({getattr(sentence, language) for sentence in every_small_sentence}) == len(every_small_sentence)


def test_sentences_have_only_expected_characters_and_2_to_12_words(every_small_sentence):
    letters = "abcdefghijklmnopqrstuvwxyz "
    allowed = {"en": set(letters + "'"), "de": set(letters + "äöüß"), "fr": set(letters + "'-àâçèéêîôûù")}
    for sentence in [*every_small_sentence, *draw(2000, seed=1)]:
        for language, characters in allowed.items():
            text = getattr(sentence, language)
            assert set(text) <= characters, text
            assert text == " ".join(text.split()), text
        assert 2 <= len(sentence.en.split()) <= 12, sentence


def test_vocabulary_is_small_and_its_words_are_frequent():
    words = Counter(word for sentence in draw(1400, seed=0) for word in sentence.en.split())
    assert 150 <= len(words) <= 250
    assert sum(count >= 5 for count in words.values()) >= 0.95 * len(words)


@pytest.mark.parametrize("count", [0, 1, 7, 500, 60_000])
def test_a_draw_has_as_many_distinct_sentences_as_asked_for(count):
    assert len({sentence.en for sentence in draw(count, seed=3)}) == count


def test_asking_for_more_sentences_than_there_are_is_an_error():
    with pytest.raises(DataError, match="1,336,863 distinct sentences in all; its grammar has 1,336,862"):
        draw(CAPACITY + 1, seed=0)


def test_a_seed_draws_the_same_sentences_and_another_seed_others():
    assert draw(50, seed=5) == draw(50, seed=5)
    assert len(set(draw(50, seed=5)) & set(draw(50, seed=6))) < 10


# --- plan ----------------------------------------------------------------------------------------------------


def test_splits_share_no_sentence_in_any_language():
    planned = plan(SynthCorpus(sentences={"train": 3000, "dev": 300, "test": 600}), Path("audio"))
    for language in ("en", "de", "fr"):
        train, dev, test = (
            {getattr(item.sentence, language) for item in planned if item.split == split} for split in ("train", "dev", "test")
        )
        assert (len(train), len(dev), len(test)) == (3000, 300, 600)
        assert train.isdisjoint(dev) and train.isdisjoint(test) and dev.isdisjoint(test)


def test_the_unseen_voice_speaks_in_the_test_split_only():
    planned = plan(SynthCorpus(sentences={"train": 500, "dev": 100, "test": 100}, renditions=3), Path("audio"))
    heard = {(v.engine, v.source) for item in planned if item.split != "test" for v in [item.saying.voice]}
    unseen = {(v.engine, v.source) for item in planned if item.subset == UNSEEN for v in [item.saying.voice]}
    assert unseen == {("nanotts", "en-GB")}
    assert heard.isdisjoint(unseen)


def test_a_source_is_either_seen_or_unseen_at_every_warp():
    for source in {(voice.engine, voice.source) for voice in VOICES}:
        assert len({voice.unseen for voice in VOICES if (voice.engine, voice.source) == source}) == 1
    assert len({voice.name for voice in VOICES}) == len(VOICES)


def test_every_test_sentence_is_spoken_by_a_seen_and_by_the_unseen_voice():
    test = [item for item in plan(SynthCorpus(), Path("audio")) if item.split == "test"]
    texts = {subset: [item.sentence for item in test if item.subset == subset] for subset in (SEEN, UNSEEN)}
    assert texts[SEEN] == texts[UNSEEN]
    assert len(texts[SEEN]) == 150 and len(test) == 300


def test_renditions_of_a_sentence_have_different_voices_and_every_voice_is_used():
    planned = plan(SynthCorpus(sentences={"train": 200}, renditions=4), Path("audio"))
    cast = {}
    for item in planned:
        cast.setdefault(item.sentence.en, []).append(item.saying.voice.name)
    assert all(len(set(names)) == 4 for names in cast.values())
    expected = {voice.name for voice in VOICES if voice.engine in ("hibari", "nanotts") and not voice.unseen}
    assert {item.saying.voice.name for item in planned} == expected


def test_impossible_settings_say_what_is_allowed():
    with pytest.raises(DataError, match=r"11 renditions.*10 training voices"):
        plan(SynthCorpus(renditions=11), Path("audio"))
    with pytest.raises(DataError, match="split `tests`; known splits: train, dev, test"):
        plan(SynthCorpus(sentences={"tests": 5}), Path("audio"))
    with pytest.raises(DataError, match="asks for -1 in split `dev`"):
        plan(SynthCorpus(sentences={"dev": -1}), Path("audio"))


def test_a_missing_engine_names_the_extra_to_install(monkeypatch, tmp_path):
    absent = Engine({"piper-tts": "no_such_module_of_piper"}, voices.ENGINES["piper"].install, voices.ENGINES["piper"].load)
    monkeypatch.setitem(voices.ENGINES, "piper", absent)
    with pytest.raises(DataError, match=r"`piper` is not installed \(missing: piper-tts\)") as caught:
        list(synth.read(SynthCorpus(sentences=TINY, engines=["piper"]), _work(tmp_path)))
    assert "pip install 'smoe[gpl-voices]'" in caught.value.hint
    assert not (tmp_path / "audio").exists()


# --- audio ---------------------------------------------------------------------------------------------------


def test_utterances_carry_text_translations_voice_and_label(spoken):
    utterances, audio_dir = spoken
    assert Counter((u.split, u.subset) for u in utterances) == {("train", ""): 8, ("dev", ""): 1, ("test", SEEN): 2, ("test", UNSEEN): 2}
    assert len({u.id for u in utterances}) == len(utterances)
    for utterance in utterances:
        assert utterance.synthetic and utterance.language == "en" and utterance.speaker.startswith("synth-")
        assert utterance.transcript and utterance.translations.keys() == {"de", "fr"}
        assert utterance.recording.id == utterance.id
        assert utterance.recording.sources[0].source == str(audio_dir / utterance.split / f"{utterance.id}.flac")


def test_audio_is_16_bit_16_khz_flac_with_speech_between_quiet_ends(spoken):
    for utterance in spoken[0]:
        path = utterance.recording.sources[0].source
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16000, 1)
        samples, _ = soundfile.read(path)
        ends = np.concatenate([samples[:1600], samples[-1600:]])
        assert 0 < np.sqrt(np.mean(ends**2)) < 0.01 < np.sqrt(np.mean(samples**2))
        assert 0.19 < np.abs(samples).max() < 0.85


def test_the_order_of_work_does_not_show_in_the_audio(spoken, tmp_path):
    speak_all([item.saying for item in reversed(plan(SynthCorpus(sentences=TINY, renditions=2), tmp_path))])
    assert _files(tmp_path) == _files(spoken[1])


def test_an_interrupted_run_in_processes_is_taken_up_and_ends_in_the_same_audio(spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "CHUNK", 1)
    settings = SynthCorpus(sentences=TINY, renditions=2)
    audio = tmp_path / "audio"

    def press_ctrl_c(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(synth.read(settings, _work(tmp_path, jobs=2, progress=press_ctrl_c)))
    assert not multiprocessing.active_children()
    kept = {path: path.stat().st_mtime_ns for path in audio.rglob("*.flac")}
    assert 0 < len(kept) < 13

    (audio / "train" / "train-00003-2.part").write_bytes(b"half a file")
    reports = []
    list(synth.read(settings, _work(tmp_path, progress=lambda *report: reports.append(report))))
    assert reports == [(done, 13, "speech synthesized") for done in range(len(kept), 14)]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert _files(audio) == _files(spoken[1])


def test_an_engine_forgets_what_it_said_before():
    texts = [sentence.en for sentence in draw(6, seed=9)]
    for voice in (next(v for v in VOICES if v.name == "hibari-heart-100"), next(v for v in VOICES if v.name == "nanotts-us-100")):
        say, _ = voices.load_engine(voice.engine)
        first = {text: say(text, voice, 1.1, 7) for text in texts}
        # Leaves a heap full of old numbers, which nanotts would otherwise read.
        np.random.default_rng(0).random(400_000).tolist()
        for text in reversed(texts):
            assert np.array_equal(say(text, voice, 1.1, 7), first[text])


def test_other_settings_replace_stale_audio(tmp_path):
    first = SynthCorpus(sentences={"train": 2}, engines=["nanotts"], seed=1)
    list(synth.read(first, _work(tmp_path)))
    before = _files(tmp_path)
    list(synth.read(first.model_copy(update={"seed": 2, "sentences": {"train": 1}}), _work(tmp_path)))
    after = _files(tmp_path)
    assert after.keys() == {"train-00000-1.flac"}
    assert after["train-00000-1.flac"] != before["train-00000-1.flac"]


def test_a_split_that_is_left_out_is_not_spoken_and_the_others_stay_as_they_are(spoken, tmp_path):
    settings = SynthCorpus(sentences=TINY, renditions=2, splits={"train": None, "test": "dev"})
    assert [utterance.id for utterance in synth.read(settings, _work(tmp_path))] == [u.id for u in spoken[0] if u.split != "train"]
    assert _files(tmp_path) == {name: data for name, data in _files(spoken[1]).items() if not name.startswith("train")}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (np.zeros(16000, np.float32), "silence"),
        (np.full(16000, 1.0, np.float32), "clipped audio"),
        (np.full(1000, 0.1, np.float32), "only 0.06 s of audio for 2 words"),
        (np.zeros(0, np.float32), "only 0.00 s of audio"),
    ],
)
def test_an_engine_that_fails_to_speak_is_an_error(raw, problem):
    saying = Saying("two words", VOICES[0], 0, Path("x.flac"))
    with pytest.raises(DataError, match=f"voice `hibari-heart-84` gave {problem}"):
        check_output(raw, 16000, saying)
    check_output(np.full(16000, 0.1, np.float32), 16000, saying)


def test_an_engines_own_silence_is_cut_off_at_both_ends_and_not_inside():
    tone = np.sin(np.arange(SAMPLE_RATE_HZ) / 10, dtype=np.float32)
    silence = np.full(SAMPLE_RATE_HZ // 2, 0.001, np.float32)
    cut = trimmed(np.concatenate((silence, tone, silence, tone, silence)))
    speech = len(tone) * 2 + len(silence)
    assert speech <= len(cut) <= speech + 0.08 * SAMPLE_RATE_HZ
    assert np.array_equal(trimmed(tone), tone)


KILLED = """
import sys
from pathlib import Path
from smoe_cli.corpus_settings import SynthCorpus
from smoe_cli.corpora.synth import read
from smoe_cli.corpora.utterance import Work

def progress(done, total, what):
    print(done, flush=True)

if __name__ == "__main__":
    work = Work("synth", Path(), Path(sys.argv[1]), 2, progress)
    list(read(SynthCorpus(sentences={"train": 5000}, engines=["nanotts"]), work))
"""


def test_workers_end_with_their_parent_even_if_it_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    # A session of its own tells the workers apart.
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "audio"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == b"0\n"
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 5
        while _alive(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(parent.pid)
    finally:
        if _alive(parent.pid):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


def _alive(group: int) -> bool:
    """Whether a process of this group is left, zombies aside."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
