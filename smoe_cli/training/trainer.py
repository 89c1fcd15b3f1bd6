"""The loop: single-route steps, validation per route, checkpoints, and exact resume.

Every random draw of step s (dropout, SpecAugment, batch order) is a function of (seed, s) alone. So the exact
training position is the weights, the optimiser's tensors and a number.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from pydantic import Field
from torch.utils.data import DataLoader

from smoe_cli import checkpoint, upcycling
from smoe_cli.batching import IGNORE_ID, Batch, Collator, RouteBatches, by_route, chunk
from smoe_cli.checkpoint import Position, System
from smoe_cli.config import CHECKPOINTS, FINAL, Config, TrainSettings
from smoe_cli.cuts import labels_of
from smoe_cli.errors import CheckpointError, ConfigError, DataError, Interrupted, RouteError, SmoeError
from smoe_cli.features import FrontEnd, spec_augment
from smoe_cli.loss import Losses, combined_loss
from smoe_cli.model.speech_to_text import SpeechToText, count_parameters
from smoe_cli.records import Record, write_text_atomically
from smoe_cli.routing import make_plan
from smoe_cli.tokenizer import Tokenizer
from smoe_cli.training.allocator import keep_memory
from smoe_cli.training.guard import locked, stop_flag
from smoe_cli.training.loading import CutBatches, From
from smoe_cli.training.optimiser import learning_rate, make_optimiser, optimiser_tensors, restore_optimiser
from smoe_cli.training.precision import Precision, choose_precision
from smoe_cli.watch import Silent, Watcher

ALL_THREADS = torch.get_num_threads()
"""What OpenMP found when torch was loaded: the cores that this process may use, or `OMP_NUM_THREADS`."""
KEPT_CHECKPOINTS = 2
LOCK_FILE, METRICS_FILE = "training.lock", "metrics.jsonl"


class TrainReport(Record):
    """What training did."""

    checkpoint: Path
    steps: int
    minutes: float = Field(description="Wall time of this call.")
    resumed_from: int | None = Field(description="Step of the checkpoint it continued from.")
    started_from: str | None = Field(default=None, description="Digest of the model whose weights training began with.")
    parameters: dict[str, int]
    precision: str
    validation: dict[str, float] = Field(description="Route -> loss per token on the dev split.")
    steps_by_route: dict[str, int]
    ctc_skipped: int = Field(description="Utterances, in the batches of this call, with fewer encoder frames than CTC needs.")


class Trainer:
    """Trains one recipe into one folder.

    Args:
        config: The recipe.
        folder: `final/` (the result), `checkpoints/` and `metrics.jsonl` go here.
        train_cuts, dev_cuts: Tagged cuts.
        tokenizer: Of the same recipe.
        watcher: Shown progress.

    Raises:
        DataError: If a route of the recipe has no training cuts in any band.
        RouteError: If a cut's route is not in the recipe.
    """

    def __init__(
        self, config: Config, folder: Path, train_cuts: CutSet, dev_cuts: CutSet, tokenizer: Tokenizer, watcher: Watcher | None = None
    ) -> None:
        self.config, self.settings, self.folder = config, config.train, folder
        self.watcher = watcher or Silent()
        self.plan = make_plan(config)
        self.groups = by_route(train_cuts, self.plan)
        self._check_routes()
        # The plan promises only what was trained for.
        self.plan = make_plan(config, self.groups, labels_of(train_cuts, config))
        dev_groups = by_route(dev_cuts, make_plan(config))
        self.dev_groups = {route: cuts for route, cuts in dev_groups.items() if str(route) in self.plan.routes}
        for route in dev_groups.keys() - self.dev_groups.keys():
            self.watcher.log(f"route {route} has dev cuts but no training cuts: it is not validated")
        for route in self.groups:
            try:
                tokenizer.guiding_ids(route)
            except RouteError as error:
                raise CheckpointError(f"the tokenizer is of another recipe: {error.message}", "run `smoe tokenize` again") from error
        self.tokenizer = tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(self.settings.threads or ALL_THREADS)
        keep_memory()
        front_end = FrontEnd(config.features)
        self.collator = Collator(front_end, tokenizer, self.plan, config.model.max_tokens)
        for task, labels in self.plan.labels.items():
            if len(labels) == 1:
                self.watcher.log(f"task `{task}` has one label in all of the train split, `{labels[0]}`: there is nothing to choose")
        self.batches = RouteBatches(
            self.groups,
            self.settings.batch_s,
            self.settings.max_utterances,
            self.settings.seed,
            self.settings.temperature,
            self.settings.task_weights,
            config.corpus_weights(),
            self.settings.corpus_temperature,
        )
        for route, shares in self.batches.corpus_shares.items():
            self.watcher.log(f"{route}: " + ", ".join(f"{share:.0%} of the batches from `{name}`" for name, share in shares.items()))
        torch.manual_seed(self.settings.seed)
        model = checkpoint.build_model(config.model, config.features, self.plan, tokenizer.vocab_size)
        self.system = System(model.to(self.device), config, self.plan, tokenizer)
        self.optimiser = make_optimiser(model, self.settings)
        self.precision = Precision("fp32", "highest", "until measured")
        self.step = 0
        self.steps_by_route: dict[str, int] = dict.fromkeys(map(str, self.groups), 0)
        self.ctc_skipped = 0
        self.validation: dict[str, float] = {}

    def _check_routes(self) -> None:
        served = {(route.task, route.lang) for route in self.groups}
        for route in self.config.routes():
            if (route.task, route.lang) not in served:
                if self.config.kind(route.task).closed:
                    raise DataError(f"no training cut for task `{route.task}`", "give the train split labels for it, or leave the task out")
                raise DataError(
                    f"no training cut for task `{route.task}`, language `{route.lang}`: its expert would never learn",
                    f"give the train split such text, or take `{route.lang}` out of `tasks.{route.task}.languages`",
                )

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self, resume: str = "auto") -> TrainReport:
        """Train to `train.max_steps`, continuing from the last checkpoint if there is one.

        Args:
            resume: `auto` continues, `never` starts anew and discards what is there.

        Raises:
            Interrupted: After saving, when SIGINT or SIGTERM came.
            ConfigError: If `train.init_from` lies where this run writes.
            CheckpointError: If what is there belongs to another configuration, or `train.init_from` to another model.
        """
        started = time.monotonic()
        source = self.settings.init_from
        if source is not None and source.resolve().is_relative_to(self.folder.resolve()):
            raise ConfigError(f"the checkpoint to start from, `{source}`, lies where this run writes its own", "set another exp_dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK_FILE), stop_flag() as stop:
            self._clean_up(everything=resume == "never")
            resumed_from = self._resume()
            if resumed_from is None:
                self._start()
                self.precision = choose_precision(self.settings.precision, self.device)
            self.precision.apply()
            self.watcher.log(f"{self.precision} on {self.device}, {torch.get_num_threads()} threads")
            if self.step < self.settings.max_steps:
                self._loop(stop)
            else:
                self.validate()
            self._save_final()
        return TrainReport(
            checkpoint=self.folder / FINAL,
            steps=self.step,
            minutes=(time.monotonic() - started) / 60,
            resumed_from=resumed_from,
            started_from=self.system.origin.model if self.system.origin is not None else None,
            parameters=count_parameters(self.system.model),
            precision=str(self.precision),
            validation=self.validation,
            steps_by_route=self.steps_by_route,
            ctc_skipped=self.ctc_skipped,
        )

    def _loop(self, stop: threading.Event) -> None:
        loader = DataLoader(
            CutBatches(self.collator),
            sampler=From(self.batches, self.step),
            batch_size=None,
            num_workers=self.settings.workers,
            persistent_workers=False,
        )
        recent: dict[str, float] = {}
        clock, frames, waited = time.monotonic(), 0, 0.0
        fetched = time.monotonic()
        for batch in loader:
            if isinstance(batch, SmoeError):
                raise batch
            waited += time.monotonic() - fetched
            losses = self.train_step(batch)
            route = str(batch.routes[0])
            loss = losses.total.item()
            if not math.isfinite(loss):
                self._fail_on(batch, loss)
            self._count_skipped(losses.too_short)
            recent[route] = loss if route not in recent else 0.9 * recent[route] + 0.1 * loss
            frames += int(batch.feature_lengths.sum())
            self.steps_by_route[route] += 1
            self.step += 1
            elapsed = time.monotonic() - clock
            shown = _by_task(recent)
            self.watcher.progress("train", self.step, self.settings.max_steps, f"loss {shown}  {frames / elapsed:,.0f} frames/s")
            finished = self.step == self.settings.max_steps
            if self.step % self.settings.validate_every == 0 or finished or stop.is_set():
                if not stop.is_set():
                    self.validate()
                    self._record(
                        {
                            "step": self.step,
                            "train_loss": recent,
                            "validation_loss": self.validation,
                            "learning_rate": learning_rate(self.step - 1, self.settings),
                            "frames_per_s": frames / elapsed,
                            "waiting_share": waited / elapsed,
                            "ctc_skipped": self.ctc_skipped,
                        }
                    )
                self._save_checkpoint()
                clock, frames, waited = time.monotonic(), 0, 0.0
            if stop.is_set():
                raise Interrupted(
                    f"stopped after step {self.step} of {self.settings.max_steps}; the state is saved in `{self.folder / CHECKPOINTS}`",
                    "run `smoe train` again to continue exactly there",
                )
            if finished:
                return
            fetched = time.monotonic()

    def _count_skipped(self, utterances: int) -> None:
        if utterances and not self.ctc_skipped:
            self.watcher.log(
                "some utterances have fewer encoder frames than tokens, and CTC skips them; a larger `tokenizer.vocab_size` makes "
                "fewer tokens, a smaller `model.subsampling` more frames"
            )
        self.ctc_skipped += utterances

    def train_step(self, batch: Batch) -> Losses:
        """One optimiser step. Experts that the batch does not use keep their weights bit for bit."""
        seed = self.settings.seed * 1_000_003 + self.step
        batch = batch.to(self.device)
        features = spec_augment(
            batch.features,
            batch.feature_lengths,
            self.settings.time_masks,
            self.settings.time_mask_share,
            self.settings.frequency_masks,
            self.settings.frequency_mask_bins,
            seed,
        )
        torch.manual_seed(seed)
        self.system.model.train()
        # None, not zero: AdamW would move an idle expert by its momentum and weight decay.
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.losses(batch, features)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.system.model.parameters(), self.settings.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimiser.step()
        return losses

    def losses(self, batch: Batch, features: torch.Tensor, label_smoothing: float | None = None) -> Losses:
        """Loss terms of a batch under given features (N,T,F)."""
        return losses_of(self.system.model, batch, features, self.settings, self.precision, self.tokenizer.blank_id, label_smoothing)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Cross-entropy per target token of every route on (part of) the dev split, without label smoothing."""
        self.system.model.eval()
        self.validation = {}
        for route, cuts in self.dev_groups.items():
            total, tokens = 0.0, 0
            some = list(cuts)[: self.settings.validation_utterances]
            for batch_cuts in chunk(sorted(some, key=lambda cut: cut.duration), self.settings.batch_s, self.settings.max_utterances):
                batch = self.collator(batch_cuts).to(self.device)
                losses = self.losses(batch, batch.features, label_smoothing=0.0)
                total += float(losses.attention) * losses.tokens
                tokens += losses.tokens
            self.validation[str(route)] = total / max(1, tokens)
        shown = "  ".join(f"{route} {loss:.3f}" for route, loss in self.validation.items())
        self.watcher.log(f"step {self.step}: validation loss per token  {shown}")
        return self.validation

    # --- files -------------------------------------------------------------------------------------------

    def _record(self, values: dict[str, Any]) -> None:
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _checkpoints(self) -> list[Path]:
        """Checkpoints, newest first."""
        folder = self.folder / CHECKPOINTS
        return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []

    def _save_checkpoint(self) -> None:
        state = {"step": self.step, "steps_by_route": self.steps_by_route, "data": self._fingerprint(), "precision": asdict(self.precision)}
        position = Position(optimiser_tensors(self.system.model, self.optimiser), state)
        checkpoint.save(self.folder / CHECKPOINTS / f"step-{self.step:08d}", self.system, position)
        for old in self._checkpoints()[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)

    def _save_final(self) -> None:
        checkpoint.save(self.folder / FINAL, self.system)

    def _fingerprint(self) -> dict[str, Any]:
        """What the batch order depends on besides the configuration."""
        digests: dict[str, Any] = {}
        for route, cuts in self.groups.items():
            digest = hashlib.sha256()
            for cut in cuts:
                digest.update(f"{cut.id}\t{cut.duration}\t{cut.supervisions[0].text}\n".encode())
            digests[str(route)] = digest.hexdigest()
        # The settings of corpora are not compared otherwise: another place of the same data does not matter.
        return digests | ({"corpus_weights": self.config.corpus_weights()} if self.config.corpus_weights() else {})

    def _start(self) -> None:
        """Take the weights of another model, if the recipe starts from one."""
        if self.settings.init_from is not None:
            upcycling.start_from(self.settings.init_from, self.system, self.watcher)
            self._own_weights()

    def _own_weights(self) -> None:
        """Loading gave the model new tensors; the optimiser must own those."""
        self.system.model.to(self.device)
        self.optimiser = make_optimiser(self.system.model, self.settings)

    def _resume(self) -> int | None:
        """Continue from the newest checkpoint that is whole; says so when it had to pass over a damaged one."""
        for folder in self._checkpoints():
            try:
                saved = checkpoint.load(folder)
            except CheckpointError as error:
                self.watcher.log(f"passing over a damaged checkpoint: {error.message}")
                continue
            self._check_same(saved, folder)
            position = checkpoint.load_position(folder)
            if position.state["data"] != self._fingerprint():
                raise CheckpointError(
                    f"`{folder}` was trained on other data than the manifests hold now, or with other weights of the corpora",
                    "train anew with `smoe train --resume never` (or `smoe run --force`), or set another exp_dir",
                )
            if position.state["step"] > self.settings.max_steps:
                raise CheckpointError(
                    f"`{folder}` has had {position.state['step']:,} steps, more than `train.max_steps` ({self.settings.max_steps:,})",
                    "raise `train.max_steps`, train anew with `smoe train --resume never` (or `smoe run --force`), or set another exp_dir",
                )
            checkpoint.load_weights(self.system.model, saved.model.state_dict(), self.config.model.tie_embeddings, str(folder))
            self._own_weights()
            self.system.origin = saved.origin
            restore_optimiser(self.system.model, self.optimiser, position.tensors)
            # The same arithmetic as before, or the weights would not be the same.
            self.precision = Precision(**position.state["precision"])
            self.step = int(position.state["step"])
            self.steps_by_route.update(position.state["steps_by_route"])
            self.watcher.log(f"continuing from step {self.step} (`{folder}`)")
            return self.step
        return None

    def _check_same(self, saved: System, folder: Path) -> None:
        """Refuse to continue a run of another configuration, plan or tokenizer."""
        ignored = {"name", "exp_dir", "decode", "data"}
        old, new = saved.config.model_dump(exclude=ignored), self.config.model_dump(exclude=ignored)
        init = {"init_from", "init_noise", "init_experts"}  # compared with the checkpoint's own account of its origin, below
        free = {"train": {"max_steps", "validate_every", "validation_utterances", "workers", "threads", *init}, "features": {"cache_mb"}}
        for section, keys in free.items():
            for key in keys:
                old[section].pop(key), new[section].pop(key)
        changed = [
            f"{section}.{key}: {old[section][key]!r} -> {value!r}"
            if isinstance(new[section], dict)
            else f"{section}: {old[section]!r} -> {new[section]!r}"
            for section in new
            for key, value in (new[section].items() if isinstance(new[section], dict) else [("", None)])
            if (old[section].get(key) != value if isinstance(new[section], dict) else old[section] != new[section])
        ]
        changed += upcycling.differences(saved.origin, self.settings)
        if changed:
            raise CheckpointError(
                f"`{folder}` was trained with another configuration: {'; '.join(changed)}",
                "set these back, train anew with `smoe train --resume never` (or `smoe run --force`), or set another exp_dir",
            )
        if saved.plan != self.plan:
            raise CheckpointError(
                f"`{folder}` has another routing plan: {'; '.join(saved.plan.differences(self.plan))}",
                "train anew with --resume never, or set another exp_dir",
            )
        if not saved.tokenizer.same_as(self.tokenizer):
            raise CheckpointError(
                f"`{folder}` was trained with another tokenizer: {saved.tokenizer.difference(self.tokenizer)}",
                "train anew with --resume never, or bring back the tokenizer",
            )

    def _clean_up(self, everything: bool) -> None:
        """Remove what a killed process left half-written; with ``everything``, all that is there."""
        for pattern in (".*.tmp", ".*.old"):
            for left in [*self.folder.glob(pattern), *(self.folder / CHECKPOINTS).glob(pattern)]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if everything:
            for folder in (self.folder / CHECKPOINTS, self.folder / FINAL):
                shutil.rmtree(folder, ignore_errors=True)
            (self.folder / METRICS_FILE).unlink(missing_ok=True)

    def _fail_on(self, batch: Batch, loss: float) -> None:
        report = self.folder / "failed-batch.txt"
        write_text_atomically(report, "".join(f"{cut.id}\n" for cut in batch.cuts))
        raise SmoeError(
            f"the loss became {loss} at step {self.step} on route {batch.routes[0]}; the batch's cuts are listed in `{report}`",
            "look at these cuts, or lower `train.learning_rate`; checkpoints before this step are kept",
        )


