"""One route of a trained model -> ONNX graphs of encoder and decoder step, checked against torch before they are written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smoe_cli import __version__, checkpoint, slimming
from smoe_cli.checkpoint import System
from smoe_cli.config import FRAMES_PER_S
from smoe_cli.decoding.onnx import OnnxModel, read_card
from smoe_cli.errors import CheckError, CheckpointError, ConfigError, DataError
from smoe_cli.features import FrontEnd
from smoe_cli.layout import EXPORT_CARD
from smoe_cli.model.graphs import export_encoder, export_step, one_expert_only, quiet
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.records import Export, ExportCheck, Graph, GraphTensor, file_digest, whole_folder, write_json
from smoe_cli.tags import Choice, Route
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.tokenizer.base import CARD_FILE
from smoe_cli.watch import Silent, Watcher

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
TOLERANCE, ROUNDING = 1e-4, 1e-5
"""How far a logit of the float32 graphs may be from torch's, and how far relative to the largest one, where that is more:
float32 has seven digits, and a model such as Whisper has logits of 30 and more."""
INT8_TOLERANCE = 0.5
"""How far int8 logits may be from torch's, relative to their spread. Rounding weights to 8 bits moves them by 0.01 to 0.03, Whisper
tiny.en's by 0.2 to 0.3; a graph one of whose matrices is mixed up, by about 0.9. Whether a text suffers, only scoring it tells."""
MAX_BYTES = 1.9e9
"""Of the weights of one route: a file in ONNX's format ends at 2 GiB."""
CHECKED_LENGTHS, CHECKED_STEPS = ((150, 97, 60), (73,)), 12
"""Frames of each utterance of each batch, and steps of the decoder, that are compared with torch; fewer of a model that takes less."""


