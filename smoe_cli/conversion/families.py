"""What is special about each family that can be converted: settings, convolutions, positions, prefix and tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smoe_cli.config import FRAMES_PER_S
from smoe_cli.conversion.source import Source
from smoe_cli.conversion.weights import Weights
from smoe_cli.errors import CheckpointError, ConfigError, RouteError
from smoe_cli.tokenizer import FairseqTokenizer, Tokenizer, WhisperTokenizer
from smoe_cli.tokenizer.base import CARD_FILE

RATE_HZ = 16000


@dataclass(frozen=True)
class Wish:
    """What the converted model is for.

    Attributes:
        task: `transcribe` or `translate`.
        langs: Languages that it writes.
        source_lang: Language that is spoken, where the model must be told.
    """

    task: str
    langs: Sequence[str]
    source_lang: str | None


@dataclass(frozen=True)
class Converted:
    """A model in our terms: settings of `model:` and `features:`, weights, tokenizer, and the languages it writes."""

    model: dict[str, Any]
    features: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    langs: Sequence[str]


def _nothing_spoken(wish: Wish) -> None:
    """Refuse a spoken language where the model is not told any.

    Raises:
        ConfigError: If one is named.
    """
    if wish.source_lang is not None:
        raise ConfigError(
            f"--source-lang {wish.source_lang} changes nothing: it tells a Whisper of many languages what it translates from, "
            "and this model or task is not told",
            "leave it out, or translate with --task translate and such a Whisper",
        )


def _shape(source: Source, said: Mapping[str, Any]) -> dict[str, Any]:
    """Dimensions that both families name alike.

    Raises:
        CheckpointError: If encoder and decoder differ where ours cannot.
    """
    ffn_scale, rest = divmod(said["decoder_ffn_dim"], said["encoder_ffn_dim"])
    if said["encoder_attention_heads"] != said["decoder_attention_heads"] or rest or not ffn_scale:
        raise CheckpointError(
            f"`{source.folder}`: encoder and decoder have {said['encoder_attention_heads']} and {said['decoder_attention_heads']} heads, "
            f"feed-forward networks of {said['encoder_ffn_dim']} and {said['decoder_ffn_dim']}",
            "smoe has models with equally many heads in both, and a decoder's width that is a multiple of the encoder's",
        )
    return {
        "preset": "base",
        "d_model": said["d_model"],
        "heads": said["encoder_attention_heads"],
        "encoder_layers": said["encoder_layers"],
        "decoder_layers": said["decoder_layers"],
        "ffn_dim": said["encoder_ffn_dim"],
        "decoder_ffn_scale": ffn_scale,
        "dropout": said["dropout"],
        "ctc": False,
    }


SHARED = {"decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "tie_word_embeddings": True}
SPEECH2TEXT = SHARED | {
    "vocab_size": 10000,
    "d_model": 256,
    "encoder_layers": 12,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "dropout": 0.1,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "num_conv_layers": 2,
    "conv_kernel_sizes": [5, 5],
    "conv_channels": 1024,
    "input_feat_per_channel": 80,
    "scale_embedding": True,
}
"""Settings of transformers' `Speech2TextConfig` that matter, with its defaults."""


def speech2text(source: Source, wish: Wish, folder: Path) -> Converted:
    """Convert a `Speech2TextForConditionalGeneration`.

    Raises:
        CheckpointError: If the folder is incomplete, or its model has no counterpart here.
        RouteError: If it does not write the wanted language.
        ConfigError: If no language is wanted: the folder does not say which one it writes; or one that is spoken, which it is not told.
    """
    _nothing_spoken(wish)
    said = source.settings(SPEECH2TEXT)
    layers = said["num_conv_layers"]
    expected = {"activation_function": "relu", "pad_token_id": 1, "conv_kernel_sizes": [5] * layers, "input_channels": 1}
    source.expect(source.config, expected, "config.json")
    if layers not in (1, 2, 3):
        raise CheckpointError(f"`{source.folder}` has {layers} convolutions", "smoe has models with 1 to 3")
    front = source.file("preprocessor_config.json", needed=False)
    normal = {"do_ceptral_normalize": True, "normalize_means": True, "normalize_vars": True, "sampling_rate": RATE_HZ, "dither": 0.0}
    source.expect(front, normal | {"num_mel_bins": said["input_feat_per_channel"]}, "preprocessor_config.json")
    if not wish.langs:
        raise ConfigError(f"`{source.folder}` does not say which language it writes", "name it with --lang, and its task with --task")
    weights = Weights(source.tensors(), str(source.folder))
    weights.drop("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights")
    for number in range(layers):
        weights.move(f"model.encoder.conv.conv_layers.{number}", f"encoder.subsampler.convs.{number}")
    scale = float(said["d_model"]) ** 0.5 if said["scale_embedding"] else 1.0
    for part in ("weight", "bias"):
        # Theirs multiplies what comes out of the gate; half of the channels are the gate itself.
        weights.made[f"encoder.subsampler.convs.{layers - 1}.{part}"][: said["d_model"]] *= scale
    for stack in ("encoder", "decoder"):
        weights.layers(stack, said[f"{stack}_layers"], said["encoder_ffn_dim"])
    tied = weights.vocabulary("lm_head", said["tie_word_embeddings"], scale / float(said["d_model"]) ** 0.5)
    model = _shape(source, said) | {
        "family": "speech2text",
        "subsampling": 2**layers,
        "subsampling_channels": said["conv_channels"],
        "tie_embeddings": tied,
    }
    features = {"kind": "speech2text", "sample_rate_hz": RATE_HZ, "mel_bins": said["input_feat_per_channel"]}
    return Converted(model, features, weights.finish(), _fairseq_tokenizer(source, said, wish, folder), wish.langs)


