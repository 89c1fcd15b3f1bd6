"""Validation: what makes a cut unfit, what is only noted, and that nothing is lost when it is taken out."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.cut_table import CutTable
from smoe_cli.cuts import open_manifest, read_cuts
from smoe_cli.errors import CheckError, DataError
from smoe_cli.layout import Layout
from smoe_cli.records import read_json
from smoe_cli.steps import plan_step
from smoe_cli.validation import texts
from smoe_cli.validation.languages import FEWEST_WORDS, other_language
from smoe_cli.validation.mend import take_out
from smoe_cli.validation.report import ValidationReport
from smoe_cli.watch import Silent
from tests.test_training import recipe, write_corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    pipeline.prepare(recipe(write_corpus(folder / "corpus", per_word=10), folder / "exp"))
    return folder


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """Manifests of a sound corpus, and its audio, for a test to harm."""
    shutil.copytree(prepared, tmp_path / "here")
    for path in (tmp_path / "here" / "exp" / "cuts").glob("*.gz"):
        moved = gzip.decompress(path.read_bytes()).decode().replace(str(prepared), str(tmp_path / "here"))
        path.write_bytes(gzip.compress(moved.encode(), mtime=0))
    return tmp_path / "here"


def config_of(folder: Path) -> Config:
    return recipe(folder / "corpus", folder / "exp")


def manifest(folder: Path, split: str = "train") -> Path:
    return folder / "exp" / "cuts" / f"cuts.{split}.jsonl.gz"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def change(folder: Path, harm: Callable[[dict], object], number: int = 0, split: str = "train") -> str:
    """Change one cut of a manifest; returns its id."""
    cuts = lines(manifest(folder, split))
    harm(cuts[number])
    manifest(folder, split).write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    return cuts[number]["id"]


def tag(**tags: object) -> Callable[[dict], object]:
    return lambda cut: cut["supervisions"][0]["custom"].update(tags)


def text(says: str) -> Callable[[dict], object]:
    """Change the text everywhere, so that the cut does not contradict itself."""
    return lambda cut: (cut["supervisions"][0].update(text=says), tag(transcript=says, references=[says])(cut))


def both(*harms: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda cut: [harm(cut) for harm in harms]


def test_sound_manifests_have_no_findings_and_all_is_counted(folder):
    report = pipeline.validate(config_of(folder))
    assert (report.errors, report.findings, report.recordings_read) == (0, [], 30)
    assert report.cuts == sum(row.cuts for row in report.rows) == sum(bar.cuts for bar in report.durations)
    assert {(row.split, row.task, row.lang, row.bandwidth) for row in report.rows} >= {("train", "translate", "de", "nb")}
    assert sum(row.hours for row in report.rows) == pytest.approx(
        sum(cut["duration"] for s in ("train", "dev", "test") for cut in lines(manifest(folder, s))) / 3600, abs=1e-3
    )
    assert read_json(Layout.of(config_of(folder)).validation, ValidationReport, "validation", "smoe validate") == report


ERRORS = {
    "missing tag": (lambda cut: cut["supervisions"][0]["custom"].pop("task"), "tags", "lacks supervision: `task`"),
    "unknown band": (tag(bandwidth="fm"), "tags", "unknown bandwidth `fm`"),
    "route of another recipe": (tag(task="summarise"), "tags", "has the route `summarise/en/wb`"),
    "called wideband at 8 kHz": (
        lambda cut: cut["recording"].update(sampling_rate=8000, num_samples=cut["recording"]["num_samples"] // 2),
        "tags",
        "tagged wideband, but its audio passes through 8000 Hz",
    ),
    "transcript in another language": (tag(source_lang="fr"), "tags", "is to transcribe speech in `fr` in `en`"),
    "text beside its transcript": (lambda cut: cut["supervisions"][0].update(text="two"), "tags", "none of its right answers"),
    "no supervision": (lambda cut: cut.update(supervisions=[]), "tags", "has 0 supervisions"),
    "empty text": (text("  "), "text", "has an empty text"),
    "only punctuation": (text("?!"), "text", "without a letter or a digit"),
    "control character": (text("one\x07"), "text", r"U\+0007"),
    "lost character": (text("on\ufffd"), "text", r"U\+FFFD"),
    "another script": (text("один"), "script", "tagged `en`, but 100 % of its letters are in another script"),
    "too much text": (text("one " * 40), "ratio", "120 letters and digits in 0.53 s"),
    "another rate": (
        lambda cut: cut["recording"].update(sampling_rate=32000, num_samples=2 * cut["recording"]["num_samples"]),
        "rate",
        "comes at 32000 Hz",
    ),
    "leaves its recording": (lambda cut: cut.update(duration=9.0), "duration", "goes from 0.00 to 9.00 s"),
    "no such channel": (
        lambda cut: (cut.update(channel=1), cut["supervisions"][0].update(channel=1)),
        "audio",
        "is channel 1 of a recording",
    ),
    "a text of another channel": (lambda cut: cut.update(channel=1), "manifest", "its supervision `.*` is of channel 0, the cut of 1"),
    "longer than its audio": (
        lambda cut: cut["recording"].update(num_samples=80000, duration=5.0),
        "audio",
        "breaks off: 8480 samples at 16000 Hz where 80000",
    ),
    "a program": (lambda cut: cut["recording"]["sources"][0].update(type="command"), "manifest", "type `command`"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_unfit_cut_is_found_named_and_moved_to_the_rejects(folder, name):
    harm, check, said = ERRORS[name]
    before = lines(manifest(folder))
    cut_id = change(folder, harm)
    bad = lines(manifest(folder))[0]
    report = pipeline.validate(config_of(folder))
    (finding,) = [finding for finding in report.findings if finding.check == check]
    assert (finding.severity, report.errors >= 1) == ("error", True)
    assert cut_id in finding.where + finding.message and finding.hint
    assert re.search(said, finding.message), finding.message
    fixed = pipeline.validate(config_of(folder), fix=True)
    assert (fixed.errors, [reject.cuts for reject in fixed.rejects]) == (0, [1])
    assert finding in fixed.mended
    assert lines(manifest(folder)) == before[1:]
    (kept,) = lines(folder / "exp" / "cuts" / "rejected.train.jsonl.gz")
    assert (kept["cut"], kept["line"], kept["manifest"]) == (bad, 1, "cuts.train.jsonl.gz")
    assert any(reason.startswith(check) for reason in kept["reasons"])


NOTES = {
    "repeats itself": (text("no " * 8), "text", "says `no` 8 times in a row"),
    "read as latin-1": (text("schÃ¶n"), "text", "UTF-8 read as Latin-1"),
    "a foreign letter": (text("onе two"), "script", "17 % of its letters"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_may_be_right_is_noted_and_stays(folder, name):
    harm, check, said = NOTES[name]
    change(folder, harm)
    before = manifest(folder).read_bytes()
    report = pipeline.validate(config_of(folder), fix=True, audio=False)
    (finding,) = report.findings
    assert (finding.check, finding.severity, report.errors) == (check, "note", 0)
    assert said in finding.message
    assert manifest(folder).read_bytes() == before


SOUNDS = {
    "missing": (lambda path: path.unlink(), "does not exist", "error"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "breaks off|cannot be read to its end", "error"),
    "no audio": (lambda path: path.write_bytes(b"no audio"), "cannot be opened", "error"),
    "silent": (lambda path: soundfile.write(path, np.zeros(8000), 16000), "nothing but silence", "error"),
    "another rate": (lambda path: soundfile.write(path, np.ones(16000) / 9, 32000), "16000 samples at 32000 Hz where 8000", "error"),
    "not finite": (
        lambda path: soundfile.write(path, np.full(8000, np.nan), 16000, format="WAV", subtype="FLOAT"),
        "not numbers",
        "error",
    ),
    "clipped": (lambda path: soundfile.write(path, np.clip(np.sin(np.arange(8000) / 9) * 3, -1, 1), 16000), "is clipped", "note"),
    "faint": (lambda path: soundfile.write(path, 1e-4 * np.sin(np.arange(8000)), 16000), "nearly silent: its peak is -8", "note"),
    "faint beside a constant": (lambda path: soundfile.write(path, 0.3 + 1e-4 * np.sin(np.arange(8000)), 16000), "nearly silent", "note"),
    "a constant": (
        lambda path: soundfile.write(path, np.full(8000, 0.3), 16000),
        "nothing but silence: one value from its beginning",
        "error",
    ),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_audio_is_read_once_and_named_once_for_all_its_cuts(folder, name):
    harm, said, severity = SOUNDS[name]
    harm(folder / "corpus" / "a0.flac")
    cuts = sum("-a0-" in cut["id"] for split in ("train", "dev", "test") for cut in lines(manifest(folder, split)))
    report = pipeline.validate(config_of(folder), jobs=1)
    (finding,) = report.findings
    assert re.search(said, finding.message), finding.message
    assert (finding.check, finding.severity, finding.cuts) == ("audio", severity, cuts)
    assert cuts == 4


def test_ids_utterances_and_speakers_are_compared_over_all_manifests(folder):
    cuts = lines(manifest(folder))
    dev = lines(manifest(folder, "dev"))
    dev += [cuts[0], cuts[1] | {"id": "other"}]
    dev[0]["supervisions"][0]["speaker"] = cuts[0]["supervisions"][0]["speaker"]
    manifest(folder, "dev").write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in dev).encode()))
    found = {finding.check: finding for finding in pipeline.validate(config_of(folder), audio=False).findings}
    assert (found["duplicate"].severity, found["duplicate"].where.split("`")[3]) == ("error", cuts[0]["id"])
    assert "first in split `train`" in found["duplicate"].message
    assert (found["split"].severity, found["speaker"].severity) == ("error", "note")
    assert "in split `train` too" in found["split"].message


def test_a_duplicate_of_an_unfit_cut_is_kept(folder):
    """Otherwise both would go."""
    cuts = lines(manifest(folder))
    change(folder, text(""))
    with gzip.open(manifest(folder), "ab") as file:
        file.write((json.dumps(cuts[0]) + "\n").encode())
    report = pipeline.validate(config_of(folder), fix=True, audio=False)
    assert [(reject.cuts, report.errors) for reject in report.rejects] == [(1, 0)]
    assert lines(manifest(folder)) == cuts[1:] + cuts[:1]


def test_a_missing_translation_is_counted(folder):
    cuts = [cut for cut in lines(manifest(folder)) if "-a1-translate" not in cut["id"]]
    manifest(folder).write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    for config in (config_of(folder), None):  # without a recipe: what others have
        (finding,) = pipeline.validate(config, cuts=[manifest(folder)], audio=False).findings
        assert (finding.check, finding.severity) == ("translation", "note")
        assert finding.message == "1 utterances have no text for translate/de; they serve the other tasks"
        assert "`tones/a1`" in finding.where


def test_rejects_of_earlier_times_stay_and_the_same_input_gives_the_same_bytes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    for at in (folder, tmp_path / "again"):
        change(at, text(""))
        pipeline.validate(None, cuts=[manifest(at)], fix=True, audio=False)
        change(at, text(""))
        pipeline.validate(None, cuts=[manifest(at)], fix=True, audio=False)
        rejected = lines(at / "exp" / "cuts" / "rejected.train.jsonl.gz")
        assert len({kept["cut"]["id"] for kept in rejected}) == len(rejected) == 2
    for name in ("cuts.train.jsonl.gz", "rejected.train.jsonl.gz"):
        assert (folder / "exp" / "cuts" / name).read_bytes() == (tmp_path / "again" / "exp" / "cuts" / name).read_bytes()


def test_a_line_that_is_no_json_is_kept_among_the_rejects_byte_for_byte(folder):
    raw = b'{"id": "\xff\xfe'
    with gzip.open(manifest(folder), "ab") as file:
        file.write(raw)
    assert [r.cuts for r in pipeline.validate(None, cuts=[manifest(folder)], fix=True, audio=False).rejects] == [1]
    (kept,) = lines(folder / "exp" / "cuts" / "rejected.train.jsonl.gz")
    assert kept["no_json"].encode("latin-1") == raw


def test_a_byte_order_mark_is_not_carried_into_a_line_of_the_rejects(folder):
    change(folder, text(""))
    whole = gzip.decompress(manifest(folder).read_bytes())
    manifest(folder).write_bytes(gzip.compress(b"\xef\xbb\xbf" + whole))
    assert [r.cuts for r in pipeline.validate(None, cuts=[manifest(folder)], fix=True, audio=False).rejects] == [1]
    rejected = gzip.decompress((folder / "exp" / "cuts" / "rejected.train.jsonl.gz").read_bytes())
    assert rejected.endswith(b'"cut": ' + whole.splitlines()[0] + b"}\n")
    assert json.loads(rejected)["cut"] == json.loads(whole.splitlines()[0])


def test_a_manifest_is_never_emptied(folder):
    cuts = lines(manifest(folder))
    for number in range(len(cuts)):
        change(folder, tag(task="what"), number)
    before = {path.name: path.read_bytes() for path in manifest(folder).parent.iterdir()}
    with pytest.raises(DataError, match=r"no cut of `.*cuts.train.jsonl.gz` is fit for use"):
        pipeline.validate(config_of(folder), fix=True, audio=False)
    assert {path.name: path.read_bytes() for path in manifest(folder).parent.iterdir()} == before


def test_prepare_validates_what_it_wrote_without_reading_audio_again(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus", per_word=4)
    samples = soundfile.info(corpus / "a1.flac").frames
    soundfile.write(corpus / "a1.flac", np.clip(np.sin(np.arange(samples) / 9) * 3, -1, 1), 16000)
    table = corpus / "table.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\ttwo\t", "\tдва\t", 1), encoding="utf-8")
    monkeypatch.setattr("smoe_cli.validation.validate.listen", lambda *args: pytest.fail("it was read again"))
    config = recipe(corpus, tmp_path / "exp")
    found = {finding.check: finding for finding in pipeline.prepare(config).findings}
    assert (found["script"].severity, found["audio"].severity) == ("error", "note")
    assert "is clipped" in found["audio"].message and found["audio"].where == "recordings"
    with pytest.raises(CheckError, match=r"the manifests have 1 error: `.*validation.json`") as caught:
        pipeline.run(config)
    assert caught.value.exit_code == 1
    pipeline.tokenize(config)
    watcher = Mock(spec=Silent)
    pipeline.check_train(config, watcher=watcher)
    assert any("warning: the manifests have 1 error, " in call.args[0] for call in watcher.log.call_args_list)
    with pytest.raises(CheckError, match="the manifests have 1 error"):
        pipeline.run(config, dry_run=True)
    report = Layout.of(config).validation.read_bytes()
    Layout.of(config).validation.write_bytes(report[:9])
    pipeline.check_train(config, watcher=watcher)
    assert any(call.args[0].startswith("warning: cannot read validation") for call in watcher.log.call_args_list)
    Layout.of(config).validation.write_bytes(report)
    assert plan_step(config, "prepare").state == "up to date"
    assert pipeline.validate(config, fix=True, audio=False).errors == 0
    assert plan_step(config, "prepare").state == "up to date", "what was taken out stays out"


@pytest.mark.parametrize(
    ("text", "lang", "fault"),
    [
        ("привет", "ru", None),
        ("привет", "uk", None),
        ("hello", "ru", "error"),
        ("東京タワーへ", "ja", None),
        ("東京", "zh", None),
        ("こんにちは", "zh", "error"),
        ("서울", "ko", None),
        ("zdravo", "sr", None),
        ("здраво", "sr", None),
        ("שלום", "he", None),
        ("मेरा नाम", "hi", None),
        ("olá", "pt-br", None),
        ("asterisk это телефонная станция", "ru", "note"),
        ("2024", "ru", None),
        ("hello", "tlh", None),
    ],
)
def test_a_script_that_a_language_is_not_written_in_is_found(text, lang, fault):
    found = texts.script_fault(text, lang)
    assert (found and found[0]) == fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pay \u202eeno\u202c now", ("error", "U+202E")),
        ("pay \u2067one\u2069 now", ("error", "U+2067")),
        ("tele\u00adphone", ("note", "U+00AD")),
        ("one\u200btwo", ("note", "U+200B")),
        ("\ufeffone", ("note", "U+FEFF")),
        ("one\u200ctwo", ("note", "U+200C")),
        ("one\U000e0041", ("note", "U+E0041")),
        ("می\u200cخواهم", None),  # Persian writes a joint that does not join
        ("क्\u200dष", None),
        ("ភាសា\u200bខ្មែរ", None),
    ],
)
def test_what_nobody_sees_is_found_where_no_script_needs_it(text, said):
    found = [(severity, what) for severity, what in texts.faults(text)]
    assert [severity for severity, _ in found] == ([said[0]] if said else [])
    assert not said or f"has the character {said[1]} in its text" in found[0][1]
    assert all(what.isprintable() for _, what in found)


def test_without_a_recipe_several_sampling_rates_are_noted(folder):
    cut_id = change(folder, ERRORS["another rate"][0])
    (finding,) = pipeline.validate(None, cuts=[manifest(folder)], audio=False).findings
    assert (finding.check, finding.severity) == ("rate", "note")
    assert re.fullmatch(r"cuts come at several sampling rates: \d+ at 16,000 Hz, 1 at 32,000 Hz", finding.message)
    assert cut_id in finding.where


EMPTY_TAGS = {
    "no language": (lambda cut: cut["supervisions"][0].pop("language"), "lacks supervision: `language`: is empty"),
    "language null": (lambda cut: cut["supervisions"][0].update(language=None), "lacks supervision: `language`: is empty"),
    "language": (lambda cut: cut["supervisions"][0].update(language=" "), "lacks supervision: `language`: is empty"),
    **{name: (tag(**{name: ""}), f"lacks supervision: `{name}`: is empty") for name in ("utterance", "corpus", "task", "bandwidth")},
    "spoken language": (tag(source_lang=" "), "lacks supervision: `source_lang`: is empty"),
    "own axis": (tag(axes={"accent": ""}), "lacks supervision: `axes.accent`: is empty"),
    "right answers": (tag(references=[]), "has no right answer: its `references` are empty"),
}


@pytest.mark.parametrize("name", EMPTY_TAGS)
def test_an_empty_tag_is_an_error_with_and_without_a_recipe(folder, name):
    harm, said = EMPTY_TAGS[name]
    number = next(i for i, cut in enumerate(lines(manifest(folder))) if cut["supervisions"][0]["custom"]["task"] == "translate")
    change(folder, harm, number)
    for config in (config_of(folder), None):
        report = pipeline.validate(config, cuts=[manifest(folder)], audio=False)
        (error,) = [finding for finding in report.findings if finding.severity == "error"]
        assert (error.check, error.message) == ("tags", said)
    # What is not scored needs no right answer.
    for read in () if name == "right answers" else (read_cuts, CutTable):
        with pytest.raises(DataError, match=f"cut `.*` {re.escape(said)}"):
            read(manifest(folder))


def test_rejects_of_earlier_times_are_not_read_into_memory(folder):
    rejected = manifest(folder).with_name("rejected.train.jsonl.gz")
    earlier = [json.dumps({"manifest": "m", "line": n, "reasons": [f"{n:0100000d}"]}).encode() + b"\n" for n in range(300)]
    rejected.write_bytes(gzip.compress(b"".join(earlier)))
    change(folder, text(""))
    tracemalloc.start()
    reject = take_out(manifest(folder), {1: ["text: has an empty text"]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reject.cuts, peak < 15e6) == (1, True), "30 MB of rejects"
    assert [line.encode() + b"\n" for line in gzip.decompress(rejected.read_bytes()).decode().splitlines()][:-1] == earlier


def test_a_ratio_is_an_outlier_by_its_own_languages_measure():
    generator, ratios = np.random.default_rng(0), texts.Ratios()
    for ratio in 12 * np.exp(generator.normal(0, 0.1, 1000)):
        ratios.add("transcribe/en", ratio)
        ratios.add("transcribe/zh", ratio / 3)
    assert ratios.limits() == {}
    ratios.add("transcribe/en", 1.0)
    (lowest, median, highest) = ratios.limits()["transcribe/en"]
    assert median == pytest.approx(12, rel=0.05)
    assert (lowest, highest) == pytest.approx((4, 36), rel=0.05), "at least three times off"


def test_few_texts_say_nothing_about_a_language():
    ratios = texts.Ratios()
    for ratio in [10.0] * 40 + [1.0]:
        ratios.add("transcribe/en", ratio)
    assert ratios.limits() == {}


def test_outliers_are_noted_with_what_is_usual(folder):
    cuts = lines(manifest(folder))
    more = [cut | {"id": f"{cut['id']}-{number}"} for number in range(3) for cut in cuts]
    manifest(folder).write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in more).encode()))
    change(folder, text("one two three four five"))
    (finding,) = pipeline.validate(None, cuts=[manifest(folder)], audio=False).findings
    assert (finding.check, finding.severity) == ("ratio", "note")
    assert "half of all texts of transcribe/en have more than" in finding.message


def test_a_report_reads_back_as_it_was_written(folder):
    report = pipeline.validate(None, cuts=[manifest(folder)], audio=False, out=folder / "out")
    assert ValidationReport.model_validate_json((folder / "out" / "validation.json").read_text()) == report
    assert open_manifest(manifest(folder))


# --- languages -------------------------------------------------------------------------------------------

GERMAN = "Ich habe gestern mit dem Taxi siebzehn Euro bezahlt."
ENGLISH = "Yesterday I paid seventeen euros for the taxi."


@pytest.mark.parametrize(
    ("text", "lang", "found"),
    [
        (GERMAN, "de", None),
        (GERMAN, "en", "de"),
        (GERMAN.upper(), "en", "de"),
        (ENGLISH, "de", "en"),
        (ENGLISH, "en-gb", None),
        (ENGLISH, "tlh", None),
        ("Guten Morgen zusammen", "en", None),
        ("", "en", None),
        ("Dobar dan, kako ste danas i što radite ovdje?", "sr", None),
    ],
)
def test_a_language_is_told_where_letters_tell_it(text, lang, found):
    assert other_language(text, lang) == found


def test_sentences_of_people_are_not_called_wrong_and_wrong_ones_are(real_speech):
    """Every sentence of five words and more, as it is tagged and with the tags exchanged."""
    for pair in ("en-de", "en-fr"):
        rows = [line.split("\t") for line in (real_speech / "parallel-text" / f"tatoeba.{pair}.test.tsv").read_text().splitlines()]
        for place, right, wrong in ((-2, pair[:2], pair[3:]), (-1, pair[3:], pair[:2])):
            some = [row[place] for row in rows if len(row[place].split()) >= FEWEST_WORDS][:1500]
            assert len(some) > 1000
            assert sum(other_language(text, right) is not None for text in some) <= 0.001 * len(some)
            assert sum(other_language(text, wrong) == right for text in some) >= 0.97 * len(some)


def test_a_text_in_another_language_is_noted_and_many_are_an_error(folder):
    def german(cut: dict) -> None:
        cut["supervisions"][0]["text"] = cut["supervisions"][0]["custom"]["transcript"] = GERMAN
        cut["supervisions"][0]["custom"]["references"] = [GERMAN]

    cuts = lines(manifest(folder))
    english = [number for number, cut in enumerate(cuts) if cut["supervisions"][0]["custom"]["task"] == "transcribe"]
    for number in english[:4]:
        change(folder, german, number)
    report = pipeline.validate(config_of(folder), audio=False)
    found = [finding for finding in report.findings if finding.check == "language"]
    assert [(finding.severity, finding.cuts) for finding in found if finding.severity == "error"] == []
    assert "is tagged `en` and reads like `de`: " in found[0].message
    for number in english[4:9]:
        change(folder, german, number)
    report = pipeline.validate(config_of(folder), audio=False)
    (error,) = (finding for finding in report.findings if finding.check == "language" and finding.severity == "error")
    assert re.fullmatch(r"the texts of 9 of \d+ cuts of transcribe/en read like another language", error.message)
    config = config_of(folder)
    right = config.model_copy(update={"data": config.data.model_copy(update={"foreign_texts": "note"})})
    found = [finding.severity for finding in pipeline.validate(right, audio=False).findings if finding.check == "language"]
    assert found and set(found) == {"note"}
    fixed = pipeline.validate(config_of(folder), audio=False, fix=True)
    assert (fixed.errors, [reject.cuts for reject in fixed.rejects]) == (0, [9])
    rejected = lines(folder / "exp" / "cuts" / "rejected.train.jsonl.gz")
    assert all(kept["reasons"][-1] == f"language: is tagged `en` and reads like `de`: `{GERMAN}`" for kept in rejected)
