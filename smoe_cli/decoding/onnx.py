"""An exported model (`smoe export`) at work: greedy decoding with onnxruntime and numpy, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from smoe_cli.config import FRAMES_PER_S
from smoe_cli.errors import CheckpointError, ConfigError, DataError
from smoe_cli.layout import EXPORT_CARD
from smoe_cli.records import Export, Graph, file_digest
from smoe_cli.tokenizer import open_tokenizer

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Tensors = dict[str, npt.NDArray[Any]]
"""By the names of the graphs' inputs."""
# N utterances, T frames, F mel bins, B beams, V vocabulary


def read_card(folder: Path) -> Export:
    """What an exported model says of itself.

    Raises:
        CheckpointError: If the folder holds no exported model, or one of another version.
    """
    try:
        return Export.model_validate_json((folder / EXPORT_CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(f"`{folder}` holds no exported model: {error}", "name a folder that `smoe export` wrote") from error


class OnnxModel:
    """The two graphs and the tokenizer of an exported model.

    Args:
        folder: As `smoe export` wrote it.
        threads: Of onnxruntime; 0: one per core.

    Raises:
        CheckpointError: If the folder is incomplete or damaged.
        ConfigError: If onnxruntime is not installed.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.card, self.tokenizer = read_card(folder), open_tokenizer(folder)
        self._encoder, self._decoder = (_session(folder, graph, threads) for graph in (self.card.encoder, self.card.decoder))
        caches = [tensor for tensor in self.card.decoder.inputs if tensor.name.startswith(("keys.", "values."))]
        # (N, B, heads, tokens so far, width)
        self._caches = {tensor.name: (int(tensor.shape[2]), int(tensor.shape[4])) for tensor in caches}

    def encode(self, features_NTF: Floats, lengths_N: Integers) -> Tensors:
        """Memory for the decoder, and `ctc_log_probs` (N,S,V) if there is a CTC head.

        Raises:
            DataError: If an utterance has no frames, or there are more than the model takes, or of another number of bins.
        """
        window_s, bins = self.card.front_end.window_s, self.card.front_end.mel_bins
        if features_NTF.shape[2] != bins or not lengths_N.all():
            raise DataError(
                f"features of {lengths_N.min()} to {lengths_N.max()} frames with {features_NTF.shape[2]} bins; the model takes frames with "
                f"{bins} bins, at least one",
                "compute them as `features` in `export.json` says, and leave out what is empty",
            )
        if window_s is not None and features_NTF.shape[1] > round(window_s * FRAMES_PER_S):
            raise DataError(
                f"features of {features_NTF.shape[1] / FRAMES_PER_S:.2f} s; the model takes {window_s:g} s", "split long audio at pauses"
            )
        names = [output.name for output in self.card.encoder.outputs]
        found = self._encoder.run(names, {"features": features_NTF, "lengths": lengths_N})
        return dict(zip(names, found, strict=True))

    def start(self, utterances: int, beams: int = 1) -> Tensors:
        """Empty caches for N x B hypotheses."""
        return {name: np.zeros((utterances, beams, heads, 0, width), np.float32) for name, (heads, width) in self._caches.items()}

    def step(self, tokens_NB: Integers, memory: Tensors, caches: Tensors) -> tuple[Floats, Tensors]:
        """Logits (N,B,V) after one more token of each hypothesis, and the caches that hold it."""
        given = {name: array for name, array in memory.items() if name.startswith("memory_")}
        names = ["logits", *(f"next_{name}" for name in caches)]
        logits, *extended = self._decoder.run(names, {"tokens": tokens_NB, **given, **caches})
        return logits, dict(zip(caches, extended, strict=True))

    def greedy(self, features: Sequence[Floats], max_tokens: Sequence[int]) -> list[list[int]]:
        """The likeliest token at every step, as beam search with one beam and without CTC scores.

        Args:
            features: (T,F) of each utterance, as smoe's `FrontEnd` gives them.
            max_tokens: Length limit of each, as of `limits`.

        Returns:
            Token ids without guiding tokens and end.
        """
        if not features:
            return []
        limits = np.array(max_tokens)
        memory, caches, logits = self._begin(features, 1)
        written: list[list[int]] = [[] for _ in features]
        ended = np.zeros(len(features), bool)
        for length in range(int(limits.max()) + 1):
            logits[:, :, self.card.silent_ids] = -np.inf
            # At its limit an utterance can only end.
            tokens = np.where(ended | (limits <= length), self.card.end_id, logits[:, 0].argmax(-1))
            ended |= tokens == self.card.end_id
            for row in np.flatnonzero(~ended):
                written[row].append(int(tokens[row]))
            if ended.all():
                break
            logits, caches = self.step(tokens[:, None], memory, caches)
        return written

    def limits(self, seconds: Sequence[float]) -> list[int]:
        """How many tokens the model's settings allow for utterances that last so long."""
        wanted = [max(self.card.min_max_tokens, round(duration * self.card.max_tokens_per_s)) for duration in seconds]
        return wanted if self.card.max_tokens is None else [min(limit, self.card.max_tokens) for limit in wanted]

    def texts(self, features: Sequence[Floats], seconds: Sequence[float]) -> list[str]:
        """What is said in each utterance, or its translation, or the likeliest label.

        Args:
            features: As of `greedy`.
            seconds: How long each utterance's audio lasts. Features do not tell: a front end may pad them.
        """
        if self.card.labels and features:
            return [self.card.labels[best] for best in self.label_scores(features).argmax(-1)]
        return [self.tokenizer.decode(tokens) for tokens in self.greedy(features, self.limits(seconds))]

    def label_scores(self, features: Sequence[Floats]) -> Floats:
        """Log probability of each label of the card as the whole answer, (N, labels): all labels are written at once, as beams are."""
        spelled = [[*self.tokenizer.encode(label), self.card.end_id] for label in self.card.labels]
        memory, caches, logits = self._begin(features, len(spelled))
        scores = np.zeros(logits.shape[:2], np.float32)
        for place in range(max(map(len, spelled))):
            tokens = np.array([[label[min(place, len(label) - 1)] for label in spelled]] * len(features), np.int64)
            highest = logits.max(-1, keepdims=True)
            log_probs = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
            gained = np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
            scores += np.where([place < len(label) for label in spelled], gained, 0.0)
            logits, caches = self.step(tokens, memory, caches)
        return scores

    def _begin(self, features: Sequence[Floats], beams: int) -> tuple[Tensors, Tensors, Floats]:
        """Memory of the utterances, caches after the guiding tokens, and the logits (N,B,V) that follow them."""
        lengths = np.array([len(item) for item in features], np.int64)
        padded = np.zeros((len(features), int(lengths.max()), features[0].shape[1]), np.float32)
        for place, item in zip(padded, features, strict=True):
            place[: len(item)] = item
        memory, caches = self.encode(padded, lengths), self.start(len(features), beams)
        for token in self.card.prefix_ids:
            logits, caches = self.step(np.full((len(features), beams), token, np.int64), memory, caches)
        return memory, caches, logits


def _session(folder: Path, graph: Graph, threads: int) -> Any:
    """An onnxruntime session on the CPU, of a graph that is as it was written."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"onnxruntime is not installed: {error}", "pip install 'smoe[onnx]'") from error
    path = folder / graph.file
    if not path.is_file() or file_digest(path) != graph.sha256:
        matter = f"is not the one that `{EXPORT_CARD}` names: damaged, or of another export" if path.exists() else "is missing"
        raise CheckpointError(f"exported model `{folder}` is damaged: `{graph.file}` {matter}", "export the model again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own family, which has no common parent
        raise CheckpointError(f"`{path}` is no usable graph: {error}", "export the model again") from error
