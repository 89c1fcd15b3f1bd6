"""Small random models of transformers, as it writes them, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece as spm
import tokenizers
import torch
import transformers
from torch import Tensor

from smoe_cli import checkpoint, pipeline
from smoe_cli.checkpoint import System

TOLERANCE = 1e-4


TEXTS = ["we call it bear", "elephants tai goose", "the quick brown fox jumps", "over a lazy dog"] * 5


SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


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
