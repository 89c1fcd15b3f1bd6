"""Word and character alignment of hypotheses with their nearest references; the commonest confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import jiwer

from smoe_cli.errors import DataError
from smoe_cli.records import Hypothesis


class EditKind(StrEnum):
    """What happened to a run of words or characters."""

    EQUAL = "equal"
    SUBSTITUTE = "substitute"
    INSERT = "insert"
    DELETE = "delete"


class Unit(StrEnum):
    """What is aligned: words (split at spaces), characters (inner spaces count), or whole answers, each right or wrong."""

    WORD = "word"
    CHARACTER = "character"
    ANSWER = "answer"


@dataclass(frozen=True)
class Edit:
    """One run of units with the same fate.

    Attributes:
        kind: `substitute` pairs the units one to one; `insert` has no reference, `delete` no hypothesis.
        reference: What should have been written.
        hypothesis: What the model wrote.
    """

    kind: EditKind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True)
class Alignment:
    """One hypothesis beside its nearest reference.

    Attributes:
        edits: In the order of the text.
        reference: The chosen reference, as it was given.
        errors: Substituted, inserted and deleted units.
        total: Units of the chosen reference; at least one.
    """

    edits: tuple[Edit, ...]
    reference: str
    errors: int
    total: int

    @property
    def error_rate(self) -> float:
        """Errors per reference unit; above 1 when much was inserted."""
        return self.errors / self.total


def check_references(hypotheses: Sequence[Hypothesis]) -> None:
    """Refuse what no metric can measure.

    Raises:
        DataError: If there are no hypotheses, or one has no reference or an empty one.
    """
    if not hypotheses:
        raise DataError("there are no hypotheses to score", "name a file that `smoe decode` wrote")
    for hypothesis in hypotheses:
        if not hypothesis.references:
            raise DataError(
                f"hypothesis `{hypothesis.id}` has no references: bare audio cannot be scored",
                "decode a manifest whose cuts carry the right text, or fill `references`",
            )
        if not all(reference.strip() for reference in hypothesis.references):
            raise DataError(
                f"hypothesis `{hypothesis.id}` has an empty reference: an error rate has nothing to divide by",
                f"give utterance `{hypothesis.utterance}` its text, or leave it out of the test set",
            )


def align(hypotheses: Sequence[Hypothesis], unit: Unit = Unit.WORD) -> list[Alignment]:
    """Align every hypothesis with the one of its references that has the fewest errors, the first of equals.

    Texts are compared as they are: case and punctuation count. An empty hypothesis is all deletions.

    Args:
        hypotheses: Each with at least one reference that is not empty.
        unit: Words, characters, or whole answers.

    Returns:
        One alignment per hypothesis, in the same order.

    Raises:
        DataError: If a hypothesis has no reference, or an empty one.

    Source: minimum edit distance by `jiwer`.
    """
    check_references(hypotheses)
    if unit is Unit.ANSWER:
        return [_answer(hypothesis) for hypothesis in hypotheses]
    pairs = [(reference, hypothesis.text) for hypothesis in hypotheses for reference in hypothesis.references]
    process = jiwer.process_words if unit is Unit.WORD else jiwer.process_characters
    # One call for all pairs: jiwer's set-up costs more than a short alignment.
    output = process([reference for reference, _ in pairs], [text for _, text in pairs])
    candidates = iter(
        _alignment(reference, chunks, reference_units, hypothesis_units)
        for (reference, _), chunks, reference_units, hypothesis_units in zip(
            pairs, output.alignments, output.references, output.hypotheses, strict=True
        )
    )
    return [min((next(candidates) for _ in hypothesis.references), key=lambda found: found.errors) for hypothesis in hypotheses]


def _answer(hypothesis: Hypothesis) -> Alignment:
    """The whole text as one unit: equal to one of the references, or wrong."""
    written = hypothesis.text
    right = written if written in hypothesis.references else hypothesis.references[0]
    kind = EditKind.EQUAL if right == written else EditKind.SUBSTITUTE
    return Alignment((Edit(kind, (right,), (written,)),), right, errors=int(right != written), total=1)


def _alignment(reference: str, chunks: list[jiwer.AlignmentChunk], reference_units: list[str], hypothesis_units: list[str]) -> Alignment:
    edits = tuple(
        Edit(
            kind=EditKind(chunk.type),
            reference=tuple(reference_units[chunk.ref_start_idx : chunk.ref_end_idx]),
            hypothesis=tuple(hypothesis_units[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in chunks
    )
    errors = sum(max(len(edit.reference), len(edit.hypothesis)) for edit in edits if edit.kind is not EditKind.EQUAL)
    return Alignment(edits=edits, reference=reference, errors=errors, total=len(reference_units))


def confusions(alignments: Iterable[Alignment]) -> Counter[tuple[str, str]]:
    """Count (right, written) pairs that differ; an empty string stands for a word left out or made up."""
    counts: Counter[tuple[str, str]] = Counter()
    for alignment in alignments:
        for edit in alignment.edits:
            if edit.kind is EditKind.SUBSTITUTE:
                counts.update(zip(edit.reference, edit.hypothesis, strict=True))
            elif edit.kind is EditKind.DELETE:
                counts.update((word, "") for word in edit.reference)
            elif edit.kind is EditKind.INSERT:
                counts.update(("", word) for word in edit.hypothesis)
    return counts
