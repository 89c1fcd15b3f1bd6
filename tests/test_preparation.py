"""From corpora to manifests: what is read, what is refused, and that nothing is written then."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from smoe_cli import audio, gathering, pipeline
from smoe_cli.cluster import connect
from smoe_cli.config import Config, NarrowbandSettings
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.cuts import native_bandwidth, read_cuts, tags_of
from smoe_cli.errors import ConfigError, DataError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tags import Bandwidth
from tests.conftest import tiny_config
from tests.test_training import recipe, write_corpus


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus", per_word=10)


@pytest.fixture
def config(corpus, tmp_path) -> Config:
    return recipe(corpus, tmp_path / "exp")


def replace_in_table(corpus: Path, old: str, new: str) -> None:
    table = corpus / "table.tsv"
    text = table.read_text(encoding="utf-8")
    assert old in text
    table.write_text(text.replace(old, new), encoding="utf-8")


DAMAGES = {
    "zero-length WAV": (lambda c: soundfile.write(c / "a1.flac", np.zeros(0), 16000, format="WAV"), r"a1.flac.*no samples"),
    "silence": (lambda c: soundfile.write(c / "a1.flac", np.zeros(8480), 16000), r"table.tsv` line 3: audio `[^`]*a1.flac` .*silence"),
    "stereo": (lambda c: soundfile.write(c / "a1.flac", np.ones((8480, 2)) / 9, 16000), r"a1.flac.*2 channels"),
    "wrong rate": (lambda c: soundfile.write(c / "a1.flac", np.ones(8480) / 9, 22050), r"line 3: `sample_rate` says 16000"),
    "in-between rate": (
        lambda c: (
            soundfile.write(c / "a1.flac", np.sin(np.arange(5843)) / 9, 11025),
            replace_in_table(c, "a1.flac\ttrain\ts1\t16000", "a1.flac\ttrain\ts1\t11025"),
        ),
        r"11025 Hz: neither",
    ),
    "wrong duration": (lambda c: replace_in_table(c, "0.530", "9.000"), r"`duration` says 9.000"),
    "duplicate id": (
        lambda c: replace_in_table(c, "\na2\t", "\na1\t"),
        r"line 4: utterance `a1` of corpus `tones` occurs twice",
    ),
    "empty transcript": (
        lambda c: replace_in_table(c, "0.530\tone", "0.530\t"),
        r"utterance `a1` of corpus `tones` has no transcript, and task `transcribe` writes `en`",
    ),
    "missing column": (lambda c: replace_in_table(c, "transcript\tde", "transcript\tgerman"), r"no column `de`"),
    "stray tab": (lambda c: replace_in_table(c, "a1.flac\ttrain", "a1.flac\t\ttrain"), r"line 3 has 9 fields"),
    "unknown split": (
        lambda c: replace_in_table(c, "a1.flac\ttrain", "a1.flac\tvalid"),
        r"line 3: .*split `valid`; known: train, dev, test",
    ),
    "latin-1 text": (
        lambda c: (c / "table.tsv").write_bytes((c / "table.tsv").read_bytes().replace(b"eins", b"f\xfcnf")),
        r"10 of 30 utterances .*line 2 is not UTF-8: byte 0xfc",
    ),
    "no audio named": (lambda c: replace_in_table(c, "a1.flac\ttrain", "\ttrain"), r"line 3: `path` is empty"),
    "UTF-16": (
        lambda c: (c / "table.tsv").write_text((c / "table.tsv").read_text(), encoding="utf-16"),
        r"^`[^`]*table.tsv` is UTF-16\n\nhint: convert the table to UTF-8$",
    ),
    "missing table": (lambda c: (c / "table.tsv").unlink(), r"no table"),
}


def test_joined_segments_equal_the_corpus_authors_own_script(real_speech, tmp_path):
    """The corpus ships the script that joins its strings; ours must give the same samples."""
    import subprocess
    import sys

    script = real_speech / "real-digits" / "make_connected.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "theirs"), "--split", "dev"], check=True)
    corpus = {
        "type": "tsv",
        "path": "real-digits/connected.tsv",
        "segments_column": "segments",
        "where": {"split": ["dev"]},
        "translations": {"de": "de"},
    }
    config = tiny_config(tmp_path / "exp", data={"root": str(real_speech), "corpora": {"connected": corpus}})
    pipeline.prepare(config)
    ours = sorted((tmp_path / "exp" / "audio").rglob("*.flac"))
    assert len(ours) == 200
    for path in ours:
        np.testing.assert_array_equal(
            soundfile.read(path)[0], soundfile.read(tmp_path / "theirs" / "dev" / f"{path.name.partition('.')[0]}.flac")[0]
        )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_named_and_nothing_is_written(corpus, config, damage):
    harm, message = DAMAGES[damage]
    harm(corpus)
    with pytest.raises(SmoeError, match=f"(?s){message}") as caught:
        pipeline.prepare(config)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert not [path for path in config.exp_dir.rglob("*cuts*") if path.is_file()]


def test_every_problem_is_counted_not_only_the_first(corpus, config):
    for name in ("a1", "a2", "b3"):
        samples = soundfile.info(corpus / f"{name}.flac").frames
        soundfile.write(corpus / f"{name}.flac", np.zeros(samples), 16000)
    with pytest.raises(DataError, match=r"(?s)3 of 30 utterances are not fit.*a1.*a2.*b3"):
        pipeline.prepare(config)


def test_a_few_unfit_utterances_may_be_left_out_by_name_and_number(corpus, config):
    for name in ("a1", "a2", "b3"):
        samples = soundfile.info(corpus / f"{name}.flac").frames
        soundfile.write(corpus / f"{name}.flac", np.zeros(samples), 16000)

    def allowing(number: int) -> Config:
        tree = config.model_dump()
        tree["data"]["corpora"]["tones"]["max_unfit"] = number
        return Config.model_validate(tree)

    with pytest.raises(DataError, match="3 of 30 utterances are not fit") as caught:
        pipeline.prepare(allowing(2))
    assert "`data.corpora.tones.max_unfit: 3` would leave them out" in caught.value.hint
    report = pipeline.prepare(allowing(3))
    (note,) = (note for note in report.notes if "unfit" in note)
    listed = Layout.of(config).unfit("tones")
    assert note == f"`tones`: 3 unfit utterances left out: `{listed}`"
    assert [re.search(r"recording `(..)`", line)[1] for line in listed.read_text(encoding="utf-8").splitlines()] == ["a1", "a2", "b3"]
    ids = {tags_of(cut).utterance for split in ("train", "dev", "test") for cut in read_cuts(Layout.of(config).cuts(split))}
    assert len(ids) == 27 and not {"tones/a1", "tones/a2", "tones/b3"} & ids
    for name in ("a1", "a2", "b3"):
        soundfile.write(corpus / f"{name}.flac", np.sin(np.arange(soundfile.info(corpus / f"{name}.flac").frames)) / 9, 16000)
    pipeline.prepare(allowing(3))
    assert not listed.exists()


def test_text_that_looks_like_a_guiding_token_stays_text(corpus, config):
    replace_in_table(corpus, "\tone\teins", "\t<translate> one\teins")
    pipeline.prepare(config)
    pipeline.tokenize(config)


@pytest.mark.parametrize("name", ["a/../../c", "..", "/tmp/c", "é", "a b", "a\n", "", 2024, None])
def test_a_corpus_has_a_name_that_fits_into_the_names_of_files(tmp_path, name):
    with pytest.raises(ConfigError, match=r"`data.corpora`: `.*\n?` cannot name a corpus, as files are named by it"):
        tiny_config(tmp_path / "exp", data={"corpora": {name: {"type": "tsv", "path": "table.tsv"}}})


def lhotse_config(tmp_path: Path, cuts: list[MonoCut], **data: object) -> Config:
    """A recipe over a manifest of these cuts, in the folder of the tones."""
    CutSet.from_cuts(cuts).to_jsonl(tmp_path / "corpus" / "cuts.jsonl")
    corpora = {"old": {"type": "lhotse", "cuts": {"train": "cuts.jsonl"}, "translations": {"de": "german"}}}
    return tiny_config(tmp_path / "exp", data={"root": str(tmp_path / "corpus"), "corpora": corpora, **data})


def spoken(name: str, recording: Recording, start_s: float = 0.0, duration_s: float | None = None, channel: int = 0) -> MonoCut:
    """A cut with one supervision: "one", in German "eins"."""
    duration_s = recording.duration if duration_s is None else duration_s
    segment = SupervisionSegment(name, recording.id, 0, duration_s, channel, text="one", language="en", custom={"german": "eins"})
    return MonoCut(name, start_s, duration_s, channel, supervisions=[segment], recording=recording)


def test_a_language_under_another_name_and_a_translation_that_is_nowhere_are_noted(corpus, tmp_path):
    cuts = [spoken(f"c{number}", Recording.from_file(corpus / f"a{number}.flac")) for number in range(4)]
    for cut in cuts[:3]:
        cut.supervisions[0].language = "English"
    config = lhotse_config(tmp_path, cuts)
    report = pipeline.prepare(config)
    assert {row.task: row.cuts for row in report.rows} == {"transcribe": 1, "translate": 4}
    assert [note for note in report.notes if "`English`" in note] == [
        "3 utterances in `English` have a transcript that no task writes; they serve the other tasks; "
        "if the recipe has another name for it: `data.corpora.*.languages: {English: NAME}`"
    ]
    corpora = config.data.corpora
    other = corpora["old"].model_copy(update={"translations": {"de": "germann"}, "languages": {"English": "en"}})
    both = {"old": other, "new": corpora["old"].model_copy(update={"languages": {"English": "en"}})}
    report = pipeline.prepare(config.model_copy(update={"data": config.data.model_copy(update={"corpora": both})}))
    assert not [note for note in report.notes if "`English`" in note]
    said = "no utterance of `old` has a text where `data.corpora.old.translations` says of `de`: `germann`"
    assert [note for note in report.notes if note.startswith("no utterance of")] == [said]


def test_lhotse_manifests_are_read_with_their_translations_from_anywhere(corpus, tmp_path, monkeypatch):
    """Relative paths of audio start from `data.root`, wherever one stands; what is written names the whole path."""
    recordings = [Recording.from_file(corpus / f"a{number}.flac", recording_id=f"r{number}") for number in range(4)]
    for recording in recordings[:2]:
        recording.sources[0].source = Path(recording.sources[0].source).name
    monkeypatch.chdir(tmp_path)
    config = lhotse_config(tmp_path, [spoken(f"c-{item.id}", item) for item in recordings], root="corpus", nb_downsample=True)
    report = pipeline.prepare(config)
    assert {(row.task, row.bandwidth): row.cuts for row in report.rows} == {
        (t, b): 4 for t in ("transcribe", "translate") for b in ("nb", "wb")
    }
    written = {cut.recording.sources[0].source for cut in CutSet.from_jsonl_lazy(Layout.of(config).cuts("train"))}
    assert written == {str(corpus / f"a{number}.flac") for number in range(4)}


@pytest.mark.parametrize(
    ("start_s", "duration_s", "span"),
    [(2.0, 0.2, "from 2.00 to 2.20 s"), (0.2, 0.6, "from 0.20 to 0.80 s"), (-0.2, 0.4, "from -0.20 to 0.20 s")],
)
def test_a_cut_that_leaves_its_recording_is_refused(corpus, tmp_path, start_s, duration_s, span):
    recording = Recording.from_file(corpus / "a1.flac", recording_id="r")
    with pytest.raises(DataError, match=rf"utterance `c` goes {span}, but audio `.*a1.flac` from 0 to 0.53 s"):
        pipeline.prepare(lhotse_config(tmp_path, [spoken("c", recording, start_s, duration_s)]))
    pipeline.prepare(lhotse_config(tmp_path, [spoken("c", recording, 0.2, 0.35)]))
    (cut, _) = CutSet.from_jsonl_lazy(tmp_path / "exp" / "cuts" / "cuts.train.jsonl.gz")
    assert cut.end == pytest.approx(recording.duration), "what a manifest rounded is cut off"


def test_a_long_recording_is_read_once_for_all_its_cuts(corpus, tmp_path, monkeypatch):
    read = Mock(side_effect=audio.listen)
    monkeypatch.setattr("smoe_cli.listening.listen", read)
    calls = [Recording.from_file(corpus / name, recording_id=name) for name in ("a1.flac", "a2.flac")]
    pipeline.prepare(lhotse_config(tmp_path, [spoken(f"c{n}", calls[n % 2], n / 100, 0.2) for n in range(10)]))
    assert sorted(call.args[0].id for call in read.call_args_list) == ["a1.flac", "a2.flac"]
    (corpus / "a1.flac").write_bytes((corpus / "a1.flac").read_bytes()[:3000])
    with pytest.raises(DataError, match="5 of 10 utterances are not fit") as caught:
        pipeline.prepare(lhotse_config(tmp_path, [spoken(f"c{n}", calls[n % 2], n / 100, 0.2) for n in range(10)]))
    assert caught.value.message.count("\n") == 1, "one line for one damaged file"


def call(corpus: Path, dead: int | None) -> Recording:
    """A call of two seconds, one speaker on each channel, of which one may be dead."""
    samples = np.random.default_rng(0).normal(scale=0.1, size=(32000, 2))
    if dead is not None:
        samples[:, dead] = 0
    soundfile.write(corpus / "call.wav", samples, 16000)
    return Recording.from_file(corpus / "call.wav", recording_id="call")


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_channel_is_an_error_for_the_utterances_that_use_it_alone(corpus, tmp_path, monkeypatch, dead):
    cuts = [spoken(f"c{n}", call(corpus, None), n / 10, 0.4, channel=n % 2) for n in range(4)]
    config = lhotse_config(tmp_path, cuts)
    assert pipeline.prepare(config).findings == []
    call(corpus, dead)
    report = pipeline.validate(config)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [re.sub(r"`[^`]*/", "`", finding.message) for finding in errors] == [
        f"channel {dead} of audio `call.wav` (recording `call`) is nothing but silence: one value from its beginning to its end"
    ]
    assert errors[0].cuts == 4, "two tasks of two utterances"
    said = rf"2 of 4 utterances are not fit for use:\n.*channel {dead} of audio `.*call.wav` \(recording `call`\) is nothing but silence"
    with pytest.raises(DataError, match=said) as caught:
        pipeline.prepare(config)
    assert caught.value.message.count("\n") == 1
    # What was heard outlives an interruption.
    monkeypatch.setattr("smoe_cli.listening.listen", Mock(side_effect=AssertionError("read again")))
    with pytest.raises(DataError, match=said):
        pipeline.prepare(config)
    pipeline.prepare(lhotse_config(tmp_path, [cut for cut in cuts if cut.channel != dead]))


def test_a_part_in_the_silence_of_a_sound_recording_is_an_error_of_its_cuts_alone(corpus, tmp_path, monkeypatch):
    samples = np.random.default_rng(0).normal(scale=0.1, size=30 * 16000)
    soundfile.write(corpus / "talk.wav", samples, 16000)
    talk = Recording.from_file(corpus / "talk.wav", recording_id="talk")
    cuts = [spoken("c0", talk, 2.0, 5.0), spoken("c1", talk, 12.0, 5.0), spoken("c2", talk, 8.0, 5.0)]
    config = lhotse_config(tmp_path, cuts)
    assert pipeline.prepare(config).findings == []
    # An offset that is wrong leads a talk's segments there, and those of a call to its other side.
    samples[10 * 16000 : 20 * 16000] = 0.0
    soundfile.write(corpus / "talk.wav", samples, 16000)
    said = r"audio `[^`]*talk.wav` \(recording `talk`\) is nothing but silence: one value or hardly more than one from 12.00 to 17.00 s"
    (finding,) = pipeline.validate(config).findings
    assert re.fullmatch(said, finding.message)
    assert (finding.check, finding.severity, finding.cuts) == ("audio", "error", 2), "two tasks of one utterance"
    for _ in range(2):
        with pytest.raises(DataError, match=rf"1 of 3 utterances are not fit for use:\n.*{said}"):
            pipeline.prepare(config)
        # What was heard outlives an interruption.
        monkeypatch.setattr("smoe_cli.listening.listen", Mock(side_effect=AssertionError("read again")))


def test_a_stopped_preparation_goes_on_where_it_was_and_ends_as_one_that_was_not_stopped(corpus, config, tmp_path, monkeypatch):
    pipeline.prepare(config)
    whole = {split: Layout.of(config).cuts(split).read_bytes() for split in ("train", "dev")}
    shutil.rmtree(config.exp_dir)
    monkeypatch.setattr("smoe_cli.gathering.CHUNK", 4)
    read = Mock(side_effect=audio.listen)
    monkeypatch.setattr("smoe_cli.listening.listen", read)
    stopped = Mock(
        side_effect=[*[audio.listen(Recording.from_file(path)) for path in sorted(corpus.glob("*.flac"))[:9]], KeyboardInterrupt]
    )
    monkeypatch.setattr("smoe_cli.listening.listen", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config, jobs=1)
    layout = Layout.of(config)
    assert not layout.cuts("train").exists() and len(layout.heard.read_text().splitlines()) == 8
    with layout.heard.open("a") as file:
        file.write('["half a li')
    (corpus / "a1.flac").touch()  # changed since, so read again
    monkeypatch.setattr("smoe_cli.listening.listen", read)
    said: list[str] = []
    watcher = Mock(log=said.append)
    pipeline.prepare(config, watcher=watcher)
    assert "8 recordings were found sound by an earlier call" in said[0]
    assert read.call_count == len(list(corpus.glob("*.flac"))) - 8 + 1
    assert {split: layout.cuts(split).read_bytes() for split in whole} == whole
    assert not layout.heard.exists()


def test_who_is_stopped_while_manifests_are_validated_reads_no_audio_again(config, monkeypatch):
    monkeypatch.setattr("smoe_cli.preparation.validate", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    monkeypatch.undo()
    read = Mock(side_effect=audio.listen)
    monkeypatch.setattr("smoe_cli.listening.listen", read)
    pipeline.prepare(config)
    assert read.call_count == 0
    assert not Layout.of(config).heard.exists()


def test_talks_of_many_utterances_are_read_at_once_by_all_jobs(corpus, tmp_path, monkeypatch):
    """With four utterances in memory at once, they would be read one after the other: each talk has ten."""
    talks = [Recording.from_file(corpus / f"a{number}.flac", recording_id=f"r{number}") for number in range(4)]
    config = lhotse_config(tmp_path, [spoken(f"c{n}", talks[n // 10], n % 10 / 100, 0.2) for n in range(40)])
    pipeline.prepare(config, jobs=1)
    whole = Layout.of(config).cuts("train").read_bytes()
    monkeypatch.setattr("smoe_cli.gathering.CHUNK", 4)
    together = threading.Barrier(4, timeout=60)

    def listen(recording: Recording) -> audio.Heard:
        together.wait()
        return audio.listen(recording)

    monkeypatch.setattr("smoe_cli.listening.listen", listen)
    pipeline.prepare(config, jobs=4)
    assert Layout.of(config).cuts("train").read_bytes() == whole


def test_what_is_in_memory_at_once_has_a_limit_however_many_read(monkeypatch):
    monkeypatch.setattr("smoe_cli.gathering.CHUNK", 4)
    recording = Recording("r", [AudioSource("file", [0], "r.wav")], 16000, 16000, 1.0)
    talks = [replace(recording, sources=[AudioSource("file", [0], f"{number}.wav")]) for number in range(1000)]

    def taken(per_talk: int, readers: int) -> int:
        some = (Utterance(str(n), talks[n // per_talk], "train", "", "en", "one") for n in range(1000))
        return len(gathering._next(some, Work("c", Path(), Path()), readers))

    assert [taken(1, 1), taken(1, 2), taken(1, 16), taken(1, 17), taken(1, 10**6)] == [4, 4, 32, 34, 64]
    assert [taken(10, 1), taken(10, 2), taken(10, 100)] == [11, 31, 64]


def test_a_transform_through_8_khz_makes_a_recording_narrowband(corpus, tmp_path):
    recording = Recording.from_file(corpus / "a1.flac", recording_id="r").resample(8000).resample(16000)
    config = lhotse_config(tmp_path, [spoken("c", recording)])
    report = pipeline.prepare(config)
    assert ({row.bandwidth for row in report.rows}, report.findings) == ({"nb"}, [])
    config = config.model_copy(update={"data": config.data.model_copy(update={"bandwidth": "auto"})})
    assert [(row.known_by, row.known, row.tagged) for row in pipeline.prepare(config).bandwidths] == [("8000 Hz", "nb", "nb")]
    with pytest.raises(DataError, match=r"is called wideband, but passes through 8000 Hz, below 16000 Hz"):
        native_bandwidth(recording, Bandwidth.WB)


def test_every_utterance_is_seen_whatever_is_in_memory_at_once(corpus, config, monkeypatch):
    pipeline.prepare(config)
    whole = Layout.of(config).cuts("train").read_bytes()
    for size in (1, 7):
        monkeypatch.setattr("smoe_cli.gathering.CHUNK", size)
        pipeline.prepare(config)
        assert Layout.of(config).cuts("train").read_bytes() == whole
    replace_in_table(corpus, "\tone\teins", "\t?\teins")
    (corpus / "b3.flac").unlink()
    with pytest.raises(DataError, match=r"(?s)of 30 utterances are not fit.*b3") as caught:
        pipeline.prepare(config)
    monkeypatch.setattr("smoe_cli.gathering.CHUNK", 512)
    with pytest.raises(DataError) as at_once:
        pipeline.prepare(config)
    assert sorted(caught.value.message.splitlines()) == sorted(at_once.value.message.splitlines())


@pytest.mark.parametrize("kind", ["command", "url"])
def test_a_manifest_that_would_run_a_program_is_refused(corpus, tmp_path, kind):
    marker = tmp_path / "it-ran"
    recording = Recording.from_file(corpus / "a1.flac", recording_id="r")
    recording.sources[0].type, recording.sources[0].source = kind, f"touch {marker}"
    with pytest.raises(DataError, match=f"type `{kind}`"):
        pipeline.prepare(lhotse_config(tmp_path, [spoken("c", recording)]))
    assert not marker.exists()


def test_the_same_corpus_gives_the_same_bytes(config):
    pipeline.prepare(config)
    first = Layout.of(config).cuts("train").read_bytes()
    shutil.rmtree(config.exp_dir)
    pipeline.prepare(config)
    assert Layout.of(config).cuts("train").read_bytes() == first


def test_a_corrected_row_of_joined_audio_is_joined_anew(real_speech, tmp_path):
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "fsdd").symlink_to(real_speech / "real-digits" / "fsdd")
    lines = (real_speech / "real-digits" / "connected.tsv").read_text(encoding="utf-8").splitlines()[:3]
    corpora = {"connected": {"type": "tsv", "path": "connected.tsv", "segments_column": "segments", "translations": {"de": "de"}}}
    config = tiny_config(tmp_path / "exp", data={"root": str(source), "corpora": corpora})

    def duration(table: list[str]) -> float:
        (source / "connected.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
        pipeline.prepare(config)
        return next(iter(CutSet.from_jsonl_lazy(Layout.of(config).cuts("train")))).duration

    first = duration(lines)
    fields = lines[1].split("\t")
    fields[5] = " ".join(["500", *fields[5].split()[1:]])
    assert duration([lines[0], "\t".join(fields), lines[2]]) != first


def test_one_channel_of_a_stereo_call_stays_that_channel(corpus, tmp_path):
    """An agent on one side, a customer on the other: the cut's channel decides who is heard."""
    tone = 0.1 * np.sin(np.arange(16000) * np.pi / 40)
    soundfile.write(tmp_path / "call.wav", np.stack((tone + 0.25, tone - 0.5), 1), 16000)
    recording = Recording.from_file(tmp_path / "call.wav", recording_id="call")
    config = lhotse_config(tmp_path, [spoken(f"c{channel}", recording, channel=channel) for channel in (0, 1)])
    pipeline.prepare(config)
    heard = {cut.id: float(cut.load_audio()[0].mean()) for cut in CutSet.from_jsonl_lazy(Layout.of(config).cuts("train"))}
    assert heard["old-c0-transcribe-en-wb"] == pytest.approx(0.25, abs=0.01)
    assert heard["old-c1-transcribe-en-wb"] == pytest.approx(-0.5, abs=0.01)


