"""The Python front door: one function per command. Steps meet only through the files of `Layout`.

Heavy libraries load inside the function that needs them, so that `score` never waits for torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from smoe_cli.audit import AUDITED_UTTERANCES
from smoe_cli.config import CHECKPOINTS, Config, DecodeSettings
from smoe_cli.decoding.inputs import check_request, cuts_of
from smoe_cli.errors import CheckError, CheckpointError, ConfigError, DataError, RouteError, SmoeError
from smoe_cli.handing_on import check_export, check_slim, convert, export, params, slim
from smoe_cli.layout import Layout
from smoe_cli.making_ready import check_pack, check_prepare, features, pack, prepare, tokenize, validate
from smoe_cli.records import (
    AuditReport,
    Hypothesis,
    ParameterReport,
    Record,
    ScoreReport,
    TokenizerReport,
    read_json,
    write_json,
    write_jsonl,
    write_text_atomically,
)
from smoe_cli.steps import SETTINGS_CHANGED, STEPS, Step, altered, mark, plan_step
from smoe_cli.tags import EVERY_ROUTE, Choice, Route, check_routes
from smoe_cli.watch import Silent, Watcher

if TYPE_CHECKING:
    from lhotse import MonoCut

    from smoe_cli.checkpoint import System
    from smoe_cli.training import Trainer, TrainReport

__all__ = [
    "DecodeReport",
    "ParameterReport",
    "RunReport",
    "TokenizerReport",
    "check_audit",
    "check_export",
    "check_pack",
    "check_prepare",
    "check_slim",
    "check_start",
    "check_train",
    "convert",
    "decode",
    "export",
    "features",
    "pack",
    "params",
    "prepare",
    "route_audit",
    "run",
    "score",
    "slim",
    "tokenize",
    "train",
    "validate",
]


class DecodeReport(Record):
    """What `smoe decode` wrote."""

    checkpoint: Path
    paths: list[Path] = Field(description="Files of hypotheses; empty for bare audio without --out.")
    hypotheses: list[Hypothesis]


class RunReport(Record):
    """What `smoe run` did."""

    steps: list[Step]
    findings: int = Field(description="Findings of the route audit.")
    report: Path
    audit: Path


def train(config: Config, *, resume: str = "auto", watcher: Watcher | None = None) -> TrainReport:
    """Train the recipe's model, continuing from the last checkpoint. See `smoe_cli.training.Trainer`.

    Under torchrun every process calls this, and each gets the report; the first one writes it.

    Raises:
        ConfigError: If `resume` is neither `auto` nor `never`.
    """
    from smoe_cli.training.report import REPORT

    _check_resume(resume)
    trainer = _trainer(config, resume, watcher or Silent())
    report = trainer.run(resume)
    if trainer.ranks.leads:
        write_json(trainer.folder / REPORT, report)
        mark(config, "train")
    return report


def check_train(config: Config, *, resume: str = "auto", watcher: Watcher | None = None) -> None:
    """Refuse what `train` refuses before its first step, and write nothing; of cuts and tokenizer, once they are there.

    Arguments and errors are those of `train`; not found out is whether another process trains in the folder, and whether memory suffices.
    """
    _check_resume(resume)
    layout = Layout.of(config)
    if all(path.exists() for path in (layout.cuts("train"), layout.cuts("dev"), layout.tokenizer)):
        _trainer(config, resume, watcher or Silent()).check(resume)
    else:
        check_start(config)


def _trainer(config: Config, resume: str, watcher: Watcher) -> Trainer:
    """The trainer of the recipe's files.

    Raises:
        CheckpointError: If another tokenizer took the place of the recipe's.
    """
    from smoe_cli.cut_table import open_cuts
    from smoe_cli.tokenizer import open_tokenizer
    from smoe_cli.training import Trainer

    layout = Layout.of(config)
    cuts = [open_cuts(layout.cuts(split)) for split in ("train", "dev")]
    tokenizer = open_tokenizer(layout.tokenizer)
    warning = _check_tokenizer(config, goes_on=resume == "auto" and any((layout.model / CHECKPOINTS).glob("step-*")))
    trainer = Trainer(config, layout.model, cuts[0], cuts[1], tokenizer, watcher)
    if warning:
        trainer.watcher.log(warning)
    try:
        errors = _errors(layout)
    except DataError as error:
        trainer.watcher.log(f"warning: {error.message}")
    else:
        if errors:
            trainer.watcher.log(f"warning: the manifests have {errors}, with which `smoe run` would not train: `{layout.validation}`")
    return trainer


def _check_tokenizer(config: Config, goes_on: bool) -> str:
    """Whether the tokenizer is what `smoe tokenize` makes of the recipe's texts and settings; without an account of it, nobody knows.

    That of a recipe which starts from a checkpoint is compared with the checkpoint's.

    Args:
        goes_on: Whether a run goes on, which its own tokenizer is compared with.

    Returns:
        A warning; empty: it is.

    Raises:
        CheckpointError: If it is not what the step left.
    """
    stamp = Layout.of(config).stamp("tokenize")
    if config.train.init_from is not None or not stamp.exists():
        return ""
    other = altered(config, "tokenize")
    if other is not None and not goes_on:
        raise CheckpointError(
            f"`{other}` is not as `smoe tokenize` left it: the tokenizer is another one",
            f"run `smoe tokenize` again; or, if it is to be this one, remove `{stamp}`",
        )
    reason = plan_step(config, "tokenize").reason
    cure = "`smoe tokenize`, then `smoe train --resume never`"
    return f"warning: the tokenizer may not be of this recipe's texts and settings: {reason}; to have one that is: {cure}" if reason else ""


def _check_resume(resume: str) -> None:
    if resume not in ("auto", "never"):
        raise ConfigError(f"unknown --resume `{resume}`; known: auto, never", "auto continues, never starts anew")


def check_start(config: Config, own_tokenizer: bool = True) -> None:
    """Refuse a checkpoint to start from that does not fit the recipe, as far as that can be said before there is a tokenizer.

    Args:
        own_tokenizer: Whether to look at the recipe's tokenizer, if there is one.

    Raises:
        CheckpointError: If `train.init_from` is no checkpoint, or one of another model or tokenizer.
    """
    from smoe_cli import checkpoint, upcycling
    from smoe_cli.tokenizer import open_tokenizer

    source, tokenizer = config.train.init_from, Layout.of(config).tokenizer
    if source is not None:
        parts = checkpoint.read_start(source)
        upcycling.check_fits(source, parts, config, open_tokenizer(tokenizer) if own_tokenizer and tokenizer.is_dir() else parts.tokenizer)


def decode(
    config: Config | None,
    *,
    inputs: Sequence[Path] = (),
    choice: Choice = EVERY_ROUTE,
    split: str = "test",
    checkpoint: Path | None = None,
    out: Path | None = None,
    search: DecodeSettings | None = None,
    watcher: Watcher | None = None,
) -> DecodeReport:
    """Decode the recipe's split, other manifests, or bare audio files.

    Args:
        config: The recipe; None: everything comes from the checkpoint.
        inputs: Audio files or cut manifests; empty: the recipe's `split`.
        choice: The route of bare audio; of manifests, only cuts with these tags are decoded.
        checkpoint: Folder, which brings its own settings; None: the recipe's trained model and settings.
        out: File for the hypotheses of `inputs`.
        search: Settings that are given in it replace those of recipe or checkpoint.

    Raises:
        ConfigError: If the arguments do not go together.
        RouteError: If the model has no such route.
        DataError: If an input is missing, damaged or empty, or a cut occurs twice.
        CheckpointError: If there is no trained model.
    """
    from smoe_cli.decoding.decode import Decoder
    from smoe_cli.decoding.outputs import write_split
    from smoe_cli.training.precision import choose_precision

    watcher = watcher or Silent()
    check_request(config, inputs, choice, split, checkpoint, out)
    layout = Layout.of(config) if config is not None else None
    system = _system(config, checkpoint)
    folder = system.folder or Path()
    if layout is not None and checkpoint is None and (ahead := layout.ahead_of_final()):
        watcher.log(f"warning: training has gone on to `{ahead}` since `{folder}` was written; `smoe train` takes it to its end")
    decoder = Decoder(system, _search(system, config if checkpoint is None else None, search))
    choose_precision("fp32", decoder.device)
    check_routes(choice, map(Route.parse, system.plan.routes), "the model")
    sources = list(inputs) or ([layout.cuts(split)] if layout else [])
    cuts = _cuts_of_all(sources, system, choice)
    if not cuts:
        raise DataError(
            f"no cut with tags {choice} in {', '.join(f'`{path}`' for path in inputs) or f'the {split} split'}",
            "correct --task, --lang, --bandwidth or --tag",
        )
    _note_unseen(cuts, system, watcher)
    part: Path | None = None
    if out is not None:
        part = out.with_name(f".{out.name}.part")
    elif not inputs and layout is not None:
        part = layout.unfinished(split, *choice)
    hypotheses = decoder.decode(cuts, watcher, part)
    paths: list[Path] = []
    if out is not None:
        write_jsonl(out, hypotheses)
        paths = [out]
    elif not inputs and layout is not None and config is not None:
        paths = write_split(layout, split, choice, hypotheses, watcher)
        if split == "test":
            mark(config, "decode", whole=not any(choice))
    if part is not None:
        part.unlink(missing_ok=True)
    return DecodeReport(checkpoint=folder, paths=paths, hypotheses=hypotheses)


def _cuts_of_all(paths: Sequence[Path], system: System, choice: Choice) -> list[MonoCut]:
    """The cuts of all inputs.

    Raises:
        SmoeError: If one cannot be decoded; if several cannot, naming all.
    """
    cuts: list[MonoCut] = []
    wrong: list[SmoeError] = []
    for path in paths:
        try:
            cuts += cuts_of(path, system, choice)
        except (DataError, RouteError) as error:
            wrong.append(error)
    if len(wrong) > 1:
        said = "".join(f"\n  {error.message}" for error in wrong)
        cures = dict.fromkeys(error.hint for error in wrong if error.hint)
        raise DataError(f"{len(wrong)} of {len(paths)} inputs cannot be decoded, and nothing was:{said}", "; or ".join(cures))
    if wrong:
        raise wrong[0]
    return cuts


def _note_unseen(cuts: Sequence[MonoCut], system: System, watcher: Watcher) -> None:
    """Say which right labels the model cannot answer with, because it never saw them."""
    from smoe_cli.cut_table import labels_of

    for task, labels in labels_of(cuts, system.config).items():
        # Bare audio has no right label.
        new = [label for label in labels if label and label not in system.plan.labels_of(task)]
        if new:
            watcher.log(f"labels of {task} that training never saw, and so can only be wrong: {', '.join(new)}")


def _system(config: Config | None, folder: Path | None) -> System:
    """The checkpoint that is named, or else the recipe's own."""
    from smoe_cli import checkpoint

    if folder is None and config is not None:
        return checkpoint.load_trained(config)
    return checkpoint.load(folder or Path())