def losses_of(
    model: SpeechToText,
    batch: Batch,
    features: torch.Tensor,
    settings: TrainSettings,
    precision: Precision,
    blank_id: int,
    label_smoothing: float | None = None,
) -> Losses:
    """Loss terms of a batch under given features (N,T,F), as training computes them.

    Args:
        blank_id: CTC's blank.
        label_smoothing: If not as the settings say.
    """
    with torch.autocast(features.device.type, torch.bfloat16, enabled=precision.dtype == "bf16"):
        states, memory = model(features, batch.feature_lengths, batch.tokens_in, batch.encoder_expert, batch.decoder_expert)
        logits = model.decoder.output(states)
        ctc_logits = model.ctc(memory.states) if model.ctc is not None else None
    return combined_loss(
        logits,
        batch.targets,
        ctc_logits,
        memory.lengths,
        batch.ctc_targets,
        batch.ctc_lengths,
        settings.label_smoothing if label_smoothing is None else label_smoothing,
        settings.ctc_weight,
        IGNORE_ID,
        blank_id,
    )


def _by_task(loss_by_route: dict[str, float]) -> str:
    """Mean loss of each task, to be shown on one line."""
    tasks: dict[str, list[float]] = {}
    for route, loss in loss_by_route.items():
        tasks.setdefault(route.partition("/")[0], []).append(loss)
    return "  ".join(f"{task} {sum(losses) / len(losses):.2f}" for task, losses in sorted(tasks.items()))
