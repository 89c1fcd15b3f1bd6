"""What the steps hand on: hypotheses, scores and audits, as JSON with units in the names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smoe_cli.config import FeatureSettings
from smoe_cli.errors import DataError
from smoe_cli.tags import Route, parse_bandwidth

REPLACED = ".old"
"""Ends the name of a folder that another one takes the place of."""


class Record(BaseModel):
    """A strict, immutable record: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnyRecord = TypeVar("AnyRecord", bound=Record)


class Origin(Record):
    """Where a model's weights come from, when not from training alone; kept in its checkpoint."""

    how: Literal["init", "slim", "convert"] = Field(
        description="`init`: training started from another model; `slim`: one route of another model; `convert`: another library's model."
    )
    model: str = Field(description="Digest of the other model.")
    route: str = Field(default="", description="The route that was kept (slim).")
    noise: float = Field(default=0.0, description="`train.init_noise`.")
    asked: dict[str, str] = Field(default={}, description="`train.init_experts`.")
    copies: dict[str, str] = Field(
        default={},
        description="Stack (or network, if a stack's layers differ) and expert -> the other model's expert that it started as a copy of.",
    )


class Hypothesis(Record):
    """One decoded cut."""

    id: str = Field(description="Cut id: utterance, task, language and bandwidth.")
    utterance: str = Field(default="", description="Utterance id, shared by the cut's sisters in other tasks and bands.")
    task: str
    lang: str = Field(description="Target language.")
    bandwidth: str
    text: str = Field(description="What the model wrote.")
    references: list[str] = Field(default=[], description="Right answers; empty when decoding bare audio.")
    corpus: str = ""
    subset: str = Field(default="", description="A named part of the corpus, e.g. a voice never trained on.")
    speaker: str = ""
    source_lang: str = Field(default="", description="Language that is spoken.")
    duration_s: float = Field(default=0.0, ge=0, description="0 when a file of another program does not say.")
    score: float = Field(
        default=0.0, description="Log probability of the best beam, length-normalised; of a label: among all labels that the model knows."
    )
    stopped: str = Field(default="end", description="`end` when the model ended the text itself, `length` when the limit did.")
    synthetic: bool = Field(default=False, description="Whether the cut's tags say that a machine spoke it.")
    model: str = Field(default="", description="Digest of the model that wrote it; empty for files of other programs.")
    decoding: str = Field(default="", description="Settings of the beam search, in the form of a metric's signature.")
    tags: dict[str, str] = Field(default={}, description="Values on the recipe's own axes.")
    unseen: bool = Field(default=False, description="Whether the right label is one that training never saw, so that it can only be wrong.")

    @property
    def route(self) -> Route:
        return Route(self.task, self.lang, parse_bandwidth(self.bandwidth), tuple(self.tags.items()))


class Score(Record):
    """One metric on one slice, with what is needed to quote it."""

    metric: str
    value: float
    unit: str = "%"
    errors: int | None = Field(default=None, description="Edit errors (WER, CER), or wrong answers (accuracy).")
    total: int | None = Field(default=None, description="Reference words or characters (WER, CER), or answers (accuracy).")
    signature: str = Field(description="Library, version and settings; sacrebleu's own signature for BLEU and chrF.")


class SliceScores(Record):
    """All metrics of one slice: task x language x bandwidth x tags on the recipe's own axes, per named subset."""

    task: str
    lang: str
    bandwidth: str
    subset: str
    tags: dict[str, str] = Field(default={}, description="Values on the recipe's own axes.")
    utterances: int
    hours: float
    truncated: int = Field(description="Hypotheses cut off by the length limit.")
    synthetic: int = Field(default=0, ge=0, description="Utterances that a machine spoke.")
    unseen: int = Field(default=0, ge=0, description="Utterances whose label training never saw: they count as wrong.")
    scores: list[Score]