def _search(system: System, config: Config | None, changes: DecodeSettings | None) -> DecodeSettings:
    """How to decode: as the recipe says, without one as the system's own, but for what is changed."""
    own = system.config if config is None else config
    return own.decode.model_copy(update=changes.model_dump(exclude_unset=True) if changes is not None else {})


def score(
    config: Config | None, *, hypotheses: Sequence[Path] = (), out: Path | None = None, watcher: Watcher | None = None
) -> ScoreReport:
    """Score hypotheses; writes `scores.json` and `report.html`. See `smoe_cli.scoring.score.score`."""
    from smoe_cli.scoring import score as scoring

    result = scoring.score(config, hypotheses, out, watcher or Silent())
    if config is not None and not (out or hypotheses):
        mark(config, "score")
    return result


def route_audit(
    config: Config | None,
    *,
    checkpoint: Path | None = None,
    cuts: Path | None = None,
    utterances: int = AUDITED_UTTERANCES,
    swap: bool = True,
    out: Path | None = None,
    search: DecodeSettings | None = None,
    watcher: Watcher | None = None,
) -> AuditReport:
    """Audit what experts really served which cut. See `smoe_cli.audit.examine`.

    Args:
        checkpoint, cuts: By default the recipe's trained model and test manifest; with others, a recipe needs `out`.
        utterances: Cuts per route in the swap test.
        swap: Whether to try every wrong expert in turn.
        out: Folder for `audit.json` and `audit.html`; None: the recipe's.
        search: Settings that are given in it replace those of recipe or checkpoint.

    Raises:
        ConfigError: If the arguments do not go together.
    """
    from smoe_cli.audit import report
    from smoe_cli.audit.examine import audit

    check_audit(config, checkpoint, cuts, out)
    layout = Layout.of(config) if config is not None else None
    manifest = cuts or (layout.cuts("test") if layout else Path())
    system = _system(config, checkpoint)
    settings = _search(system, config if checkpoint is None else None, search)
    result = audit(system, settings, manifest, utterances, swap, watcher or Silent())
    target = out or (layout.audit if layout else None)
    if target is not None:
        write_json(target / "audit.json", result)
        write_text_atomically(target / "audit.html", report.audit_report_html(result))
    if config is not None and not out:
        mark(config, "route-audit", whole=swap and utterances == AUDITED_UTTERANCES)
    return result


