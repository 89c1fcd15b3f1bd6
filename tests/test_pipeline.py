"""The whole road on real recordings, at small size, and what happens when something on it is broken."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError, ConfigError, DataError, RouteError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.records import read_hypotheses
from tests.conftest import tiny_config
from tests.test_training import recipe, write_corpus

CHANCE_WER = 100.0


@pytest.fixture(scope="module")
def digits(real_speech, tmp_path_factory) -> Config:
    """Recorded digits of two speakers at 8 kHz, prepared, tokenized, trained, decoded."""
    corpus = {
        "type": "tsv",
        "path": "real-digits/real-digits.tsv",
        "translations": {"de": "de"},
        "where": {"kind": ["isolated"], "speaker": ["fsdd-jackson", "fsdd-george", "fsdd-nicolas", "fsdd-theo"]},
    }
    config = tiny_config(
        tmp_path_factory.mktemp("digits"),
        data={"root": str(real_speech), "corpora": {"fsdd": corpus}},
        tokenizer={"vocab_size": 310},
        model={
            "d_model": 64,
            "heads": 4,
            "ffn_dim": 128,
            "dropout": 0.0,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "subsampling_channels": 64,
        },
        train={
            "max_steps": 300,
            "batch_s": 20.0,
            "max_utterances": 32,
            "learning_rate": 3e-3,
            "warmup_steps": 50,
            "validate_every": 150,
            "ctc_weight": 0.5,
            "validation_utterances": 100,
            "time_masks": 0,
            "frequency_masks": 1,
            "frequency_mask_bins": 5,
            "threads": 2,
        },
    )
    pipeline.prepare(config)
    pipeline.tokenize(config)
    pipeline.train(config)
    pipeline.decode(config)
    return config


def test_recorded_digits_are_learned_far_below_chance(digits):
    """Speakers of the test split were never heard in training; a guess of one of ten words is wrong nine times in ten."""
    report = pipeline.score(digits)
    scores = {(item.task, item.bandwidth): item.scores[0] for item in report.slices}
    assert set(scores) == {("transcribe", "nb"), ("translate", "nb")}
    assert scores["transcribe", "nb"].value < 0.6 * CHANCE_WER
    assert scores["transcribe", "nb"].total == 500
    page = (Layout.of(digits).scores / "report.html").read_text(encoding="utf-8")
    assert "transcribe" in page and "http://" not in page


def test_natively_narrowband_audio_is_tagged_so_and_brought_to_the_models_rate(digits):
    cuts = list(CutSet.from_jsonl_lazy(Layout.of(digits).cuts("train")))
    assert {cut.supervisions[0].custom["bandwidth"] for cut in cuts} == {"nb"}
    assert {cut.sampling_rate for cut in cuts} == {16000}
    assert cuts[0].load_audio().shape[1] == cuts[0].num_samples


def test_the_audit_of_a_sound_model_observes_every_layer_and_utterance(digits):
    report = pipeline.route_audit(digits, utterances=20)
    assert report.layers == 3
    assert report.observations == 3 * 20 * 2
    assert all(row.planned for row in report.served)
    assert not [finding for finding in report.findings if finding.check != "swap"]
    assert {(swap.stack, swap.right, swap.used) for swap in report.swaps} == {
        ("decoder", "transcribe", "translate"),
        ("decoder", "translate", "transcribe"),
    }
    assert (Layout.of(digits).audit / "audit.html").is_file()


def test_the_audit_finds_a_model_that_runs_the_wrong_expert(digits, monkeypatch):
    from smoe_cli.model.experts import SupervisedMoE

    honest = SupervisedMoE.run_expert
    monkeypatch.setattr(SupervisedMoE, "run_expert", lambda self, index, x: honest(self, len(self.names) - 1 - index, x))
    findings = pipeline.route_audit(digits, utterances=3, swap=False).findings
    assert {finding.check for finding in findings} == {"execution"}
    assert "expert `translate` served 3 of 3 utterances; the plan names `transcribe`" in {finding.message for finding in findings}


def test_the_audit_finds_wrong_tags(digits, tmp_path):
    with gzip.open(Layout.of(digits).cuts("test"), "rt", encoding="utf-8") as file:
        cuts = [json.loads(line) for line in islice(file, 4)]
    del cuts[0]["supervisions"][0]["custom"]["task"]
    cuts[1]["supervisions"][0]["custom"]["bandwidth"] = "wb"
    cuts[2]["supervisions"][0]["language"] = "fr"
    manifest = tmp_path / "wrong.jsonl"
    manifest.write_text("\n".join(map(json.dumps, cuts)), encoding="utf-8")
    findings = pipeline.route_audit(digits, cuts=manifest, swap=False, out=tmp_path / "audit").findings
    assert [(finding.check, finding.where) for finding in findings] == [("tags", cut["id"]) for cut in cuts[:3]]


def test_bare_audio_is_decoded_by_its_flags(digits, real_speech):
    path = next((real_speech / "real-digits" / "fsdd" / "test").rglob("*.flac"))
    report = pipeline.decode(digits, inputs=[path], task="translate", lang="de")
    (hypothesis,) = report.hypotheses
    assert (hypothesis.task, hypothesis.lang, hypothesis.bandwidth) == ("translate", "de", "nb")
    assert report.paths == []


def test_a_route_that_the_model_lacks_is_refused_with_those_it_has(digits, real_speech):
    path = next((real_speech / "real-digits" / "fsdd" / "test").rglob("*.flac"))
    with pytest.raises(RouteError, match="transcribe/en/nb, translate/de/nb"):
        pipeline.decode(digits, inputs=[path], task="translate", lang="fr")
    with pytest.raises(RouteError, match="transcribe/en/nb, translate/de/nb"):
        pipeline.decode(digits, inputs=[path], task="transcribe", lang="en", bandwidth="wb")


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


# --- broken input ----------------------------------------------------------------------------------------


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
    "missing file": (lambda c: (c / "a1.flac").unlink(), r"no audio file `.*a1.flac`"),
    "truncated FLAC": (lambda c: (c / "a1.flac").write_bytes((c / "a1.flac").read_bytes()[:3000]), r"a1.flac.*(breaks off|cannot be read)"),
    "zero-length file": (lambda c: (c / "a1.flac").write_bytes(b""), r"cannot open audio `.*a1.flac`"),
    "zero-length WAV": (lambda c: soundfile.write(c / "a1.flac", np.zeros(0), 16000, format="WAV"), r"a1.flac.*no samples"),
    "silence": (lambda c: soundfile.write(c / "a1.flac", np.zeros(8480), 16000), r"a1.flac.*silence"),
    "stereo": (lambda c: soundfile.write(c / "a1.flac", np.ones((8480, 2)) / 9, 16000), r"a1.flac.*2 channels"),
    "wrong rate": (lambda c: soundfile.write(c / "a1.flac", np.ones(8480) / 9, 22050), r"line 3: `sample_rate` says 16000"),
    "in-between rate": (
        lambda c: (
            soundfile.write(c / "a1.flac", np.ones(5843) / 9, 11025),
            replace_in_table(c, "a1.flac\ttrain\ts1\t16000", "a1.flac\ttrain\ts1\t11025"),
        ),
        r"11025 Hz: neither",
    ),
    "wrong duration": (lambda c: replace_in_table(c, "0.530", "9.000"), r"`duration` says 9.000"),
    "duplicate id": (lambda c: replace_in_table(c, "\na2\t", "\na1\t"), r"`a1` of corpus `tones` occurs twice"),
    "empty transcript": (lambda c: replace_in_table(c, "0.530\tone", "0.530\t"), r"line 3: `transcript` is empty"),
    "missing column": (lambda c: replace_in_table(c, "transcript\tde", "transcript\tgerman"), r"no column `de`"),
    "stray tab": (lambda c: replace_in_table(c, "a1.flac\ttrain", "a1.flac\t\ttrain"), r"line 3 has 9 fields"),
    "unknown split": (lambda c: replace_in_table(c, "a1.flac\ttrain", "a1.flac\tvalid"), r"split `valid`; known splits: train, dev, test"),
    "latin-1 text": (
        lambda c: (c / "table.tsv").write_bytes((c / "table.tsv").read_bytes().replace(b"eins", b"f\xfcnf")),
        r"cannot read table",
    ),
    "missing table": (lambda c: (c / "table.tsv").unlink(), r"no table"),
    "no translations": (
        lambda c: (c / "table.tsv").write_text(
            "\n".join(
                line if i == 0 else line.rpartition("\t")[0] + "\t" for i, line in enumerate((c / "table.tsv").read_text().splitlines())
            )
        ),
        r"no utterance serves task `translate`, language `de`",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_named_and_nothing_is_written(corpus, config, damage):
    harm, message = DAMAGES[damage]
    harm(corpus)
    with pytest.raises(SmoeError, match=f"(?s){message}") as caught:
        pipeline.prepare(config)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert not list((config.exp_dir).rglob("cuts*"))


def test_every_problem_is_counted_not_only_the_first(corpus, config):
    for name in ("a1", "a2", "b3"):
        samples = soundfile.info(corpus / f"{name}.flac").frames
        soundfile.write(corpus / f"{name}.flac", np.zeros(samples), 16000)
    with pytest.raises(DataError, match=r"(?s)3 of 30 utterances are not fit.*a1.*a2.*b3"):
        pipeline.prepare(config)


def test_text_that_looks_like_a_guiding_token_stays_text(corpus, config):
    replace_in_table(corpus, "\tone\teins", "\t<translate> one\teins")
    pipeline.prepare(config)
    pipeline.tokenize(config)


def test_lhotse_manifests_are_read_with_their_translations(corpus, tmp_path):
    cuts = []
    for number in range(4):
        recording = Recording.from_file(corpus / f"a{number}.flac", recording_id=f"r{number}")
        cut = recording.to_cut()
        cut.supervisions = [
            SupervisionSegment(f"s{number}", recording.id, 0, recording.duration, text="one", language="en", custom={"german": "eins"})
        ]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_jsonl(tmp_path / "cuts.jsonl.gz")
    corpora = {"old": {"type": "lhotse", "cuts": {"train": str(tmp_path / "cuts.jsonl.gz")}, "translations": {"de": "german"}}}
    report = pipeline.prepare(tiny_config(tmp_path / "exp", data={"corpora": corpora, "nb_downsample": True}))
    assert {(row.task, row.bandwidth): row.cuts for row in report.rows} == {
        (t, b): 4 for t in ("transcribe", "translate") for b in ("nb", "wb")
    }


@pytest.mark.parametrize("kind", ["command", "url"])
def test_a_manifest_that_would_run_a_program_is_refused(corpus, tmp_path, kind):
    marker = tmp_path / "it-ran"
    recording = Recording.from_file(corpus / "a1.flac", recording_id="r")
    recording.sources[0].type, recording.sources[0].source = kind, f"touch {marker}"
    cut = recording.to_cut()
    cut.supervisions = [SupervisionSegment("s", "r", 0, recording.duration, text="one", language="en")]
    CutSet.from_cuts([cut]).to_jsonl(tmp_path / "cuts.jsonl")
    config = tiny_config(tmp_path / "exp", data={"corpora": {"evil": {"type": "lhotse", "cuts": {"train": str(tmp_path / "cuts.jsonl")}}}})
    with pytest.raises(DataError, match=f"type `{kind}`"):
        pipeline.prepare(config)
    assert not marker.exists()


def test_each_step_names_the_one_before_it(config):
    with pytest.raises(DataError, match="run `smoe prepare`") as caught:
        pipeline.tokenize(config)
    pipeline.prepare(config)
    with pytest.raises(CheckpointError, match="run `smoe tokenize`"):
        pipeline.train(config)
    pipeline.tokenize(config)
    with pytest.raises(CheckpointError, match="run `smoe train`"):
        pipeline.decode(config)
    with pytest.raises(DataError, match="run `smoe decode`"):
        pipeline.score(config)
    assert caught.value.exit_code == 2


def test_an_empty_manifest_is_refused(config):
    path = Layout.of(config).cuts("train")
    path.parent.mkdir(parents=True)
    gzip.open(path, "w").close()
    with pytest.raises(DataError, match="is empty"):
        pipeline.tokenize(config)


def test_a_half_written_manifest_is_refused(config):
    pipeline.prepare(config)
    path = Layout.of(config).cuts("train")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read manifest"):
        pipeline.tokenize(config)


def test_a_checkpoint_of_another_system_is_refused(config, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="no checkpoint or an incomplete one"):
        pipeline.decode(config, checkpoint=tmp_path / "other", out=tmp_path / "h.jsonl")


def test_the_same_corpus_gives_the_same_bytes(config):
    pipeline.prepare(config)
    first = Layout.of(config).cuts("train").read_bytes()
    shutil.rmtree(config.exp_dir)
    pipeline.prepare(config)
    assert Layout.of(config).cuts("train").read_bytes() == first


def test_run_does_everything_once_and_then_only_what_changed(config):
    def states(c: Config, **options: bool) -> dict[str, str]:
        return {step.name: step.state for step in pipeline.run(c, **options).steps}

    assert set(states(config, dry_run=True).values()) == {"would run"}
    assert not config.exp_dir.exists()
    assert set(states(config).values()) == {"done"}
    assert set(states(config).values()) == {"skipped"}
    wider = config.model_copy(update={"decode": config.decode.model_copy(update={"beam": 3})})
    changed = states(wider)
    assert (changed["prepare"], changed["train"], changed["decode"], changed["route-audit"]) == ("skipped", "skipped", "done", "done")
    hypotheses = list(read_hypotheses(Layout.of(config).hypotheses("test", "transcribe", "en")))
    assert {item.references[0] for item in hypotheses} == {"one", "two", "three"}


def test_unknown_settings_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown setting `train.max_step`"):
        tiny_config(tmp_path, train={"max_step": 3})
    with pytest.raises(ConfigError, match=r"unknown preset `enc-dec`"):
        tiny_config(tmp_path, model={"preset": "enc-dec"})
    with pytest.raises(ConfigError, match=r"kind `summarise`; known kinds: transcribe, translate"):
        tiny_config(tmp_path, tasks={"summarise": {"languages": ["en"]}})


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


def test_one_channel_of_a_stereo_call_stays_that_channel(tmp_path):
    """An agent on one side, a customer on the other: the cut's channel decides who is heard."""
    left, right = np.full(16000, 0.25), np.full(16000, -0.5)
    soundfile.write(tmp_path / "call.wav", np.stack((left, right), 1), 16000)
    recording = Recording.from_file(tmp_path / "call.wav", recording_id="call")
    cuts = []
    for channel in (0, 1):
        segment = SupervisionSegment(f"s{channel}", "call", 0, 1.0, channel=channel, text="one", language="en", custom={"german": "eins"})
        cuts.append(MonoCut(f"c{channel}", 0, 1.0, channel, supervisions=[segment], recording=recording))
    CutSet.from_cuts(cuts).to_jsonl(tmp_path / "cuts.jsonl")
    corpora = {"calls": {"type": "lhotse", "cuts": {"train": str(tmp_path / "cuts.jsonl")}, "translations": {"de": "german"}}}
    config = tiny_config(tmp_path / "exp", data={"corpora": corpora})
    pipeline.prepare(config)
    heard = {cut.id: float(cut.load_audio()[0].mean()) for cut in CutSet.from_jsonl_lazy(Layout.of(config).cuts("train"))}
    assert heard["calls-c0-transcribe-en-wb"] == pytest.approx(0.25, abs=0.01)
    assert heard["calls-c1-transcribe-en-wb"] == pytest.approx(-0.5, abs=0.01)