def test_telephone_speech_stored_at_16_khz_can_be_called_narrowband(corpus, tmp_path):
    corpora = {"calls": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, "bandwidth": "nb"}}
    report = pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(corpus), "corpora": corpora, "nb_downsample": True}))
    assert {row.bandwidth for row in report.rows} == {"nb"}


def test_a_damaged_segment_of_joined_audio_is_named(real_speech, tmp_path):
    source = tmp_path / "corpus"
    shutil.copytree(real_speech / "real-digits" / "fsdd" / "dev", source / "fsdd" / "dev")
    lines = (real_speech / "real-digits" / "connected.tsv").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("conn-nicolas-0000"))
    segment = source / row.split("\t")[4].split()[0]
    segment.chmod(0o644)
    segment.write_bytes(segment.read_bytes()[:600])
    (source / "connected.tsv").write_text(f"{lines[0]}\n{row}\n", encoding="utf-8")
    corpora = {"connected": {"type": "tsv", "path": "connected.tsv", "segments_column": "segments", "translations": {"de": "de"}}}
    with pytest.raises(DataError, match=segment.name):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(source), "corpora": corpora}))
    assert not list((tmp_path / "exp").rglob("*.flac"))


def test_the_audio_of_a_split_that_is_left_out_is_not_asked_for(corpus, config):
    for path in [corpus / "a0.flac", corpus / "b0.flac", corpus / "c0.flac"]:
        path.unlink()
    tones = config.data.corpora["tones"].model_copy(update={"splits": {"dev": None}})
    data = config.data.model_copy(update={"corpora": {"tones": tones}})
    assert "dev" not in pipeline.prepare(config.model_copy(update={"data": data})).utterances