def check_audit(config: Config | None, checkpoint: Path | None, cuts: Path | None, out: Path | None) -> None:
    """Refuse what cannot be audited; arguments as in `route_audit`.

    Raises:
        ConfigError: If the arguments do not go together.
    """
    if config is None and (checkpoint is None or cuts is None):
        raise ConfigError("no recipe, and not both --checkpoint and --cuts are named", "change into a recipe folder, or name both")
    if config is not None and (checkpoint or cuts) and out is None:
        raise ConfigError("the audit of another checkpoint or manifest would replace the recipe's own", "name a folder with --out")


def run(config: Config, *, force: bool = False, dry_run: bool = False, watcher: Watcher | None = None) -> RunReport:
    """Do every step whose results are not up to date, in order.

    Args:
        force: Do all of them.
        dry_run: Only say which would run; whether preparation would be refused at once, and training, where it would run first.

    Raises:
        DataError: In a dry run, if a corpus is not there that would be prepared.
        CheckpointError: If `train.init_from` is no checkpoint, or one of another model; before anything is done.
    """
    watcher = watcher or Silent()
    source = config.train.init_from
    # A run that goes on does not need it any more. Its tokenizer is the recipe's, once `tokenize` has run.
    if source is not None and (force or source.exists()):
        check_start(config, own_tokenizer=False)
    resume = "never" if force else "auto"
    functions: dict[str, Callable[[], object]] = {
        "prepare": lambda: prepare(config, watcher=watcher),
        "tokenize": lambda: tokenize(config, watcher=watcher),
        "train": lambda: train(config, resume=resume, watcher=watcher),
        "decode": lambda: decode(config, watcher=watcher),
        "score": lambda: score(config, watcher=watcher),
        "route-audit": lambda: route_audit(config, watcher=watcher),
    }
    steps: list[Step] = []
    upstream = False
    for name in STEPS:
        step = plan_step(config, name)
        wanted = force or step.state == "would run"
        if name == "tokenize" and wanted and not force:
            _check_goes_on(config, step.reason)
        if dry_run:
            if name == "prepare" and wanted:
                check_prepare(config)
            if name == "train" and wanted and not upstream:
                check_train(config, resume=resume, watcher=watcher)
            # What an earlier step will rewrite may make this one stale.
            reason = step.reason or ("forced" if force else "an earlier step would run")
            steps.append(step.model_copy(update={"state": "would run", "reason": reason}) if wanted or upstream else step)
            upstream |= wanted
        elif wanted:
            watcher.log(f"{name}: {step.reason or 'forced'}")
            started = time.monotonic()
            functions[name]()
            steps.append(step.model_copy(update={"state": "done", "seconds": round(time.monotonic() - started, 1)}))
        else:
            steps.append(step.model_copy(update={"state": "skipped", "reason": "up to date"}))
        if name == "prepare" and not (dry_run and wanted):
            _check_valid(Layout.of(config))
    layout = Layout.of(config)
    findings = len(read_json(layout.audit / "audit.json", AuditReport, "audit", "smoe route-audit").findings) if not dry_run else 0
    return RunReport(steps=steps, findings=findings, report=layout.scores / "report.html", audit=layout.audit / "audit.html")


