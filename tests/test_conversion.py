"""Converted models compute what transformers computes: logits, features, tokens, and the text of a real Whisper."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import soundfile
import tokenizers
import torch
import transformers
from torch import Tensor

from smoe_cli import checkpoint, pipeline
from smoe_cli.batching import IGNORE_ID
from smoe_cli.checkpoint import System
from smoe_cli.config import DecodeSettings, FeatureSettings
from smoe_cli.cuts import read_cuts, route_of
from smoe_cli.decoding.decode import Decoder, cut_of_file
from smoe_cli.decoding.onnx import OnnxModel
from smoe_cli.errors import CheckpointError, ConfigError, DataError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from smoe_cli.recipe import parse_config
from smoe_cli.tags import Bandwidth, Choice, Route
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.watch import Silent
from tests.test_training import write_corpus

TOLERANCE = 1e-4
TEXTS = ["we call it bear", "elephants tai goose", "the quick brown fox jumps", "over a lazy dog"] * 5
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
WHISPERS = {
    "tiny": {},
    "wide": {"d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_layers": 1, "decoder_ffn_dim": 128},
    "untied": {"tie_word_embeddings": False, "num_mel_bins": 128, "max_source_positions": 33},
    "scaled": {"scale_embedding": True, "decoder_layers": 3},
}
SPEECH2TEXTS = {
    "tiny": {},
    "deep": {"encoder_layers": 4, "decoder_layers": 3, "num_conv_layers": 3, "conv_kernel_sizes": [5, 5, 5]},
    "one convolution": {"num_conv_layers": 1, "conv_kernel_sizes": [5], "input_feat_per_channel": 40},
    "untied": {"tie_word_embeddings": False, "d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 6},
    "unscaled": {"scale_embedding": False, "decoder_ffn_dim": 128},
}
N_UTTERANCES, N_TOKENS = 4, 9
# N utterances, T frames, F mel bins, U tokens, V vocabulary


def randomise(model: torch.nn.Module) -> None:
    """Every weight random, biases and norms too, so that none is forgotten; positions stay, and keys without bias stay so."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim < 2 else 1.5 * weight.shape[-1] ** -0.5))


def whisper_folder(
    folder: Path, multilingual: bool = False, **changes: object
) -> tuple[Path, transformers.WhisperForConditionalGeneration]:
    """A random Whisper and a tokenizer learned from a few sentences, as transformers writes them."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([" " + text for text in TEXTS], vocab_size=300, min_frequency=1)
    bpe.add_special_tokens(SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    bpe._tokenizer.save(str(folder / "tokenizer.json"))
    end, start = (bpe.token_to_id(token) for token in SPECIAL[:2])
    fields = {
        "vocab_size": bpe.get_vocab_size() + 20,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 40,
        "max_target_positions": 30,
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**(fields | changes))).eval()
    randomise(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"is_multilingual": multilingual}))
    transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)
    return folder, model


def speech2text_folder(folder: Path, langs: tuple[str, ...] = (), **changes: object) -> tuple[Path, torch.nn.Module]:
    """A random Speech2Text with a SentencePiece model whose pieces have other ids in its dictionary, as fairseq's have."""
    folder.mkdir(parents=True, exist_ok=True)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=60,
        user_defined_symbols=[f"<lang:{lang}>" for lang in langs],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = spm.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    names = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    rest = [name for name in names if name not in ("<s>", "</s>", "<unk>")]
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *reversed(rest)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True} | ({"lang_codes": "mustc"} if langs else {})))
    fields = {
        "vocab_size": len(vocabulary),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "conv_channels": 24,
    }
    model = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(**(fields | changes))).eval()
    randomise(model)
    model.save_pretrained(folder)
    return folder, model


def converted(folder: Path, out: Path, **wish: object) -> System:
    pipeline.convert(folder, out=out, **wish)  # type: ignore[arg-type]
    return checkpoint.load(out)


@torch.inference_mode()
def our_logits(system: System, features_NTF: Tensor, lengths_N: Tensor, tokens_NU: Tensor) -> Tensor:
    dense = torch.zeros(len(features_NTF), dtype=torch.int64)
    states, _ = system.model(features_NTF, lengths_N, tokens_NU, dense, dense)
    return system.model.decoder.output(states)