def test_a_cut_id_that_two_corpora_would_share_is_refused(corpus, tmp_path):
    table = (corpus / "table.tsv").read_text(encoding="utf-8")
    (corpus / "other.tsv").write_text(table.replace("\na1\t", "\nb-a1\t"), encoding="utf-8")
    tsv = {"type": "tsv", "translations": {"de": "de"}}
    corpora = {"x": {**tsv, "path": "other.tsv"}, "x-b": {**tsv, "path": "table.tsv"}}
    with pytest.raises(DataError, match="two utterances would both give the cut `x-b-a1-"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(corpus), "corpora": corpora}))


def with_spoken(corpus: Path, exp_dir: Path, spoken: str, **changes: object) -> Config:
    """The recipe of a table whose column `spoken` names the language."""
    header, *rows = (corpus / "table.tsv").read_text(encoding="utf-8").splitlines()
    (corpus / "table.tsv").write_text("\n".join([f"{header}\tspoken", *(f"{row}\t{spoken}" for row in rows)]) + "\n", encoding="utf-8")
    tones = {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, "language_column": "spoken"} | changes
    return tiny_config(exp_dir, data={"root": str(corpus), "corpora": {"tones": tones}})


def test_a_language_of_another_name_is_renamed_where_the_recipe_says_so(corpus, tmp_path):
    config = with_spoken(corpus, tmp_path / "exp", "en-US")
    with pytest.raises(DataError, match=r"`data\.corpora\.\*\.languages: \{en-US: en\}` renames"):
        pipeline.prepare(config)
    tree = config.model_dump()
    tree["data"]["corpora"]["tones"]["languages"] = {"en-US": "en"}
    pipeline.prepare(Config.model_validate(tree))
    assert {tags_of(cut).source_lang for cut in read_cuts(Layout.of(config).cuts("train"))} == {"en"}