class Report(Record):
    """What is measured on utterances: of which system, which model, and on whose speech."""

    system: str
    model: str = Field(default="", description="Digest of the model, as in its hypotheses; empty if they name none.")
    synthetic: int = Field(default=0, ge=0, description="Of the utterances measured, those that a machine spoke.")

    @property
    @abstractmethod
    def measured(self) -> int:
        """Utterances measured."""

    @property
    def notes(self) -> list[str]:
        """What must be read before the numbers."""
        if not self.synthetic:
            return []
        return ["synthetic speech" + (f" in {self.synthetic:,} of {self.measured:,} utterances" if self.synthetic < self.measured else "")]

    @property
    def title(self) -> str:
        return ", ".join([self.system, *([f"model {self.model}"] if self.model else []), *self.notes])


class ScoreReport(Report):
    """Everything `smoe score` measured."""

    text: str = Field(default="", description="What was done to texts before they were scored, hypotheses and references alike.")
    decoding: list[str] = Field(default=[], description="Settings they were decoded with; several when parts were decoded otherwise.")
    hypotheses: list[str] = Field(description="Files that were scored.")
    slices: list[SliceScores]
    versions: dict[str, str]

    @property
    def measured(self) -> int:
        return sum(part.utterances for part in self.slices)

    @property
    def notes(self) -> list[str]:
        unseen: dict[str, int] = {}
        for part in self.slices:
            unseen[part.task] = unseen.get(part.task, 0) + part.unseen
        return super().notes + [
            f"never seen in training: {count:,} of the right labels of {task}" for task, count in unseen.items() if count
        ]


class Finding(Record):
    """One thing that an audit or a validation found."""

    check: str
    where: str
    message: str
    hint: str
    severity: Literal["error", "note"] = "error"
    cuts: int = Field(default=1, description="How many cuts have it; `where` names the first.")


class Served(Record):
    """How many utterances of a route one expert of one layer served."""

    stack: Literal["encoder", "decoder"]
    layer: int = Field(ge=0)
    part: str = Field("ffn", description="Which of the layer's feed-forward networks; a Conformer's has `ffn_before` too.")
    route: str
    expert: str
    utterances: int = Field(ge=0)
    planned: bool = Field(description="Whether the routing plan names this expert for this route.")


class Swap(Record):
    """A route decoded with a wrong expert on purpose, beside the right one."""

    stack: Literal["encoder", "decoder"]
    route: str
    right: str
    used: str
    metric: str
    value: float = Field(description="With the wrong expert.")
    right_value: float = Field(description="With the planned expert.")
    unit: str
    utterances: int = Field(ge=0)
    p_value: float = Field(1.0, ge=0, le=1, description="How often chance favours the wrong expert as much; 1 where it is no better.")


class AuditReport(Report):
    """Everything `smoe route-audit` saw."""

    checkpoint: str
    manifest: str
    cuts: int = Field(description="Cuts of the manifest; the tags of all were checked.")
    routes: dict[str, int] = Field(description="Route -> cuts that were run.")
    layers: int = Field(description="Routed layers observed, each half-step of a Conformer's on its own.")
    observations: int = Field(description="(layer, utterance) pairs whose expert was observed by a hook.")
    served: list[Served] = Field(description="Per layer, route and expert: utterances served.")
    parameters: dict[str, int] = Field(description="total, active, and per-expert parameters.")
    swaps: list[Swap] = Field(description="Every wrong expert in turn, its metric beside the right one's.")
    findings: list[Finding]

    @property
    def measured(self) -> int:
        return sum(self.routes.values())


class Coverage(Record):
    """How well a tokenizer covers the texts of one language."""

    lang: str
    tokens_per_word: float = Field(
        description="On the split that is measured. Many more than on the train split: the training texts lack words."
    )
    characters: int = Field(description="In the texts of that split, spaces left out.")
    whole_characters: float = Field(
        description="Per cent of them that one piece holds whole. The others cost several tokens each, or are unknown to a tokenizer "
        "that is not byte-level: more pieces, or more text in that script, make it fewer."
    )
    broken: list[str] = Field(description="The most frequent of those others, at most ten.")
    unseen: list[str] = Field(
        description="Characters that no training text has, the most frequent first, at most ten: the model cannot learn to write them."
    )
    unseen_characters: int = Field(description="How many different ones there are in all.")