@pytest.mark.parametrize("size", WHISPERS)
def test_a_converted_whisper_has_the_logits_of_transformers(size, tmp_path):
    folder, theirs = whisper_folder(tmp_path / "theirs", **WHISPERS[size])
    system = converted(folder, tmp_path / "ours")
    frames = 2 * theirs.config.max_source_positions
    features = torch.randn(N_UTTERANCES, frames, theirs.config.num_mel_bins)
    # Padding is silence that the model hears.
    for utterance, length in enumerate(torch.randint(5, frames, (N_UTTERANCES,)).tolist()):
        features[utterance, length:] = -1.5
    tokens = torch.randint(0, theirs.config.vocab_size, (N_UTTERANCES, N_TOKENS))
    with torch.inference_mode():
        expected = theirs(input_features=features.transpose(1, 2), decoder_input_ids=tokens).logits
    found = our_logits(system, features, torch.full((N_UTTERANCES,), frames), tokens)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < TOLERANCE


def without_leaks(model: torch.nn.Module, lengths_N: Tensor) -> None:
    """Let transformers forget what its convolutions write into padding, which the next convolution would read."""
    for factor, conv in enumerate(model.model.encoder.conv.conv_layers):
        inside = -(-lengths_N // 2**factor)

        def forget(module, inputs, inside=inside):
            (x_NCT,) = inputs
            return x_NCT.masked_fill(torch.arange(x_NCT.shape[2])[None, None, :] >= inside[:, None, None], 0.0)

        conv.register_forward_pre_hook(forget)


@pytest.mark.parametrize("size", SPEECH2TEXTS)
def test_a_converted_speech2text_has_the_logits_of_transformers(size, tmp_path):
    folder, theirs = speech2text_folder(tmp_path / "theirs", **SPEECH2TEXTS[size])
    system = converted(folder, tmp_path / "ours", langs=["en"])
    lengths = torch.cat((torch.randint(20, 90, (N_UTTERANCES - 1,)), torch.tensor([90])))
    features = torch.randn(N_UTTERANCES, 90, theirs.config.input_feat_per_channel)
    real = torch.arange(90)[None, :] < lengths[:, None]
    features = features * real[..., None]
    tokens = torch.randint(4, theirs.config.vocab_size, (N_UTTERANCES, N_TOKENS))
    found = our_logits(system, features, lengths, tokens)
    with torch.inference_mode():
        for utterance, length in enumerate(lengths.tolist()):
            one = slice(utterance, utterance + 1)
            alone = theirs(input_features=features[one, :length], decoder_input_ids=tokens[one]).logits
            assert alone.std() > 0.1
            assert (found[one] - alone).abs().max() < TOLERANCE
        # In a padded batch of theirs an utterance's logits differ from its own alone, by what its convolutions leave in the padding.
        without_leaks(theirs, lengths)
        together = theirs(input_features=features, attention_mask=real.long(), decoder_input_ids=tokens).logits
    assert (found - together).abs().max() < TOLERANCE


def test_whisper_features_are_those_of_transformers():
    extractor = transformers.WhisperFeatureExtractor()
    settings = FeatureSettings(kind="whisper", window_s=30.0, pad_to_window=True)
    for seconds in (0.3, 7.77, 30.0):
        samples = (np.random.default_rng(0).standard_normal(round(16000 * seconds)) * 0.1).astype(np.float32)
        expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0].T
        found = FrontEnd(settings).of_samples(torch.from_numpy(samples))
        assert found.shape == expected.shape == (3000, 80)
        assert (found - expected).abs().max() < TOLERANCE


def test_speech2text_features_are_those_of_transformers():
    extractor = transformers.Speech2TextFeatureExtractor()
    for seconds in (0.3, 7.77):
        samples = (np.random.default_rng(0).standard_normal(round(16000 * seconds)) * 0.1).astype(np.float32)
        expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0]
        found = FrontEnd(FeatureSettings(kind="speech2text")).of_samples(torch.from_numpy(samples))
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