def test_telephone_speech_stored_at_16_khz_can_be_called_narrowband(corpus, tmp_path):
    corpora = {"calls": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}, "bandwidth": "nb"}}
    report = pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(corpus), "corpora": corpora, "nb_downsample": True}))
    assert {row.bandwidth for row in report.rows} == {"nb"}


def test_a_part_of_a_step_does_not_count_as_the_step(config):
    pipeline.run(config)
    pipeline.decode(config, bandwidth="nb")
    states = {step.name: step.state for step in pipeline.run(config, dry_run=True).steps}
    assert (states["train"], states["decode"]) == ("up to date", "would run")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_hypotheses_with_unicode_line_separators_are_read_back(tmp_path, separator):
    from smoe_cli.records import Hypothesis, write_jsonl

    written = Hypothesis(
        id="c", utterance="u", task="transcribe", lang="en", bandwidth="nb", text=f"a{separator}b", duration_s=1, score=0, stopped="end"
    )
    write_jsonl(tmp_path / "h.jsonl", [written])
    assert list(read_hypotheses(tmp_path / "h.jsonl")) == [written]


@pytest.mark.parametrize("changes", [{"model": "base"}, {"data": [1]}, {"model": {"preset": ["a"]}}, {"tasks": {}}])
def test_settings_of_the_wrong_shape_are_refused(changes):
    from smoe_cli.config import parse_config

    with pytest.raises(ConfigError):
        parse_config({"tasks": {"transcribe": {"languages": ["en"]}}} | changes, "x.yaml", Path())