def check(folder: Path, out: Path, choice: Choice) -> Route:
    """Find out whether a model can be exported, as far as that can be said without doing it; arguments and errors as of `export`."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}", "pip install 'smoe[onnx]'")
    parts = checkpoint.read_parts(folder, tensors=True)
    route = slimming.choose_route(parts.plan, choice)
    size = 4 * count_parameters(checkpoint.on_meta(parts.config, parts.plan, parts.tokenizer.vocab_size))["active"]
    if size > MAX_BYTES:
        raise ConfigError(
            f"the model of one route has {size / 1e9:.1f} GB of weights; `smoe export` takes up to {MAX_BYTES / 1e9:g} GB",
            "export a smaller model; `smoe slim` takes any",
        )
    if not checkpoint.is_free(out):
        try:
            read_card(out)
            written = open_tokenizer(out).files
        except CheckpointError as error:
            raise ConfigError(f"`{out}` is there already, and is no exported model", "name a new folder with --out") from error
        checkpoint.check_all_own(out, {EXPORT_CARD, ENCODER, DECODER, CARD_FILE, *written}, "export")
    return route


def export(folder: Path, out: Path, choice: Choice, int8: bool = False, watcher: Watcher | None = None) -> Export:
    """Write the model of one route as ONNX graphs, with the tokenizer and `export.json`.

    Args:
        folder: The trained model.
        out: Folder to write; what an earlier `export` left there is replaced, nothing else.
        choice: The route; a tag that all of the model's routes share may be left out.
        int8: Whether to quantise the weights of matrices and embeddings.
        watcher: Told what is done.

    Raises:
        CheckError: If onnxruntime does not compute what torch computes; nothing is written.
        CheckpointError: If the folder is no checkpoint, or a damaged one.
        ConfigError: If something else lies at `out`, a package is missing, or the model is too large for a file of its own.
        DataError: If `out` cannot be written.
        RouteError: If the model has no such route, or several.
    """
    watcher = watcher or Silent()
    route = check(folder, out, choice)
    whole = checkpoint.load(folder)
    system = slimming.one_route(whole, route)
    try:
        with whole_folder(out) as temporary:
            system.tokenizer.save(temporary)
            plain = one_expert_only(system.model)
            for name, write in ((ENCODER, export_encoder), (DECODER, export_step)):
                watcher.log(f"{name}: exporting")
                write(plain, temporary / name)
            card = _write_card(temporary, system, whole.digest, route, None)
            card = _checked(temporary, system, card, watcher)
            if int8:
                before = card.bytes_float32
                for name in (ENCODER, DECODER):
                    watcher.log(f"{name}: quantising")
                    _quantise(temporary / name)
                card = _checked(temporary, system, _write_card(temporary, system, whole.digest, route, before), watcher)
    except OSError as error:
        raise DataError(f"cannot write `{out}`: {error}", "check the folder's rights and the free disk space") from error
    return card


def _write_card(folder: Path, system: System, digest: str, route: Route, bytes_float32: int | None) -> Export:
    """Describe the graphs as they lie there; nothing has been checked yet.

    Args:
        bytes_float32: Size of both graphs before quantisation; None: they are not quantised.
    """
    import onnx

    graphs = {}
    for name in (ENCODER, DECODER):
        model = onnx.load(folder / name, load_external_data=False)
        inputs, outputs = ([_tensor(value) for value in values] for values in (model.graph.input, model.graph.output))
        path = folder / name
        graphs[name] = Graph(file=name, bytes=path.stat().st_size, sha256=file_digest(path), inputs=inputs, outputs=outputs)
    config = system.config
    card = Export(
        model=digest,
        route=str(route),
        precision="float32" if bytes_float32 is None else "int8",
        front_end=config.features,
        features=FrontEnd(config.features).describe(),
        vocab_size=system.tokenizer.vocab_size,
        prefix_ids=system.tokenizer.guiding_ids(route),
        end_id=system.tokenizer.end_id,
        silent_ids=list(system.tokenizer.silent_ids),
        labels=list(system.plan.labels_of(route.task)) if config.kind(route.task).closed else [],
        max_tokens_per_s=config.decode.max_tokens_per_s,
        min_max_tokens=config.decode.min_max_tokens,
        max_tokens=None if config.model.max_tokens is None else config.model.max_tokens - len(system.tokenizer.guiding_ids(route)),
        encoder=graphs[ENCODER],
        decoder=graphs[DECODER],
        bytes_float32=bytes_float32 or sum(graph.bytes for graph in graphs.values()),
        check=ExportCheck(max_difference=0.0, relative_difference=0.0, largest_logit=0.0, tokens=0, same_token=0.0),
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        versions={"smoe": __version__} | {name: metadata.version(name) for name in ("torch", *PACKAGES)},
    )
    write_json(folder / EXPORT_CARD, card)
    return card


def _tensor(value: Any) -> GraphTensor:
    import onnx

    kind = value.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return GraphTensor(name=value.name, type=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape=shape)


def _quantise(path: Path) -> None:
    """Replace a graph by one whose matrices and embeddings are 8-bit integers, with a scale per column.

    Activations are quantised as they come. Convolutions stay: there are few, and onnxruntime is slow at theirs.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # The quantiser turns Gemm into MatMul by transposing its weights where they lie. Tied embeddings need them as they are too, so
    # Gemm gets a copy; and the shapes that were noted before no longer hold.
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and sum(node.input[1] in other.input for other in model.graph.node) > 1:
            own = model.graph.initializer.add()
            own.CopyFrom(tensors[node.input[1]])
            own.name = node.input[1] = f"{own.name}.output"
    model.graph.ClearField("value_info")
    with quiet():
        # Unsigned, because products with signed weights overflow 16 bits on processors without VNNI.
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul", "Gemm", "Gather"], weight_type=QuantType.QUInt8, per_channel=True)


