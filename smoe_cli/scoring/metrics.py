"""The metrics table: WER and CER by jiwer, BLEU and chrF by sacrebleu, accuracy of labels; a new metric is one entry.

All are corpus-level: counts are summed over utterances before anything is divided, so that the order of the
utterances does not matter. Texts are compared as they come, and nothing is normalised here: what a recipe says about case and punctuation
has been done to references and hypotheses alike before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from typing import cast

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from smoe_cli import __version__
from smoe_cli.errors import ConfigError, DataError, SmoeError
from smoe_cli.records import Hypothesis, Score
from smoe_cli.scoring.align import Unit, align, check_references


@dataclass(frozen=True)
class Metric:
    """A way to score hypotheses.

    Attributes:
        label: Name as people write it.
        lower_is_better: Whether a smaller value is a better system.
        measure: Scores hypotheses of one target language.
        shows: What a report compares where this is the headline metric.
    """

    label: str
    lower_is_better: bool
    measure: Callable[[Sequence[Hypothesis]], Score]
    shows: Unit = Unit.WORD

    def __call__(self, hypotheses: Sequence[Hypothesis]) -> Score:
        """Score hypotheses of one target language.

        Raises:
            DataError: If there are none, or one has no reference or an empty one.
        """
        return self.measure(hypotheses)


def wer(hypotheses: Sequence[Hypothesis]) -> Score:
    """Word error rate in %: all edits over all reference words; may exceed 100.

    With several references the one with the fewest errors counts, per utterance.

    Raises:
        DataError: If there are no hypotheses, or one has no reference or an empty one.
    """
    return _error_rate("wer", hypotheses, Unit.WORD)


def cer(hypotheses: Sequence[Hypothesis]) -> Score:
    """Character error rate in %, inner spaces included: all edits over all reference characters; may exceed 100.

    With several references the one with the fewest errors counts, per utterance.

    Raises:
        DataError: If there are no hypotheses, or one has no reference or an empty one.
    """
    return _error_rate("cer", hypotheses, Unit.CHARACTER)


def bleu(hypotheses: Sequence[Hypothesis]) -> Score:
    """Corpus BLEU, 0 to 100, as sacrebleu's command line computes it by default for this language.

    When no hypothesis of the corpus reaches four tokens the value is 0, even if all are right: BLEU counts 4-grams.

    Raises:
        DataError: If there are no hypotheses, several languages, or one has no reference or an empty one.
        SmoeError: If sacrebleu's tokenizer for the language (Japanese, Korean) is not installed.
    """
    check_references(hypotheses)
    languages = sorted({hypothesis.lang for hypothesis in hypotheses})
    if len(languages) > 1:
        raise DataError(f"BLEU over several languages at once: {', '.join(languages)}", "score each target language apart")
    try:
        # sacrebleu splits Chinese, Japanese and Korean by their own rules; `zh-tw` counts as `zh`.
        metric = BLEU(trg_lang=languages[0].split("-")[0])
    except RuntimeError as error:
        raise SmoeError(f"BLEU on `{languages[0]}` needs a tokenizer that is not installed", " ".join(str(error).split())) from error
    value = metric.corpus_score([hypothesis.text for hypothesis in hypotheses], _reference_streams(hypotheses)).score
    return Score(metric="bleu", value=value, unit="points", signature=str(metric.get_signature()))


def chrf(hypotheses: Sequence[Hypothesis]) -> Score:
    """Corpus chrF2 (character 6-grams, no word n-grams), 0 to 100, as sacrebleu's command line computes it by default.

    Raises:
        DataError: If there are no hypotheses, or one has no reference or an empty one.
    """
    check_references(hypotheses)
    metric = CHRF()
    value = metric.corpus_score([hypothesis.text for hypothesis in hypotheses], _reference_streams(hypotheses)).score
    return Score(metric="chrf", value=value, unit="points", signature=str(metric.get_signature()))


def accuracy(hypotheses: Sequence[Hypothesis]) -> Score:
    """Right answers in %, compared as they are written; `errors` of `total` are wrong, also those that training never saw.

    Raises:
        DataError: If there are no hypotheses, or one has no reference or an empty one.
    """
    wrong = sum(alignment.errors for alignment in align(hypotheses, Unit.ANSWER))
    total = len(hypotheses)
    signature = f"match:exact|lib:smoe|version:{__version__}"
    return Score(metric="accuracy", value=100.0 * (total - wrong) / total, errors=wrong, total=total, signature=signature)


def _error_rate(name: str, hypotheses: Sequence[Hypothesis], unit: Unit) -> Score:
    alignments = align(hypotheses, unit)
    errors, total = sum(alignment.errors for alignment in alignments), sum(alignment.total for alignment in alignments)
    counts = {len(hypothesis.references) for hypothesis in hypotheses}
    references = str(counts.pop()) if len(counts) == 1 else "var"
    # Same form as sacrebleu's signatures, so that one reader reads both.
    signature = f"nrefs:{references}|pick:fewest-errors|unit:{unit}|lib:jiwer|version:{version('jiwer')}"
    return Score(metric=name, value=100.0 * errors / total, errors=errors, total=total, signature=signature)


def _reference_streams(hypotheses: Sequence[Hypothesis]) -> list[list[str]]:
    """References as sacrebleu wants them: stream k holds the k-th reference of every utterance, None where there is none.

    None and not the empty string: sacrebleu 2.6 takes an empty string for a reference of length zero. Its type hints
    forget that its own documentation allows None, hence the cast.
    """
    return [cast("list[str]", list(stream)) for stream in zip_longest(*(hypothesis.references for hypothesis in hypotheses))]


METRICS = {
    "wer": Metric(label="WER", lower_is_better=True, measure=wer),
    "cer": Metric(label="CER", lower_is_better=True, measure=cer),
    "bleu": Metric(label="BLEU", lower_is_better=False, measure=bleu),
    "chrf": Metric(label="chrF", lower_is_better=False, measure=chrf),
    "accuracy": Metric(label="accuracy", lower_is_better=False, measure=accuracy, shows=Unit.ANSWER),
}


def find_metric(name: str) -> Metric:
    """Look a metric up in the table.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric `{name}`; known: {', '.join(METRICS)}", "correct the name in the task's kind")
    return METRICS[name]
