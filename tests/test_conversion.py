"""Converted models compute what transformers computes: logits, features and tokens; what cannot be converted is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from smoe_cli import pipeline
from smoe_cli.config import FeatureSettings
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import CheckpointError, ConfigError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.tags import Bandwidth, Route
from tests.foreign_models import TEXTS, TOLERANCE, converted, our_logits, speech2text_folder, whisper_folder

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
# N utterances, C channels, T frames


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


@pytest.mark.parametrize("bins", [80, 128])
def test_whisper_features_are_those_of_transformers(bins):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    settings = FeatureSettings(kind="whisper", window_s=30.0, pad_to_window=True, mel_bins=bins)
    for seconds in (0.3, 7.77, 30.0):
        samples = (np.random.default_rng(0).standard_normal(round(16000 * seconds)) * 0.1).astype(np.float32)
        expected = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0].T
        found = FrontEnd(settings).of_samples(torch.from_numpy(samples))
        assert found.shape == expected.shape == (3000, bins)
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


def test_two_conversions_that_differ_in_a_prefix_alone_are_two_tokenizers(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", multilingual=True)
    german, french = (converted(folder, tmp_path / lang, task="translate", source_lang=lang) for lang in ("de", "fr"))
    assert german.digest == french.digest
    assert not german.tokenizer.same_as(french.tokenizer) and not german.tokenizer.continues(french.tokenizer)
    assert german.tokenizer.difference(french.tokenizer).startswith("`prefixes` in tokenizer.json: {'translate/en': [")
    assert Decoder(german)._header([]) != Decoder(french)._header([])


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
        ("config.json", {"encoder_ffn_dim": 0}, "`encoder_ffn_dim: 0`, where a whole number of at least 1 is needed"),
        ("config.json", {"vocab_size": "a"}, '`vocab_size: "a"`, where a whole number of at least 1 is needed'),
        ("config.json", {"dropout": None}, "`dropout: null`, where a number of at least 0 is needed"),
        ("config.json", {"tie_word_embeddings": 1}, "`tie_word_embeddings: 1`, where true or false is needed"),
        ("config.json", {"eos_token_id": -1}, "`eos_token_id: -1`, where a whole number of at least 0 is needed"),
        ("config.json", {"eos_token_id": 10**9}, r"config\.json` says `eos_token_id: 1000000000`, where an id from 0 to \d+ is needed"),
        (
            "tokenizer.json",
            {"added_tokens": [{"content": "<|startoftranscript|>", "id": 10**6}, {"content": "<|notimestamps|>", "id": 7}]},
            r"tokenizer\.json` says `<\|startoftranscript\|>: 1000000`",
        ),
        *(
            (
                "generation_config.json",
                {"suppress_tokens": wrong},
                r"config\.json` says `suppress_tokens: .*`, where a list of ids from 0 to",
            )
            for wrong in ([10**6], [5, -1], ["a"], [True], "a", 5, {})
        ),
        ("tokenizer.json", {"added_tokens": [1]}, "no `added_tokens` with `content` and `id`"),
        ("tokenizer.json", {"added_tokens": []}, r"no token `<\|startoftranscript\|>`"),
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


def test_damaged_settings_of_a_speech2text_are_refused_by_name(tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    wrong = {
        "eos_token_id": 10**9,
        "decoder_start_token_id": 10**9,
        "d_model": "x",
        "conv_kernel_sizes": [5, "5"],
        "scale_embedding": "yes",
        "num_conv_layers": 2.0,
        "pad_token_id": True,
    }
    for name, value in wrong.items():
        path.write_text(json.dumps(config | {name: value}))
        with pytest.raises(CheckpointError, match=rf"`{name}: .*, where .* is needed"):
            pipeline.convert(folder, out=tmp_path / "ours", task="translate", langs=["de"])


def test_a_dictionary_with_more_pieces_than_its_model_is_refused_by_name(tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs")
    path = folder / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"<lang:de>": 10**6}))
    with pytest.raises(CheckpointError, match=r"vocab\.json` says `<lang:de>: 1000000`, where an id from 0 to \d+ is needed"):
        pipeline.convert(folder, out=tmp_path / "ours", task="translate", langs=["de"])


def test_a_folder_without_its_processor_says_how_to_save_one(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no `tokenizer\.json`") as refused:
        pipeline.convert(folder, out=tmp_path / "ours")
    assert "AutoProcessor" in refused.value.hint


def test_the_name_of_a_model_elsewhere_is_no_folder_and_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no folder `openai/whisper-tiny\.en`") as caught:
        pipeline.convert(Path("openai/whisper-tiny.en"), out=tmp_path / "model")
    assert "save_pretrained(FOLDER)" in caught.value.hint


def test_weights_in_several_files_are_those_of_one(tmp_path):
    folder, model = whisper_folder(tmp_path / "theirs")
    whole = converted(folder, tmp_path / "whole")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert converted(folder, tmp_path / "parts").digest == whole.digest
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(CheckpointError, match="names no files"):
        converted(folder, tmp_path / "none")


def test_pieces_that_the_model_suppresses_are_never_written(tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs")
    free = converted(folder, tmp_path / "free")
    assert not {5, 6} & set(free.tokenizer.silent_ids)
    (folder / "generation_config.json").write_text(json.dumps({"is_multilingual": False, "suppress_tokens": [5, 6]}))
    assert {5, 6} <= set(converted(folder, tmp_path / "ours").tokenizer.silent_ids)


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
    (tmp_path / "ours" / "notes.txt").write_text("what I heard")
    with pytest.raises(ConfigError, match=r"holds `notes.txt`, which `smoe convert` did not write"):
        pipeline.convert(folder, out=tmp_path / "ours")
    assert (tmp_path / "ours" / "notes.txt").read_text() == "what I heard"
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


@pytest.mark.parametrize(("multilingual", "wish"), [(True, {"langs": ["de"]}), (False, {}), (None, {"langs": ["de"], "task": "translate"})])
def test_a_spoken_language_that_the_model_is_not_told_is_refused(multilingual, wish, tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs") if multilingual is None else whisper_folder(tmp_path / "theirs", multilingual)
    with pytest.raises(ConfigError, match="--source-lang fr changes nothing") as caught:
        pipeline.convert(folder, out=tmp_path / "ours", source_lang="fr", **wish)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "wish",
    [{"langs": ["transcribe"]}, {"langs": ["de", "notimestamps"]}, {"langs": ["it"]}, {"task": "translate", "source_lang": "translate"}],
)
def test_what_is_no_language_of_a_whisper_is_refused_with_those_that_are(wish, tmp_path):
    folder, _ = whisper_folder(tmp_path / "theirs", multilingual=True)
    with pytest.raises(RouteError, match=r"knows no language `\w+`; it knows: en, de, fr\n"):
        pipeline.convert(folder, out=tmp_path / "ours", **wish)
