"""The whole road at small size: on real recordings, and step by step on tones."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import CutSet

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError, ConfigError, DataError, RouteError, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.records import read_hypotheses
from smoe_cli.steps import STEPS, plan_step
from smoe_cli.tags import Choice
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
            "threads": 1,
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


def first_cuts(digits: Config, number: int) -> list[dict]:
    with gzip.open(Layout.of(digits).cuts("test"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, number)]


def write_manifest(path: Path, cuts: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, cuts)), encoding="utf-8")
    return path


def test_the_audit_of_a_sound_model_observes_every_layer_and_utterance(digits, tmp_path):
    manifest = write_manifest(tmp_path / "some.jsonl", first_cuts(digits, 40))
    report = pipeline.route_audit(digits, cuts=manifest, utterances=10, out=tmp_path / "audit")
    assert report.layers == 3
    assert report.observations == 3 * 40
    assert all(row.planned for row in report.served)
    assert not [finding for finding in report.findings if finding.check != "swap"]
    assert {(swap.stack, swap.right, swap.used) for swap in report.swaps} == {
        ("decoder", "transcribe", "translate"),
        ("decoder", "translate", "transcribe"),
    }
    assert (tmp_path / "audit" / "audit.html").is_file()


def test_the_audit_finds_a_model_that_runs_the_wrong_expert(digits, tmp_path, monkeypatch):
    from smoe_cli.model.experts import SupervisedMoE

    honest = SupervisedMoE.run_expert
    monkeypatch.setattr(SupervisedMoE, "run_expert", lambda self, index, x: honest(self, len(self.names) - 1 - index, x))
    manifest = write_manifest(tmp_path / "some.jsonl", first_cuts(digits, 6))
    findings = pipeline.route_audit(digits, cuts=manifest, swap=False, out=tmp_path / "audit").findings
    assert {finding.check for finding in findings} == {"execution"}
    assert "expert `translate` served 3 of 3 utterances; the plan names `transcribe`" in {finding.message for finding in findings}


def test_the_audit_finds_wrong_tags(digits, tmp_path):
    cuts = first_cuts(digits, 4)
    del cuts[0]["supervisions"][0]["custom"]["task"]
    cuts[1]["supervisions"][0]["custom"]["bandwidth"] = "wb"
    cuts[2]["supervisions"][0]["language"] = "fr"
    manifest = write_manifest(tmp_path / "wrong.jsonl", cuts)
    findings = pipeline.route_audit(digits, cuts=manifest, swap=False, out=tmp_path / "audit").findings
    assert [(finding.check, finding.where) for finding in findings] == [("tags", cut["id"]) for cut in cuts[:3]]


def test_bare_audio_is_decoded_by_its_flags(digits, real_speech):
    path = next((real_speech / "real-digits" / "fsdd" / "test").rglob("*.flac"))
    report = pipeline.decode(digits, inputs=[path], choice=Choice("translate", "de"))
    (hypothesis,) = report.hypotheses
    assert (hypothesis.task, hypothesis.lang, hypothesis.bandwidth) == ("translate", "de", "nb")
    assert report.paths == []


def test_a_route_that_the_model_lacks_is_refused_with_those_it_has(digits, real_speech):
    path = next((real_speech / "real-digits" / "fsdd" / "test").rglob("*.flac"))
    with pytest.raises(RouteError, match="of lang it has `en`, `de`"):
        pipeline.decode(digits, inputs=[path], choice=Choice("translate", "fr"))
    with pytest.raises(RouteError, match="of bandwidth it has `nb`"):
        pipeline.decode(digits, inputs=[path], choice=Choice("transcribe", "en", "wb"))


# --- step by step ----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path) -> Config:
    """Tones that stand for words."""
    return recipe(write_corpus(tmp_path / "corpus", per_word=10), tmp_path / "exp")


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


def test_a_half_written_manifest_is_refused(config):
    pipeline.prepare(config)
    path = Layout.of(config).cuts("train")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read manifest"):
        pipeline.tokenize(config)


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


def test_a_dry_run_of_training_refuses_what_training_refuses_and_writes_nothing(config):
    def changed(**train: object) -> Config:
        return config.model_copy(update={"train": config.train.model_copy(update=train)})

    pipeline.run(config)
    before = {path: path.stat().st_mtime_ns for path in config.exp_dir.rglob("*")}
    faster = changed(learning_rate=0.5)
    for wrong, message in ((faster, "train.learning_rate: "), (changed(freeze=["tail"]), "`train.freeze` names `tail`")):
        with pytest.raises(SmoeError, match=message):
            pipeline.check_train(wrong)
        with pytest.raises(SmoeError, match=message):
            pipeline.run(wrong, dry_run=True)
    pipeline.check_train(config)
    pipeline.check_train(faster, resume="never")
    pipeline.run(faster, dry_run=True, force=True)
    assert {path: path.stat().st_mtime_ns for path in config.exp_dir.rglob("*")} == before
    with pytest.raises(CheckpointError, match=r"train.learning_rate: "):
        pipeline.train(faster)


def test_unknown_settings_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown setting `train.max_step`; near it: `max_steps`"):
        tiny_config(tmp_path, train={"max_step": 3})
    corpora = {
        "type: kladi": r"unknown `data.corpora.calls.type` `kladi`; near it: `kaldi`; known: tsv, ",
        "type: kaldi, tetx: x": r"unknown setting `data.corpora.calls.tetx`; near it: `text`",
        "path: x": r"`data.corpora.calls` has no `type`, which says what kind of corpus it is; known: tsv, ",
        "type: kaldi, weight: heavy": r"`data.corpora.calls.weight` is `heavy`, and should be a valid number; ",
    }
    for given, said in corpora.items():
        with pytest.raises(ConfigError, match=said):
            tiny_config(tmp_path, data={"corpora": {"calls": yaml.safe_load(f"{{{given}}}")}})
    with pytest.raises(ConfigError, match=r"unknown preset `enc-dec`"):
        tiny_config(tmp_path, model={"preset": "enc-dec"})
    with pytest.raises(ConfigError, match=r"kind `summarise`; known kinds: transcribe, translate"):
        tiny_config(tmp_path, tasks={"summarise": {"languages": ["en"]}})


def test_results_that_an_interrupted_run_left_do_not_count_as_those_of_the_run_before(config):
    """Whenever it was stopped, some of what it writes is other than the finished run left it."""
    pipeline.run(config)
    for name in STEPS:
        for path in plan_step(config, name).writes:
            file = path if path.is_file() else min(path.iterdir())
            whole = file.read_bytes()
            file.write_bytes(whole[:-1])
            assert plan_step(config, name).reason == f"`{file}` is not as this step left it"
            file.write_bytes(whole)
        assert plan_step(config, name).state == "up to date"


def test_a_step_that_would_run_anew_names_the_setting_that_changed(config):
    pipeline.run(config)
    changes = {"prepare": ("data", "max_duration_s"), "train": ("train", "max_steps"), "decode": ("decode", "beam")}
    for step, (section, name) in changes.items():
        old = getattr(getattr(config, section), name)
        changed = getattr(config, section).model_copy(update={name: old + 1})
        reason = plan_step(config.model_copy(update={section: changed}), step).reason
        assert reason == f"its settings changed: {section}.{name}: {old} -> {old + 1}"
    quiet = config.train.model_copy(update={"log_every": 7, "workers": 1, "tensorboard": True, "loss_chunk": 64, "compile": True})
    assert plan_step(config.model_copy(update={"train": quiet}), "train").state == "up to date", "these leave the model as it is"


def test_what_somebody_else_puts_into_a_steps_folder_is_none_of_its_results(config):
    pipeline.prepare(config)
    pipeline.tokenize(config)
    (Layout.of(config).tokenizer / "notes.txt").write_text("300 pieces")
    assert plan_step(config, "tokenize").state == "up to date"
    pipeline.check_train(config)


def test_a_run_that_could_not_train_on_replaces_no_tokenizer(config):
    pipeline.run(config)
    layout = Layout.of(config)
    tokenizer = {file: file.read_bytes() for file in layout.tokenizer.iterdir()}
    table = Path(str(config.data.root)) / "table.tsv"
    table.write_text(
        "\n".join(line.replace("\tone\t", "\tone more\t") if line.startswith("a1\t") else line for line in table.read_text().splitlines())
    )
    pipeline.prepare(config)
    larger = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 301})})
    for changed, said in ((config, "was trained on other data"), (larger, "its settings changed: tokenizer.vocab_size: 300 -> 301")):
        for dry in (True, False):
            with pytest.raises(CheckpointError, match=said) as caught:
                pipeline.run(changed, dry_run=dry)
            assert "smoe run --force" in caught.value.hint
    assert {file: file.read_bytes() for file in layout.tokenizer.iterdir()} == tokenizer
    assert pipeline.run(config, force=True).steps[1].state == "done"


def test_inputs_that_cannot_be_decoded_are_named_all_at_once(config, tmp_path):
    pipeline.run(config)
    silent, none = tmp_path / "silent.wav", tmp_path / "none.wav"
    soundfile.write(silent, np.zeros(8000), 8000)
    with pytest.raises(DataError, match="2 of 2 inputs cannot be decoded, and nothing was") as caught:
        pipeline.decode(config, inputs=[silent, none], choice=Choice("transcribe", bandwidth="nb"), out=tmp_path / "h.jsonl")
    assert "silent.wav" in caught.value.message and "none.wav" in caught.value.message


def test_an_account_in_another_form_is_one_of_an_earlier_smoe(config):
    pipeline.prepare(config)
    stamp = Layout.of(config).stamp("prepare")
    account = json.loads(stamp.read_text())
    stamp.write_text(json.dumps(account | {"settings": list(account["settings"].values())}))
    assert plan_step(config, "prepare").reason == f"an earlier smoe ({account['version']}) made it"


def test_preparing_anew_begins_by_forgetting_that_it_was_done(config, monkeypatch):
    pipeline.prepare(config)
    monkeypatch.setattr("smoe_cli.gathering.read_corpus", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    assert plan_step(config, "prepare").reason == "it was stopped, refused, or asked for a part of its work only, the last time"


def test_a_part_of_a_step_does_not_count_as_the_step(config):
    pipeline.run(config)
    pipeline.decode(config, choice=Choice(bandwidth="nb"))
    states = {step.name: step.state for step in pipeline.run(config, dry_run=True).steps}
    assert (states["train"], states["decode"]) == ("up to date", "would run")


def test_a_recipe_that_is_not_yaml_is_named_with_the_line(tmp_path):
    from smoe_cli.recipe import load_config

    (tmp_path / "smoe.yaml").write_text("name: a\ntasks: [\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r'in ".*smoe.yaml", line 3'):
        load_config(tmp_path / "smoe.yaml")


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
    from smoe_cli.recipe import parse_config

    with pytest.raises(ConfigError):
        parse_config({"tasks": {"transcribe": {"languages": ["en"]}}} | changes, "x.yaml", Path())


def test_an_expert_with_a_name_that_torch_uses_is_refused(tmp_path):
    tasks = {"train": {"kind": "transcribe", "languages": ["en"]}}
    with pytest.raises(ConfigError, match="cannot be named `train`"):
        pipeline.params(tiny_config(tmp_path, tasks=tasks))


def test_a_manifest_with_damaged_bytes_is_refused(config):
    pipeline.prepare(config)
    path = Layout.of(config).cuts("train")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read|is not JSON"):
        pipeline.tokenize(config)


def test_a_partial_decode_replaces_only_what_it_decoded(config):
    pipeline.run(config)
    path = Layout.of(config).hypotheses("test", "transcribe", "en")
    before = {item.id for item in read_hypotheses(path)}
    pipeline.decode(config, choice=Choice(bandwidth="nb"))
    assert {item.id for item in read_hypotheses(path)} == before
    with pytest.raises(ConfigError, match="replace those"):
        pipeline.decode(config, checkpoint=Layout.of(config).final)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 31.0])
def test_bare_audio_of_impossible_length_is_refused(digits, tmp_path, seconds):
    soundfile.write(tmp_path / "call.wav", np.random.default_rng(0).uniform(-0.1, 0.1, int(8000 * seconds)), 8000)
    with pytest.raises(DataError, match="the model takes"):
        pipeline.decode(digits, inputs=[tmp_path / "call.wav"], choice=Choice("transcribe", "en"))