def test_an_expert_with_a_name_that_torch_uses_is_refused(tmp_path):
    tasks = {"train": {"kind": "transcribe", "languages": ["en"]}}
    with pytest.raises(ConfigError, match="cannot be named `train`"):
        pipeline.params(tiny_config(tmp_path, tasks=tasks))


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


def test_a_manifest_with_damaged_bytes_is_refused(config):
    pipeline.prepare(config)
    path = Layout.of(config).cuts("train")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read manifest"):
        pipeline.tokenize(config)


def test_a_partial_decode_replaces_only_what_it_decoded(config):
    pipeline.run(config)
    path = Layout.of(config).hypotheses("test", "transcribe", "en")
    before = {item.id for item in read_hypotheses(path)}
    pipeline.decode(config, bandwidth="nb")
    assert {item.id for item in read_hypotheses(path)} == before
    with pytest.raises(ConfigError, match="replace those"):
        pipeline.decode(config, checkpoint=Layout.of(config).final)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 31.0])
def test_bare_audio_of_impossible_length_is_refused(digits, tmp_path, seconds):
    soundfile.write(tmp_path / "call.wav", np.full(int(8000 * seconds), 0.1), 8000)
    with pytest.raises(DataError, match="the model takes"):
        pipeline.decode(digits, inputs=[tmp_path / "call.wav"], task="transcribe", lang="en")


def test_a_cut_id_that_two_corpora_would_share_is_refused(corpus, tmp_path):
    table = (corpus / "table.tsv").read_text(encoding="utf-8")
    (corpus / "other.tsv").write_text(table.replace("\na1\t", "\nb-a1\t"), encoding="utf-8")
    tsv = {"type": "tsv", "translations": {"de": "de"}}
    corpora = {"x": {**tsv, "path": "other.tsv"}, "x-b": {**tsv, "path": "table.tsv"}}
    with pytest.raises(DataError, match="two utterances would both give the cut `x-b-a1-"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(corpus), "corpora": corpora}))


def test_an_unset_variable_matters_only_where_the_corpus_is_read(tmp_path, monkeypatch):
    from smoe_cli.config import load_config

    monkeypatch.delenv("SMOE_NOWHERE", raising=False)
    (tmp_path / "smoe.yaml").write_text("data: {root: $SMOE_NOWHERE}\ntasks: {transcribe: {languages: [en]}}\n")
    config = load_config(tmp_path / "smoe.yaml")
    pipeline.params(config)
    with pytest.raises(ConfigError, match=r"`\$SMOE_NOWHERE`, which is not set"):
        pipeline.prepare(config)