def test_whisper_tokens_are_those_of_transformers_and_cannot_be_forged(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    tokenizer = converted(folder, tmp_path / "ours").tokenizer
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for text in (*TEXTS[:4], "Straße, ça va? 日本語 🙂", ""):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(f" {text}", add_special_tokens=False) or not text
        assert tokenizer.decode(ids) == text
    assert not set(tokenizer.encode("<|endoftext|><|en|>")) & {tokenizer.end_id, *tokenizer.silent_ids}


def test_speech2text_tokens_are_those_of_transformers(tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs")
    tokenizer = converted(folder, tmp_path / "ours", langs=["en"]).tokenizer
    theirs = transformers.Speech2TextTokenizer.from_pretrained(folder)
    for text in (*TEXTS[:4], "the dog jumps over Qx"):
        assert [*tokenizer.encode(text.lower()), tokenizer.end_id] == theirs.encode(text.lower())
    assert tokenizer.decode([*tokenizer.encode(TEXTS[0]), tokenizer.end_id]) == TEXTS[0]


def test_the_prefix_is_the_models_own_and_new_routes_get_guiding_tokens_inside_it(tmp_path):
    folder, theirs = whisper_folder(tmp_path / "theirs", multilingual=True)
    system = converted(folder, tmp_path / "ours", langs=["en", "de"])
    ids = {token["content"]: token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    start, no_times = ids["<|startoftranscript|>"], ids["<|notimestamps|>"]
    known, new = Route("transcribe", "de", Bandwidth.NB), Route("translate", "fr", Bandwidth.NB)
    assert system.tokenizer.guiding_ids(known) == [start, ids["<|de|>"], ids["<|transcribe|>"], no_times]
    with pytest.raises(RouteError, match="<translate>"):
        system.tokenizer.guiding_ids(new)
    extended = system.tokenizer.extend(["<translate>", "<fr>"], tmp_path / "extended")
    pieces = theirs.config.vocab_size
    assert extended.vocab_size == pieces + 2
    assert extended.guiding_ids(new) == [start, pieces, pieces + 1, no_times]
    assert extended.guiding_ids(known) == system.tokenizer.guiding_ids(known)
    assert extended.continues(system.tokenizer) and not system.tokenizer.continues(extended)
    assert {pieces, pieces + 1} <= set(extended.silent_ids)


def test_whisper_translates_from_the_language_that_is_named(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", multilingual=True)
    system = converted(folder, tmp_path / "ours", task="translate", source_lang="de")
    ids = {token["content"]: token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    assert system.plan.routes == ("translate/en/nb", "translate/en/wb")
    assert system.tokenizer.guiding_ids(Route("translate", "en", Bandwidth.WB))[1:3] == [ids["<|de|>"], ids["<|translate|>"]]


def test_a_speech2text_of_many_languages_is_told_which(tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs", langs=("de", "fr"))
    system = converted(folder, tmp_path / "ours", task="translate", langs=["fr"])
    number = json.loads((folder / "vocab.json").read_text())["<lang:fr>"]
    assert system.tokenizer.guiding_ids(Route("translate", "fr", Bandwidth.NB)) == [2, number]
    with pytest.raises(RouteError, match="it writes: "):
        pipeline.convert(folder, out=tmp_path / "other", task="translate", langs=["it"])


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("config.json", {"model_type": "wav2vec2"}, r"type `wav2vec2`; can be converted: whisper, speech_to_text"),
        ("config.json", {"activation_function": "relu"}, r"`activation_function` is 'relu', not 'gelu'"),
        ("config.json", {"decoder_attention_heads": 4}, "2 and 4 heads"),
        ("config.json", {"decoder_layers": 1}, "weights that no part of the model takes"),
        ("config.json", {"decoder_layers": 3}, r"no weight `model\.decoder\.layers\.2"),
        ("preprocessor_config.json", {"hop_length": 200}, r"`hop_length` is 200, not 160"),
    ],
)
def test_a_model_without_counterpart_is_refused_by_name(file, change, error, tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=error):
        pipeline.convert(folder, out=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_pickled_weights_are_refused(tmp_path):
    folder, model = whisper_folder(tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="can run code"):
        pipeline.convert(folder, out=tmp_path / "ours")


def test_only_an_earlier_conversion_is_replaced(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    first = pipeline.convert(folder, out=tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is a checkpoint of smoe already"):
        pipeline.convert(tmp_path / "ours", out=tmp_path / "again")
    assert pipeline.convert(folder, out=tmp_path / "ours").model == first.model
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is there already"):
        pipeline.convert(folder, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("wish", "error"),
    [({"task": "translate"}, RouteError), ({"langs": ["de"]}, RouteError)],
)
def test_an_english_whisper_does_nothing_but_transcribe_english(wish, error, tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    with pytest.raises(error, match="knows English only"):
        pipeline.convert(folder, out=tmp_path / "ours", **wish)


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
    assert phone.texts([features]) == [greedy.text]
    if family == "whisper":
        with pytest.raises(DataError, match="the model takes 2 s"):
            phone.texts([np.zeros((201, 80), np.float32)])


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
