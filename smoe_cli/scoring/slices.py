"""Hypotheses grouped by subset, task, language, bandwidth and the recipe's own tags, each slice scored with its task's metrics."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from smoe_cli import __version__
from smoe_cli.errors import DataError, SmoeError
from smoe_cli.records import Hypothesis, ScoreReport, SliceScores, read_hypotheses
from smoe_cli.scoring.align import check_references
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.tags import parse_bandwidth

SECONDS_PER_HOUR = 3600.0
MAIN_SUBSET = "main"
"""How reports call the subset without a name."""


class SliceKey(NamedTuple):
    """What the utterances of a slice have in common; sorts as reports list them."""

    subset: str
    task: str
    lang: str
    bandwidth: str
    tags: tuple[tuple[str, str], ...] = ()


def read_sources(paths: Iterable[Path]) -> dict[str, list[Hypothesis]]:
    """Read hypothesis files.

    Returns:
        File name -> its hypotheses, in the order given.

    Raises:
        DataError: If a file is named twice, missing, or has a broken line.
    """
    sources: dict[str, list[Hypothesis]] = {}
    for path in paths:
        if str(path) in sources:
            raise DataError(f"hypothesis file `{path}` is named twice", "name each file once")
        sources[str(path)] = list(read_hypotheses(path))
    return sources


def check_sources(sources: Mapping[str, Sequence[Hypothesis]]) -> list[Hypothesis]:
    """Refuse what would falsify a score, and join the files.

    Args:
        sources: File name -> its hypotheses.

    Returns:
        All hypotheses.

    Raises:
        DataError: If there are none, several models wrote them, a cut id appears twice, a tag is unknown, or a hypothesis has no
            (or an empty) reference.
    """
    _check_one_model(sources)
    file_of: dict[str, str] = {}
    for file, hypotheses in sources.items():
        for hypothesis in hypotheses:
            if hypothesis.id in file_of:
                earlier = file_of[hypothesis.id]
                where = f"twice in `{file}`" if earlier == file else f"in `{earlier}` and again in `{file}`"
                raise DataError(
                    f"cut `{hypothesis.id}` is decoded {where}: it would count double",
                    "remove one of the two, or score the files apart",
                )
            file_of[hypothesis.id] = file
            try:
                parse_bandwidth(hypothesis.bandwidth)
                check_references([hypothesis])
            except SmoeError as error:
                raise DataError(f"`{file}`, cut `{hypothesis.id}`: {error.message}", error.hint) from error
    if not file_of:
        raise DataError(f"no hypotheses in {', '.join(f'`{file}`' for file in sources) or 'no file'}", "run `smoe decode` first")
    return [hypothesis for hypotheses in sources.values() for hypothesis in hypotheses]


def _check_one_model(sources: Mapping[str, Sequence[Hypothesis]]) -> None:
    """Refuse a mixture of models, which nobody could use as one system; hypotheses that name none count as one model."""
    files_of: dict[str, dict[str, None]] = {}
    for file, hypotheses in sources.items():
        for hypothesis in hypotheses:
            files_of.setdefault(hypothesis.model, {})[file] = None
    if len(files_of) > 1:
        where = "; ".join(
            f"{f'model {model}' if model else 'a model without name'} in {', '.join(f'`{file}`' for file in files)}"
            for model, files in files_of.items()
        )
        raise DataError(
            f"hypotheses of {len(files_of)} models are not one system: {where}",
            "run `smoe decode` to write them all with one model, or score the files of each model apart",
        )


def group(hypotheses: Iterable[Hypothesis]) -> dict[SliceKey, list[Hypothesis]]:
    """Group by subset, task, language, bandwidth and tags; slices and their utterances (by cut id) in sorted order."""
    groups: dict[SliceKey, list[Hypothesis]] = {}
    for hypothesis in sorted(hypotheses, key=lambda found: found.id):
        tags = tuple(sorted(hypothesis.tags.items()))
        key = SliceKey(hypothesis.subset, hypothesis.task, hypothesis.lang, hypothesis.bandwidth, tags)
        groups.setdefault(key, []).append(hypothesis)
    return dict(sorted(groups.items()))


def score(
    system: str,
    sources: Mapping[str, Sequence[Hypothesis]],
    metrics_of: Callable[[str], tuple[str, ...]],
    norm_of: Callable[[str], str] = lambda task: "none",
) -> ScoreReport:
    """Score every slice with the metrics of its task.

    Args:
        system: Name of the system in reports.
        sources: File name -> its hypotheses, as `read_sources` returns them.
        metrics_of: Task name -> names of metrics, the headline metric first; raises for a task it does not know.
        norm_of: Task name -> what was done to its texts before, as `TextPolicy.signature`; it becomes part of every signature.

    Returns:
        The report; the same for any order of files and utterances, but for `hypotheses`, which lists the files as given.

    Raises:
        DataError: If several models wrote the hypotheses, a cut id appears twice, a hypothesis has no reference, or a tag is
            unknown.
        ConfigError: If a task asks for a metric that does not exist.
    """
    hypotheses = check_sources(sources)
    groups = group(hypotheses)
    return ScoreReport(
        system=system,
        model=hypotheses[0].model,
        decoding=sorted({found.decoding for found in hypotheses if found.decoding}),
        synthetic=sum(found.synthetic for found in hypotheses),
        hypotheses=list(sources),
        slices=[_score_slice(key, members, metrics_of(key.task), norm_of(key.task)) for key, members in groups.items()],
        versions={"smoe": __version__, "jiwer": version("jiwer"), "sacrebleu": version("sacrebleu"), "python": platform.python_version()},
    )


def _score_slice(key: SliceKey, hypotheses: Sequence[Hypothesis], metrics: Sequence[str], norm: str) -> SliceScores:
    scores = [find_metric(name)(hypotheses) for name in metrics]
    return SliceScores(
        **{**key._asdict(), "tags": dict(key.tags)},
        utterances=len(hypotheses),
        # fsum is exact, hence the same for every order of the utterances.
        hours=math.fsum(hypothesis.duration_s for hypothesis in hypotheses) / SECONDS_PER_HOUR,
        truncated=sum(hypothesis.stopped == "length" for hypothesis in hypotheses),
        synthetic=sum(hypothesis.synthetic for hypothesis in hypotheses),
        unseen=sum(hypothesis.unseen for hypothesis in hypotheses),
        # No metric knows what was done to the texts that it is given, and no score means anything without.
        scores=[found.model_copy(update={"signature": f"{found.signature}|norm:{norm}"}) for found in scores],
    )