def test_an_unset_variable_matters_only_where_the_corpus_is_read(tmp_path, monkeypatch):
    from smoe_cli.recipe import load_config

    monkeypatch.delenv("SMOE_NOWHERE", raising=False)
    data = "{root: $SMOE_NOWHERE, corpora: {a: {type: tsv, path: a.tsv}}}"
    (tmp_path / "smoe.yaml").write_text(f"data: {data}\ntasks: {{transcribe: {{languages: [en]}}}}\n")
    config = load_config(tmp_path / "smoe.yaml")
    pipeline.params(config)
    with pytest.raises(ConfigError, match=r"`\$SMOE_NOWHERE`, which is not set"):
        pipeline.prepare(config)
    nowhere = load_config(tmp_path / "smoe.yaml", ["data.root=nowhere", "data.corpora.b.type=tsv", "data.corpora.b.path=b.tsv"])
    with pytest.raises(DataError, match=r"^`data.root` names `.*nowhere`, which is no folder"):
        pipeline.prepare(nowhere)
    (tmp_path / "nowhere").mkdir()
    here = load_config(tmp_path / "smoe.yaml", [f"data.root={tmp_path}", "data.corpora.b.type=tsv", "data.corpora.b.path=a.tsv"])
    with pytest.raises(DataError, match="no table") as refused:
        pipeline.prepare(here)
    assert refused.value.message.count("a.tsv") == 1 and len(refused.value.hint.splitlines()) == 2