def _fairseq_tokenizer(source: Source, said: Mapping[str, Any], wish: Wish, folder: Path) -> Tokenizer:
    settings = source.file("tokenizer_config.json", needed=False)
    ids, pieces = source.file("vocab.json"), said["vocab_size"]
    _check_ids(source, "config.json", {name: said[name] for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id")}, pieces)
    _check_ids(source, "vocab.json", ids, pieces)
    prefixes = {}
    for lang in wish.langs:
        prefix = [said["decoder_start_token_id"]]
        if settings.get("lang_codes"):
            known = [piece.removeprefix("<lang:").removesuffix(">") for piece in ids if piece.startswith("<lang:")]
            if lang not in known:
                raise RouteError(f"`{source.folder}` does not write `{lang}`; it writes: {', '.join(known)}", "correct --lang")
            prefix.append(ids[f"<lang:{lang}>"])
        prefixes[f"{wish.task}/{lang}"] = prefix
    if len(wish.langs) > 1 and not settings.get("lang_codes"):
        raise RouteError(f"`{source.folder}` writes one language, and {len(wish.langs)} are named", "name one with --lang")
    card = {
        "pieces": pieces,
        "end_id": said["eos_token_id"],
        "blank_id": said["pad_token_id"],
        "suppressed": [],
        "prefixes": prefixes,
        "before": [said["decoder_start_token_id"]],
        "after": [],
        "lowercase": bool(settings.get("do_lower_case", False)),
        "uppercase": bool(settings.get("do_upper_case", False)),
    }
    return _write(FairseqTokenizer, source, dict(zip(FairseqTokenizer.files, FairseqTokenizer.files, strict=True)), card, folder)


WHISPER = SHARED | {
    "vocab_size": 51865,
    "d_model": 384,
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "dropout": 0.0,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "eos_token_id": 50256,
}
"""Settings of transformers' `WhisperConfig` that matter, with its defaults."""
START, NO_TIMES = "<|startoftranscript|>", "<|notimestamps|>"
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
"""A token that names a language; all others of this form, such as tasks and times, have longer names or digits."""
MULTILINGUAL_PIECES = 51865
"""Whisper's own rule: a model with at least so many pieces knows more than English."""


def whisper(source: Source, wish: Wish, folder: Path) -> Converted:
    """Convert a `WhisperForConditionalGeneration`.

    Raises:
        CheckpointError: If the folder is incomplete, or its model has no counterpart here.
        RouteError: If it has no such task or language.
        ConfigError: If it knows several languages and none is wanted, or one that is spoken, without translation.
    """
    said = source.settings(WHISPER)
    source.expect(source.config, {"activation_function": "gelu"}, "config.json")
    front = source.file("preprocessor_config.json", needed=False)
    expected = {"n_fft": 400, "hop_length": RATE_HZ // FRAMES_PER_S, "sampling_rate": RATE_HZ, "feature_size": said["num_mel_bins"]}
    source.expect(front, expected, "preprocessor_config.json")
    weights = Weights(source.tensors(), str(source.folder))
    for number in (1, 2):
        weights.move(f"model.encoder.conv{number}", f"encoder.subsampler.convs.{number - 1}")
    for stack in ("encoder", "decoder"):
        weights.made[f"{stack}.positions.weight"] = weights.take(f"model.{stack}.embed_positions.weight")
        weights.layers(stack, said[f"{stack}_layers"], said["encoder_ffn_dim"])
    # Whatever `scale_embedding` says: transformers' Whisper has it and does not use it.
    tied = weights.vocabulary("proj_out", said["tie_word_embeddings"], 1.0)
    tokenizer, langs = _whisper_tokenizer(source, said, wish, folder)
    model = _shape(source, said) | {
        "family": "whisper",
        "subsampling": 2,
        "subsampling_channels": said["d_model"],
        "max_tokens": said["max_target_positions"],
        "tie_embeddings": tied,
    }
    window_s = 2 * said["max_source_positions"] / FRAMES_PER_S
    features = {
        "kind": "whisper",
        "sample_rate_hz": RATE_HZ,
        "mel_bins": said["num_mel_bins"],
        "window_s": window_s,
        "pad_to_window": True,
    }
    return Converted(model, features, weights.finish(), tokenizer, langs)


def _whisper_tokenizer(source: Source, said: Mapping[str, Any], wish: Wish, folder: Path) -> tuple[Tokenizer, Sequence[str]]:
    ids, pieces = _added_tokens(source), said["vocab_size"]
    generation = source.file("generation_config.json", needed=False)
    known = {found[1]: number for token, number in ids.items() if (found := LANGUAGE.fullmatch(token))}
    if lost := [token for token in (START, NO_TIMES) if token not in ids]:
        raise CheckpointError(
            f"`{source.folder / 'tokenizer.json'}` has no token `{lost[0]}`", "bring back the file that the model came with"
        )
    suppressed = generation.get("suppress_tokens")
    _check_ids(source, "config.json", {"eos_token_id": said["eos_token_id"]}, pieces)
    _check_ids(source, "tokenizer.json", ids, pieces)
    if suppressed is not None:
        _check_ids(source, "generation_config.json", {"suppress_tokens": suppressed}, pieces, many=True)
    start, no_times = ids[START], ids[NO_TIMES]
    langs, task = list(wish.langs), f"<|{wish.task}|>"
    if generation.get("is_multilingual", pieces >= MULTILINGUAL_PIECES):
        if task not in ids:
            raise RouteError(f"the tokenizer of `{source.folder}` has no `{task}`", "correct --task")
        if wish.task == "translate":
            if langs not in ([], ["en"]) or wish.source_lang is None:
                raise RouteError("Whisper translates into English, and must be told from what", "use --lang en and --source-lang LANG")
            langs = ["en"]
        else:
            _nothing_spoken(wish)
        if not langs:
            raise ConfigError(f"`{source.folder}` knows many languages", "name those that it is to write with --lang")
        said_langs = {lang: wish.source_lang if wish.task == "translate" else lang for lang in langs}
        if unknown := [lang for lang in said_langs.values() if lang not in known]:
            raise RouteError(
                f"`{source.folder}` knows no language `{unknown[0]}`; it knows: {', '.join(known)}", "correct --lang or --source-lang"
            )
        prefixes = {f"{wish.task}/{lang}": [start, known[spoken], ids[task], no_times] for lang, spoken in said_langs.items()}
    else:
        if wish.task != "transcribe" or langs not in ([], ["en"]):
            raise RouteError(
                f"`{source.folder}` knows English only, and only transcribes", "use --task transcribe and --lang en, or neither"
            )
        _nothing_spoken(wish)
        langs = ["en"]
        prefixes = {"transcribe/en": [start, no_times]}
    card = {
        "pieces": pieces,
        "end_id": said["eos_token_id"],
        # Never part of a text, and unlike Whisper's own padding not the end of one.
        "blank_id": start,
        "suppressed": suppressed or [],
        "prefixes": prefixes,
        "before": [start],
        "after": [no_times],
    }
    return _write(WhisperTokenizer, source, {"tokenizer.json": WhisperTokenizer.files[0]}, card, folder), langs


def _added_tokens(source: Source) -> dict[str, int]:
    """The tokens of Whisper's tokenizer that stand for no text, and their ids.

    Raises:
        CheckpointError: If its file says nothing of the kind.
    """
    try:
        return {str(token["content"]): int(token["id"]) for token in source.file("tokenizer.json")["added_tokens"]}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"`{source.folder / 'tokenizer.json'}` has no `added_tokens` with `content` and `id`",
            "bring back the file that the model came with",
        ) from None


def _check_ids(source: Source, file: str, said: Mapping[str, Any], pieces: int, many: bool = False) -> None:
    """Refuse what a file of the folder says, each an id or with `many` a list of them, where a search would reach beyond the model.

    So is -1 among the suppressed, by which OpenAI's own program means a list that no file of the folder has.

    Raises:
        CheckpointError: Naming the first that is no piece of the model.
    """
    for name, value in said.items():
        found = value if many else [value]
        if not isinstance(found, list) or not all(type(number) is int and 0 <= number < pieces for number in found):
            raise CheckpointError(
                f"`{source.folder / file}` says `{name}: {json.dumps(value)}`, "
                f"where {'a list of ids' if many else 'an id'} from 0 to {pieces - 1} is needed: the model has no other pieces",
                "bring back the file that the model came with, or correct it",
            )


def _write(kind: type[Tokenizer], source: Source, files: Mapping[str, str], card: Mapping[str, Any], folder: Path) -> Tokenizer:
    """Copy the files of a tokenizer, under our names, and write its card.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    whole = {"kind": kind.kind, "vocab_size": card["pieces"], "guiding_tokens": [], **card}
    try:
        for theirs, ours in files.items():
            shutil.copyfile(source.folder / theirs, folder / ours)
        (folder / CARD_FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        return kind(folder, whole)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"no usable tokenizer in `{source.folder}`: {error}", "fetch the folder again") from error


FAMILIES = {"whisper": whisper, "speech_to_text": speech2text}
"""`model_type` of a transformers folder -> what converts it."""