def _checked(folder: Path, system: System, card: Export, watcher: Watcher) -> Export:
    """Compare with torch, and write down what came out.

    Raises:
        CheckError: If they differ by more than they may.
    """
    watcher.log(f"checking the {card.precision} graphs against torch")
    result = compare(system, OnnxModel(folder, threads=1))
    exact = card.precision == "float32"
    largest_difference = max(TOLERANCE, ROUNDING * result.largest_logit)
    found, bound = (result.max_difference, largest_difference) if exact else (result.relative_difference, INT8_TOLERANCE)
    # Not `found > bound`: what is no number must fail too.
    if not found <= bound:
        what = "logits differ" if exact else "relative to their spread, logits differ"
        raise CheckError(
            f"the {card.precision} graphs compute something else than torch: {what} by {found:.3g}, allowed is {bound:.3g}",
            "nothing was written; " + ("try other versions of torch, onnxscript and onnxruntime" if exact else "export without --int8"),
        )
    card = card.model_copy(update={"check": result})
    write_json(folder / EXPORT_CARD, card)
    return card


@torch.inference_mode()
def compare(system: System, exported: OnnxModel) -> ExportCheck:
    """Run both on random features of several lengths, with and without padding, the decoder step by step.

    Once along torch's own greedy tokens, and once, with two beams, along random ones. Both always read the same tokens.
    """
    generator = torch.Generator().manual_seed(0)
    model, prefix = system.model, torch.tensor(exported.card.prefix_ids)
    differences: list[float] = []
    squares, spread, largest, same, steps = 0.0, 0.0, 0.0, 0, 0

    def greedy(logits_MV: Tensor) -> Tensor:
        return logits_MV.index_fill(1, torch.tensor(exported.card.silent_ids), -torch.inf).argmax(-1)

    def random(logits_MV: Tensor) -> Tensor:
        return torch.randint(3, logits_MV.shape[1], (len(logits_MV),), generator=generator)

    ways: list[tuple[int, Callable[[Tensor], Tensor]]] = [(1, greedy), (2, random)]
    most = exported.card.max_tokens
    written = CHECKED_STEPS if most is None else min(CHECKED_STEPS, most + 1)
    for lengths in _checked_lengths(exported.card.front_end.window_s):
        n = len(lengths)
        features, lengths_N = torch.randn(n, max(lengths), model.dims.mel_bins, generator=generator), torch.tensor(lengths)
        experts = torch.zeros(n, dtype=torch.int64)
        memory, arrays = model.encoder(features, lengths_N, experts), exported.encode(features.numpy(), lengths_N.numpy())
        if model.ctc is not None:
            log_probs = F.log_softmax(model.ctc(memory.states), -1).numpy()
            # Beyond an utterance's end there is nothing to agree upon.
            differences += [
                float(np.abs(log_probs[row, :length] - arrays["ctc_log_probs"][row, :length]).max())
                for row, length in enumerate(memory.lengths.tolist())
            ]
        for beams, choose in ways:
            state, caches = model.decoder.start(memory, beams), exported.start(n, beams)
            tokens = prefix[0].expand(n * beams)
            for position in range(1, len(prefix) + written):
                logits = model.decoder.step(tokens, state, memory, experts)
                array, caches = exported.step(tokens.view(n, beams).numpy(), arrays, caches)
                other = torch.from_numpy(array).flatten(0, 1)
                differences.append(float((logits - other).abs().max()))
                largest = max(largest, float(logits.abs().max()))
                squares += float((logits - other).square().sum())
                spread += float((logits - logits.mean(-1, keepdim=True)).square().sum())
                same += int((greedy(logits) == greedy(other)).sum())
                steps += len(tokens)
                tokens = prefix[position].expand(n * beams) if position < len(prefix) else choose(logits)
    return ExportCheck(
        max_difference=float(np.max(differences)),
        relative_difference=(squares / spread) ** 0.5,
        largest_logit=largest,
        tokens=steps,
        same_token=same / steps,
    )


def _checked_lengths(window_s: float | None) -> list[list[int]]:
    """`CHECKED_LENGTHS`, all shortened alike if the longest is more than a model takes."""
    longest = max(map(max, CHECKED_LENGTHS))
    taken = longest if window_s is None else min(longest, round(window_s * FRAMES_PER_S))
    return [[max(1, length * taken // longest) for length in lengths] for lengths in CHECKED_LENGTHS]