def test_variables_in_exp_dir_are_read_and_a_dollar_in_a_folders_name_is_none(corpus, tmp_path, monkeypatch):
    from smoe_cli.recipe import data_root, load_config

    monkeypatch.delenv("SMOE_NOWHERE", raising=False)
    monkeypatch.setenv("SMOE_SOMEWHERE", str(tmp_path))
    folder = tmp_path / "a $SMOE_NOWHERE b"
    folder.mkdir()
    (folder / "smoe.yaml").write_text("tasks: {transcribe: {languages: [en]}}\n")
    assert load_config(folder / "smoe.yaml", ["exp_dir=$SMOE_SOMEWHERE/exp"]).exp_dir == tmp_path / "exp"
    assert data_root(load_config(folder / "smoe.yaml")) == folder
    with pytest.raises(ConfigError, match=r"`exp_dir` names `\$SMOE_NOWHERE`, which is not set"):
        load_config(folder / "smoe.yaml", ["exp_dir=$SMOE_NOWHERE/exp"])


@pytest.fixture(scope="module")
def scheduler():
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_reads_and_writes_what_threads_would(corpus, config, scheduler, monkeypatch):
    pipeline.prepare(config)
    here = Layout.of(config).cuts("train").read_bytes()
    shutil.rmtree(config.exp_dir)
    pipeline.prepare(config, cluster=scheduler)
    assert Layout.of(config).cuts("train").read_bytes() == here
    with connect(scheduler) as there:
        assert there.readers == 2
    simulation = {"nb_downsample": True, "nb_simulation": NarrowbandSettings(codecs=["gsm", "alaw"], write=True)}
    config = config.model_copy(update={"data": config.data.model_copy(update=simulation)})
    monkeypatch.setattr("smoe_cli.telephone._write", Mock(side_effect=AssertionError("written here")))
    report = pipeline.prepare(config, cluster=scheduler)
    assert sum(report.lines.values()) == len(list(config.exp_dir.rglob("narrowband/**/*.flac"))) == 30
    (corpus / "a1.flac").write_bytes((corpus / "a1.flac").read_bytes()[:3000])
    with pytest.raises(DataError, match="1 of 30 utterances are not fit for use"):
        pipeline.prepare(config, cluster=scheduler)


def test_a_cluster_that_is_not_there_is_named(config, monkeypatch):
    monkeypatch.setattr("smoe_cli.cluster.TIMEOUT_S", 1)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at `tcp://127\.0\.0\.1:9`") as caught:
        pipeline.prepare(config, cluster="tcp://127.0.0.1:9")
    assert "dask scheduler" in caught.value.hint
    assert not config.exp_dir.exists()
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ConfigError, match="not installed: dask"):
        pipeline.prepare(config, cluster="tcp://127.0.0.1:9")
