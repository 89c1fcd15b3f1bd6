"""Scoring inside a recipe and outside: which files, which metrics, what is done to texts, where the results go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smoe_cli.config import Config
from smoe_cli.errors import ConfigError, RouteError
from smoe_cli.layout import Layout, model_digest
from smoe_cli.records import Hypothesis, ScoreReport, write_json, write_text_atomically
from smoe_cli.scoring import report, slices
from smoe_cli.tags import TASK_KINDS
from smoe_cli.watch import Watcher


def score(config: Config | None, hypotheses: Sequence[Path], out: Path | None, watcher: Watcher) -> ScoreReport:
    """Score hypotheses; writes `scores.json` and `report.html`.

    What a recipe says about case and punctuation holds for the hypotheses too.

    Args:
        config: The recipe; None: files are named, and kinds of task are their names.
        hypotheses: Files to score; empty: all that `decode` wrote for the recipe.
        out: Folder to write to; None: the recipe's, or nothing when files are named.

    Raises:
        ConfigError: If there is neither a file nor a recipe.
        DataError: If a file is missing or damaged, a cut occurs twice, several models wrote them, or there is no reference.
        RouteError: If a file names a task that is unknown.
    """
    if config is None and not hypotheses:
        raise ConfigError("nothing to score: no file and no recipe", "name files of hypotheses, or change into a recipe folder")
    layout = Layout.of(config) if config is not None else None
    paths = list(hypotheses) or (layout.all_hypotheses(config) if layout and config else [])
    sources = slices.read_sources(paths)

    def metrics_of(task: str) -> tuple[str, ...]:
        kind = config.tasks[task].kind or task if config is not None and task in config.tasks else task
        if kind not in TASK_KINDS:
            raise RouteError(
                f"hypotheses name the unknown task `{task}`; known: {', '.join(TASK_KINDS)}",
                "correct the file, or score inside the recipe that has the task",
            )
        return TASK_KINDS[kind].metrics

    def norm_of(task: str) -> str:
        return config.text_policy(task).signature if config is not None and _has_text(config, task) else "none"

    if config is None:
        watcher.log("without a recipe, texts are compared as they come: case and punctuation count")
    else:
        # References were cleaned when they were prepared; a model that was not trained on such text writes otherwise.
        sources = {path: [by_policy(item, config) for item in group] for path, group in sources.items()}
    result = slices.score(config.name if config is not None else "hypotheses", sources, metrics_of, norm_of)
    if config is not None:
        tasks = dict.fromkeys(part.task for part in result.slices if _has_text(config, part.task))
        said = {task: str(config.text_policy(task)) for task in tasks}
        alike = len(set(said.values())) == 1
        result = result.model_copy(
            update={"text": "; ".join(set(said.values()) if alike else (f"{task}: {policy}" for task, policy in said.items()))}
        )
    if len(result.decoding) > 1:
        watcher.log(f"warning: not all of these were decoded with the same settings: {'; '.join(result.decoding)}")
    if layout is not None and not hypotheses and layout.final.is_dir() and model_digest(layout.final) != result.model:
        watcher.log(f"warning: `{layout.final}` is another model than the one that wrote these; `smoe decode` decodes with it")
    folder = out or (layout.scores if layout and not hypotheses else None)
    if folder is not None:
        write_json(folder / "scores.json", result)
        found = [item for group in sources.values() for item in group]
        write_text_atomically(folder / "report.html", report.score_report_html(result, found))
    return result


def _has_text(config: Config, task: str) -> bool:
    """Whether a task writes text, which has case and punctuation; a label has none, and stays as it is."""
    return task in config.tasks and not config.kind(task).closed


def by_policy(hypothesis: Hypothesis, config: Config) -> Hypothesis:
    """A hypothesis and its references as they are scored: with the case and punctuation that the recipe has for its task."""
    if not _has_text(config, hypothesis.task):
        return hypothesis
    clean = config.text_policy(hypothesis.task).clean
    return hypothesis.model_copy(update={"text": clean(hypothesis.text), "references": [clean(text) for text in hypothesis.references]})
