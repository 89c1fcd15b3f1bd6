"""A converted model is used as any other: trained on, decoded, slimmed, exported; and a real Whisper hears what it heard."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from smoe_cli import checkpoint, pipeline
from smoe_cli.batching import IGNORE_ID
from smoe_cli.config import DecodeSettings
from smoe_cli.cuts import read_cuts, route_of
from smoe_cli.decoding.decode import Decoder, cut_of_file
from smoe_cli.decoding.onnx import OnnxModel
from smoe_cli.errors import CheckpointError, ConfigError, DataError
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from smoe_cli.recipe import parse_config
from smoe_cli.tags import Bandwidth, Choice, Route
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.watch import Silent
from tests.foreign_models import TEXTS, TOLERANCE, converted, our_logits, speech2text_folder, whisper_folder
from tests.test_training import write_corpus


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.mark.parametrize("family", ["whisper", "speech_to_text"])
def test_a_converted_model_is_upcycled_trained_and_decoded_as_plainly_as_any(family, tones, tmp_path):
    if family == "whisper":
        folder, _ = whisper_folder(tmp_path / "theirs", max_source_positions=100)
    else:
        folder, _ = speech2text_folder(tmp_path / "theirs")
    start = tmp_path / "start"
    donor = converted(folder, start, langs=["en"])
    tree = {
        "exp_dir": str(tmp_path / "exp"),
        "data": {
            "root": str(tones),
            "nb_downsample": True,
            "corpora": {"tones": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}}},
        },
        "tasks": {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de"]}},
        "model": {"preset": "encdec-smoe"},
        "train": {"init_from": str(start), "max_steps": 3, "warmup_steps": 2, "batch_s": 8, "validate_every": 3, "threads": 1},
        "decode": {"beam": 2, "max_tokens_per_s": 8},
    }
    config = parse_config(tree, "recipe")
    assert config.model.d_model == 32 and config.model.family == donor.config.model.family
    assert config.features == donor.config.features
    pipeline.prepare(config)
    tokens = pipeline.tokenize(config)
    assert tokens.guiding_tokens == ["<translate>", "<de>"]
    counted = pipeline.params(config)
    pipeline.check_start(config)

    layout = Layout.of(config)
    trainer = Trainer(
        config, layout.model, read_cuts(layout.cuts("train")), read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer)
    )
    trainer._start()
    batch = next(iter(trainer.collator([cut]) for cut in read_cuts(layout.cuts("test")) if str(route_of(cut)) == "transcribe/en/nb"))
    prefix = batch.tokens_in[:, : int((batch.targets == IGNORE_ID).sum()) + 1]
    assert prefix[0].tolist() == donor.tokenizer.guiding_ids(batch.routes[0])
    trainer.system.model.eval()
    with torch.inference_mode():
        states, _ = trainer.system.model(batch.features, batch.feature_lengths, batch.tokens_in, batch.encoder_expert, batch.decoder_expert)
        ours = trainer.system.model.decoder.output(states)[..., : donor.tokenizer.vocab_size]
    theirs = our_logits(donor, batch.features, batch.feature_lengths, batch.tokens_in)
    assert torch.equal(ours, theirs)

    report = pipeline.train(config)
    assert report.parameters["total"] == counted.total
    hypotheses = pipeline.decode(config).hypotheses
    assert {(found.task, found.lang) for found in hypotheses} == {("transcribe", "en"), ("translate", "de")}
    assert not any("<" in found.text for found in hypotheses)
    assert pipeline.score(config).slices
    # The run's own checkpoint says what the model is, when the one that it started from is gone.
    shutil.move(start, tmp_path / "elsewhere")
    again = parse_config(tree, "recipe")
    assert again.model == config.model and again.features == config.features
    assert pipeline.train(again).resumed_from == report.steps
    slim = pipeline.slim(layout.final, out=tmp_path / "slim", choice=Choice("translate", bandwidth="nb"))
    (greedy,) = pipeline.decode(
        None,
        inputs=[tones / "a0.flac"],
        choice=Choice(bandwidth="nb"),
        checkpoint=slim.checkpoint,
        search=DecodeSettings(beam=1, ctc_weight=0.0),
    ).hypotheses
    exported = pipeline.export(slim.checkpoint, out=tmp_path / "phone")
    assert exported.check.max_difference < TOLERANCE
    phone = OnnxModel(tmp_path / "phone", threads=1)
    cut = cut_of_file(tones / "a0.flac", "translate", "de", Bandwidth.NB, {}, 16000, (0.1, 30.0))
    features = FrontEnd(phone.card.front_end)(cut).numpy()
    assert phone.texts([features], [cut.duration]) == [greedy.text]
    if family == "whisper":
        with pytest.raises(DataError, match="the model takes 2 s"):
            phone.texts([np.zeros((201, 80), np.float32)], [2.01])


def test_the_runner_of_a_whisper_that_pads_ends_where_torch_does(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", max_source_positions=100)
    system = converted(folder, tmp_path / "ours")
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).standard_normal(8000) * 0.1, 16000)
    (greedy,) = pipeline.decode(
        None, inputs=[tmp_path / "short.wav"], checkpoint=tmp_path / "ours", search=DecodeSettings(beam=1, ctc_weight=0.0)
    ).hypotheses
    pipeline.export(tmp_path / "ours", out=tmp_path / "phone", choice=Choice(bandwidth="wb"))
    phone = OnnxModel(tmp_path / "phone", threads=1)
    cut = cut_of_file(tmp_path / "short.wav", "transcribe", "en", Bandwidth.WB, {}, 16000, (0.1, 2.0))
    features = FrontEnd(system.config.features)(cut).numpy()
    assert len(features) == 200
    assert greedy.stopped == "length"
    assert len(phone.greedy([features], phone.limits([cut.duration]))[0]) == phone.card.min_max_tokens == 20
    assert phone.texts([features], [cut.duration]) == [greedy.text]


def test_a_whisper_that_takes_little_is_exported_and_checked_as_far_as_it_goes(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", max_source_positions=30, max_target_positions=10)
    converted(folder, tmp_path / "ours")
    check = pipeline.export(tmp_path / "ours", out=tmp_path / "phone", choice=Choice(bandwidth="wb")).check
    assert check.max_difference < TOLERANCE
    # 10 steps of 3 + 1 utterances, with one beam and with two.
    assert check.tokens == 10 * 4 * 3
    phone = OnnxModel(tmp_path / "phone", threads=1)
    assert len(phone.greedy([np.zeros((60, 80), np.float32)], phone.limits([0.6]))[0]) <= 8


def test_longer_audio_or_text_than_the_model_takes_is_refused_by_name(tones, tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", max_source_positions=30)
    converted(folder, tmp_path / "ours")
    with pytest.raises(DataError, match=r"lasts 0\.83 s; the model takes 0\.1 to 0\.6 s"):
        pipeline.decode(None, inputs=[tones / "a11.flac"], checkpoint=tmp_path / "ours")


def test_texts_that_a_tokenizer_changes_are_counted_and_shown(tones, tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs")
    converted(folder, tmp_path / "start", langs=["en"])
    table = (tones / "table.tsv").read_text().replace("one", "One Qx")
    (tmp_path / "corpus").mkdir()
    for audio in tones.glob("*.flac"):
        (tmp_path / "corpus" / audio.name).symlink_to(audio)
    (tmp_path / "corpus" / "table.tsv").write_text(table)
    tree = {
        "exp_dir": str(tmp_path / "exp"),
        "data": {"root": str(tmp_path / "corpus"), "corpora": {"tones": {"type": "tsv", "path": "table.tsv"}}},
        "tasks": {"transcribe": {"languages": ["en"]}},
        "train": {"init_from": str(tmp_path / "start")},
    }
    said: list[str] = []
    watcher = Silent()
    watcher.log = said.append  # type: ignore[method-assign]
    config = parse_config(tree, "recipe")
    pipeline.prepare(config)
    pipeline.tokenize(config, watcher=watcher)
    assert any("do not come back as they were" in line and "'One Qx' becomes" in line for line in said)


def test_a_folder_of_transformers_is_no_checkpoint_to_start_from(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="is no checkpoint of smoe"):
        parse_config({"tasks": {"transcribe": {"languages": ["en"]}}, "train": {"init_from": str(folder)}}, "recipe")
    with pytest.raises(CheckpointError, match="no checkpoint") as caught:
        checkpoint.read_parts(folder)
    assert "smoe convert" in caught.value.hint


def test_a_recipes_case_and_punctuation_hold_for_what_a_model_writes(tmp_path):
    label = {"id": "y", "task": "intent", "lang": "any", "bandwidth": "nb", "text": "Count-It!", "references": ["Count-It!"]}
    hypothesis = {"id": "x", "task": "transcribe", "lang": "en", "bandwidth": "nb", "text": "We call it, BEAR.", "references": [TEXTS[0]]}
    (tmp_path / "h.jsonl").write_text(json.dumps(hypothesis) + "\n")
    (tmp_path / "labels.jsonl").write_text(json.dumps(label) + "\n")
    tree = {"exp_dir": str(tmp_path), "tasks": {"transcribe": {"languages": ["en"]}}}
    policy = {"lowercase": True, "strip_punctuation": True}
    errors = []
    for config in (None, parse_config(tree, "recipe"), parse_config(tree | {"data": policy}, "recipe")):
        errors.append(pipeline.score(config, hypotheses=[tmp_path / "h.jsonl"]).slices[0].scores[0].errors)
    assert errors == [3, 3, 0]
    tasks = {"tasks": {"intent": {"kind": "classify"}}, "data": policy}
    report = pipeline.score(parse_config(tree | tasks, "recipe"), hypotheses=[tmp_path / "labels.jsonl"])
    assert report.slices[0].scores[0].value == 100.0


@pytest.fixture(scope="session")
def real_whisper() -> Path:
    """Folder with Whisper tiny.en as `recipes/whisper-upcycle/get_whisper.py` writes it, named by SMOE_WHISPER."""
    folder = os.environ.get("SMOE_WHISPER")
    if folder and (Path(folder) / "model.safetensors").is_file():
        return Path(folder)
    if os.environ.get("SMOE_REQUIRE_REAL_SPEECH"):
        pytest.fail(f"the real Whisper is required, but SMOE_WHISPER is {folder}")
    pytest.skip("no Whisper: set SMOE_WHISPER to the folder that recipes/whisper-upcycle/get_whisper.py writes")


def test_the_real_whisper_hears_what_transformers_hears(real_whisper, real_speech, tmp_path):
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(real_whisper, dtype=torch.float32).eval()
    system = converted(real_whisper, tmp_path / "ours")
    decoder = Decoder(system, DecodeSettings(beam=1, ctc_weight=0.0))
    audio = sorted((real_speech / "real-read" / "audio" / "test").rglob("*.opus"))[::600]
    assert len(audio) >= 3
    for path in audio:
        samples, _ = soundfile.read(path, dtype="float32")
        features = transformers.WhisperFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features
        cut = cut_of_file(path, "transcribe", "en", Bandwidth.WB, {}, 16000, (0.1, 30.0))
        ours = decoder.collator.front_end.compute(cut)
        assert (ours - features[0].T).abs().max() < TOLERANCE
        (hypothesis,) = decoder.decode([cut])
        tokens = torch.tensor(
            [[*system.tokenizer.guiding_ids(Route("transcribe", "en", Bandwidth.WB)), *system.tokenizer.encode(hypothesis.text)]]
        )
        with torch.inference_mode():
            expected = theirs(input_features=features, decoder_input_ids=tokens).logits
            generated = theirs.generate(features, num_beams=1, max_new_tokens=60)[0].tolist()
        found = our_logits(system, features.transpose(1, 2), torch.tensor([3000]), tokens)
        assert (found - expected).abs().max() < TOLERANCE
        assert hypothesis.text == system.tokenizer.decode(generated)
        assert hypothesis.text