class TokenizerReport(Record):
    """What `smoe tokenize` learned."""

    path: Path
    kind: str
    vocab_size: int
    sentences: int
    guiding_tokens: list[str]
    fertility: dict[str, float] = Field(description="Language -> tokens per word on the train split.")
    measured_on: str = Field(description="The split that `coverage` is about: `dev`, or `train` where there is no other.")
    coverage: list[Coverage] = Field(description="One a language.")
    merged_pieces: int = Field(description="Pieces of more than one byte that a text can have: what `tokenizer.vocab_size` pays for.")
    merged_pieces_used: int = Field(
        description="Of these, those that a training text has. The others, mostly stages on the way to longer pieces, cost parameters and "
        "are never learned; a smaller vocabulary has fewer of them."
    )


class ParameterReport(Record):
    """Parameters of a recipe's model."""

    preset: str
    vocab_size: int
    total: int
    active: int = Field(description="Used for one utterance: one expert per layer.")
    ctc_head: int = Field(description="Auxiliary head, not part of total.")
    experts: dict[str, int] = Field(description="Stack and expert -> parameters over all layers.")
    macs_per_second: int = Field(description="Multiply-adds per second of audio, as `smoe_cli.model.cost` defines them.")


class SlimReport(Record):
    """What `smoe slim` wrote."""

    checkpoint: Path = Field(description="The folder of the slim model.")
    model: str = Field(description="Digest of the slim model.")
    taken_from: str = Field(description="Digest of the whole model.")
    route: str = Field(description="The one route that it has.")
    parameters: int
    ctc_head: int = Field(description="Parameters of the CTC head, which decoding a task that follows the audio uses; not in `parameters`.")
    parameters_before: int = Field(description="Of the whole model, the auxiliary CTC head left out as in `parameters`.")
    bytes: int = Field(description="Size of the weights on disk.")