def _check_goes_on(config: Config, reason: str) -> None:
    """Refuse to replace the tokenizer of a training that could not go on with another one or with other data.

    Args:
        reason: Why there would be another one.

    Raises:
        CheckpointError: If there is such a training.
    """
    from smoe_cli.training.checkpoints import START_ANEW

    layout = Layout.of(config)
    if any((layout.model / CHECKPOINTS).glob("step-*")) and layout.tokenizer.is_dir():
        if reason.startswith(SETTINGS_CHANGED):
            raise CheckpointError(
                f"`{layout.model}` was trained with the tokenizer that would be replaced: {reason}", f"set it back, {START_ANEW}"
            )
        check_train(config)


def _check_valid(layout: Layout) -> None:
    """Refuse to train on manifests that were found unfit.

    Raises:
        CheckError: If their validation, where there is one, has errors.
    """
    if errors := _errors(layout):
        raise CheckError(
            f"the manifests have {errors}: `{layout.validation}`",
            "`smoe validate` shows them; correct the corpus and prepare again, or take them out with `smoe validate --fix`",
        )


def _errors(layout: Layout) -> str:
    """How many errors the manifests have, as far as they have been validated; empty for none."""
    from smoe_cli.validation.report import ValidationReport

    path = layout.validation
    count = read_json(path, ValidationReport, "validation", "smoe validate").errors if path.exists() else 0
    return f"{count:,} error{'s' * (count > 1)}" if count else ""