class ConvertReport(Record):
    """What `smoe convert` wrote."""

    checkpoint: Path = Field(description="The folder of the converted model.")
    model: str = Field(description="Digest of the converted model.")
    family: str = Field(description="Whose model it is, as `model.family` says.")
    routes: list[str] = Field(description="Routes that it has.")
    parameters: int
    window_s: float | None = Field(description="Longest audio that it takes; null: any.")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a whole file or nothing: the block fills a sibling, which is flushed to disk, then renamed.

    Threads that write the same file have a sibling each; the last one's is the file.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write `{path}`: {error.strerror or error}", "check the folder's rights and the free disk space") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing.

    Raises:
        DataError: As `whole_file`.
    """
    with whole_file(path) as file:
        file.write(content)


class GraphTensor(Record):
    """One input or output of an ONNX graph."""

    name: str
    type: str
    shape: list[int | str] = Field(description="A name stands for a size that is free; equal names for equal sizes.")


class Graph(Record):
    """One ONNX graph."""

    file: str
    bytes: int
    sha256: str
    inputs: list[GraphTensor]
    outputs: list[GraphTensor]


class ExportCheck(Record):
    """How far onnxruntime is from torch on the same random features and tokens."""

    max_difference: float = Field(description="Largest absolute difference of a logit or of a CTC log probability.")
    relative_difference: float = Field(description="Root mean square difference of the logits, relative to their standard deviation.")
    largest_logit: float = Field(description="Largest absolute value of torch's logits: what float32 rounds is relative to it.")
    tokens: int = Field(description="Steps of all hypotheses that were compared.")
    same_token: float = Field(description="Share of them in which both find the same token likeliest.")


class Export(Record):
    """What `smoe export` wrote, as its `export.json` says: all that a program needs beside graphs and tokenizer."""

    model: str = Field(description="Digest of the model that it was taken from.")
    route: str = Field(description="The one route that it has.")
    precision: Literal["float32", "int8"] = Field(description="Of the weights of matrices and embeddings; int8: quantised by onnxruntime.")
    front_end: FeatureSettings = Field(description="The front end, in smoe's own settings.")
    features: dict[str, str | int | float | bool | None] = Field(
        description="The front end for other programs: the settings of the library that smoe uses, and what is done afterwards."
    )
    vocab_size: int
    prefix_ids: list[int] = Field(description="Guiding tokens that decoding starts with.")
    end_id: int
    silent_ids: list[int] = Field(description="Tokens that are never written.")
    labels: list[str] = Field(description="All that a task whose answer is a label can answer; empty: it writes free text.")
    max_tokens_per_s: float = Field(description="Longest output, in tokens per second of audio.")
    min_max_tokens: int = Field(description="Longest output allowed for the shortest audio.")
    max_tokens: int | None = Field(description="Longest output that the model can write; null: any.")
    encoder: Graph
    decoder: Graph
    bytes_float32: int = Field(description="Size of both graphs before quantisation.")
    check: ExportCheck
    opset: int
    versions: dict[str, str]


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: the block fills a sibling, which is flushed to disk, then renamed.

    What was there before is replaced at the end of the block, and stays if the block raises.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
    """
    # A link stays where it is, and its folder is replaced.
    folder = Path(os.path.realpath(folder))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        put_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(filled: Path, folder: Path) -> None:
    """Flush a folder to disk and rename it, in the place of what was there before.

    Raises:
        OSError: If that cannot be done.
    """
    for path in filled.iterdir():
        flush(path)
    flush(filled)
    if folder.exists():
        discarded = folder.with_name(f".{folder.name}.{os.getpid()}{REPLACED}")
        folder.rename(discarded)
        try:
            filled.rename(folder)
        except OSError:
            discarded.rename(folder)
            raise
        flush(folder.parent)
        shutil.rmtree(discarded)
    else:
        filled.rename(folder)
        flush(folder.parent)


def bring_back(parent: Path) -> None:
    """Put what a killed process was about to replace in a folder where it was; what it had replaced already is removed.

    Raises:
        OSError: If that cannot be done.
    """
    for old in parent.glob(f".*{REPLACED}"):
        folder = old.with_name(old.name.removesuffix(REPLACED).rpartition(".")[0].removeprefix("."))
        if folder.exists():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            old.rename(folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` gives it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_digest(name: str) -> bytes:
    """Sixteen bytes for a name of any length: no two will share them, and a million fit into memory."""
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomically(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def write_json(path: Path, record: BaseModel) -> None:
    write_text_atomically(path, record.model_dump_json(indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    write_text_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_hypotheses(path: Path) -> Iterator[Hypothesis]:
    """Read hypotheses written by `smoe decode`, or by any program that fills the same fields.

    Raises:
        DataError: Naming file and line of a missing file, broken JSON or wrong field.
    """
    try:
        # Not splitlines(): a text may hold U+2028 and its kin, which JSON does not escape.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read hypotheses `{path}`: {error}", "run `smoe decode` first, or name the file to score") from error
    for number, line in enumerate(lines, start=1):
        try:
            yield Hypothesis.model_validate(json.loads(line))
        except ValueError as error:
            problems = (
                [f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}" for item in error.errors()]
                if isinstance(error, ValidationError)
                else []
            )
            raise DataError(
                f"`{path}` line {number} is not a hypothesis: {'; '.join(problems) or error}",
                "each line is one JSON object with at least id, task, lang, bandwidth, text and references",
            ) from error


def read_json(path: Path, kind: type[AnyRecord], what: str, command: str) -> AnyRecord:
    """Read the whole record that a command wrote.

    Args:
        what: What to call it, e.g. `audit`.
        command: What writes it.

    Raises:
        DataError: If the file is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {what} `{path}`: {error}", f"run `{command}` again") from error
