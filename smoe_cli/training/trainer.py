"""The loop: steps on batches of one route or several, validation per route, checkpoints, and exact resume.

Every random draw of step s (dropout, batch order, what is done to each cut) is a function of (seed, s, cut) alone. So the exact
training position is the weights, the optimiser's tensors and a number.

Of many processes (`ranks.py`) all do the same, each on its own batches; the first one writes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from smoe_cli import checkpoint, upcycling
from smoe_cli.batching import Batch, by_route
from smoe_cli.checkpoint import Position, System
from smoe_cli.config import FINAL, Config
from smoe_cli.cut_table import labels_of
from smoe_cli.loss import Counts, Losses
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.routing import make_plan
from smoe_cli.tokenizer import Tokenizer
from smoe_cli.training.accounts import Accounts
from smoe_cli.training.alarms import (
    check_cuts,
    check_finite,
    check_served,
    check_start,
    check_tokenizer,
    check_validated,
    dropped,
    lone_labels,
    unmatched,
)
from smoe_cli.training.allocator import keep_memory
from smoe_cli.training.averaging import MovingAverage, chosen_steps, in_place_of, mean_weights, validations_without_gain
from smoe_cli.training.checkpoints import Checkpoints, check_same_run
from smoe_cli.training.compiling import compile_parts
from smoe_cli.training.diary import Diary, by_task
from smoe_cli.training.environment import ENVIRONMENT, note_environment
from smoe_cli.training.guard import Stop, Stopped, locked, stop_flag
from smoe_cli.training.loading import batches_of, collator_of, feed, workers_noticed
from smoe_cli.training.measured import Measured, dependence, recall, remember
from smoe_cli.training.memory import Memory, enough_for_state, in_halves, is_out_of_memory, largest_batch_s
from smoe_cli.training.meter import Meter
from smoe_cli.training.optimiser import clip, gradient_norm, learning_rate, make_optimiser, optimiser_tensors, restore_optimiser
from smoe_cli.training.parts import check_all_learn, freeze, frozen_experts
from smoe_cli.training.precision import Precision, choose_precision
from smoe_cli.training.ranks import join, weights_digest
from smoe_cli.training.report import TrainReport, interruptions_told
from smoe_cli.training.samples import Sample, take_samples
from smoe_cli.training.shard import divide, gathered, out_of_memory, whole_system
from smoe_cli.training.shares import Shares
from smoe_cli.training.step import counts_of_all, gradients_of
from smoe_cli.training.validate import validation_loss
from smoe_cli.watch import Silent, Watcher

ALL_THREADS = torch.get_num_threads()
"""What OpenMP found when torch was loaded: the cores that this process may use, or `OMP_NUM_THREADS`."""
LOCK_FILE = "training.lock"
SHARED = "set `exp_dir` to a folder that all machines share"
DRIFTED = "start again from the last checkpoint; if it comes back, look for a machine with other hardware or other versions of libraries"


class Trainer:
    """Trains one recipe into one folder; under torchrun, as one of its processes.

    Args:
        config: The recipe.
        folder: `final/` (the result), `checkpoints/` and `metrics.jsonl` go here.
        train_cuts, dev_cuts: Tagged cuts.
        tokenizer: Of the same recipe.
        watcher: Shown progress, by the first process.

    Raises:
        SmoeError: If the other processes cannot be found.
        DataError: If a tag that the recipe asks for has no training cuts, a cut or its text is longer than the model takes, a cut has no
            text, or a weight does nothing.
        RouteError: If a cut's route is not in the recipe.
        CheckpointError: If the tokenizer is not the recipe's.
        ConfigError: If the recipe freezes a part that is not there, or all that a route uses, or asks for what this machine lacks.
    """

    def __init__(
        self, config: Config, folder: Path, train_cuts: CutSet, dev_cuts: CutSet, tokenizer: Tokenizer, watcher: Watcher | None = None
    ) -> None:
        self.config, self.settings, self.folder = config, config.train, folder
        self.ranks = join()
        self.stop = Stop(threading.Event(), self.ranks)
        self.watcher = self.own_watcher = watcher or Silent()
        if not self.ranks.leads:
            self.watcher = Silent()
        self.plan = make_plan(config)
        self.groups = by_route(train_cuts, self.plan)
        check_served(config, self.groups)
        # The plan promises only what was trained for.
        self.plan = make_plan(config, self.groups, labels_of(train_cuts, config))
        dev_groups = by_route(dev_cuts, make_plan(config))
        self.dev_groups = {route: cuts for route, cuts in dev_groups.items() if str(route) in self.plan.routes}
        check_tokenizer(tokenizer, config, self.groups)
        check_cuts(config, tokenizer, self.groups, self.dev_groups)
        self.tokenizer = tokenizer
        self.device = self.ranks.device()
        torch.set_num_threads(self.settings.threads or ALL_THREADS)
        keep_memory()
        self.collator = collator_of(config, tokenizer, self.plan)
        for line in (*unmatched(self.settings, self.groups, dev_groups), *lone_labels(self.plan), *dropped(config, self.plan)):
            self.watcher.log(line)
        longest_s = max(cut.duration for cuts in self.groups.values() for cut in cuts)
        # Until memory is measured, `auto` is a batch of one cut.
        shortest_s = longest_s * self.settings.turns_per_batch
        self._make_batches(shortest_s if self.settings.batch_s == "auto" else self.settings.batch_s)
        torch.manual_seed(self.settings.seed)
        model = checkpoint.build_model(config.model, config.features, self.plan, tokenizer.vocab_size)
        self.system = System(model, config, self.plan, tokenizer)
        self.divides = self.settings.shard and self.ranks.size > 1
        if self.settings.shard and not self.divides:
            self.watcher.log("`train.shard`: a single process has nobody to share the weights with, and holds all of them")
        self.checkpoints = Checkpoints(folder, self.groups, config.corpus_weights(), self.ranks.size)
        self.diary = Diary(folder, self.settings.tensorboard)
        model.encoder.recompute = model.decoder.recompute = self.settings.activation_checkpointing
        if self.settings.compile:
            self.watcher.log(f"compiling {compile_parts(model)} parts of the model; the first steps take longer")
        self._own_weights(in_shards=False)
        self.precision = Precision("fp32", "highest", "until measured")
        self.step = 0
        self.accounts = Accounts(Shares(self.plan, frozen_experts(model)), self.settings, folder, self.ranks)
        self.validation: dict[str, float] = {}
        self.history: dict[int, float] = {}
        self.averaged: list[int] = []
        self.left_out: list[int] = []
        check_validated(self.settings, self.dev_groups)

    def _make_batches(self, batch_s: float) -> None:
        self.batch_s, self.batches = batch_s, batches_of(self.config, self.groups, batch_s, self.watcher)

    # --- the loop ----------------------------------------------------------------------------------------

    def check(self, resume: str = "auto") -> None:
        """Refuse what `run` would refuse before its first step; nothing is written. Not to be run afterwards: weights may be others.

        Raises:
            SmoeError: As `run`, but for what depends on other processes, on memory, and on files that cannot be written.
        """
        check_start(self.settings, self.folder)
        if resume == "never" or self.checkpoints.newest(self.system, self.watcher) is None:
            self._start()

    def run(self, resume: str = "auto") -> TrainReport:
        """Train to `train.max_steps`, continuing from the last checkpoint if there is one.

        Args:
            resume: `auto` continues, `never` starts anew and discards what is there.

        Raises:
            Interrupted: When SIGINT or SIGTERM came to any process; it says what state is saved.
            SmoeError: If a process has gone, or is not of the same run.
            ConfigError: If `train.init_from` lies where this run writes.
            CheckpointError: If what is there belongs to another configuration, or `train.init_from` to another model.
        """
        started = time.monotonic()
        check_start(self.settings, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            locked(self.folder / LOCK_FILE) if self.ranks.leads else nullcontext(),
            stop_flag() as self.stop.flag,
            interruptions_told(lambda: self.step, self.settings.max_steps, self.checkpoints.folder),
            self.ranks.noticing(),
            workers_noticed(),
        ):
            if self.ranks.leads:
                self.checkpoints.clean_up()
            check_same_run(self.ranks, self.config, self.checkpoints)
            resumed_from = self._resume() if resume == "auto" else None
            if resumed_from is None:
                self._start()
            self.ranks.same(f"weights at step {self.step}", lambda: weights_digest(self.system.model), DRIFTED)
            measured = self._measure(resume) if resumed_from is None else None
            self.precision.apply()
            self.watcher.log(f"{self.precision} on {self.device}, {torch.get_num_threads()} threads")
            if self.settings.batch_s == "auto":
                self.watcher.log(f"batches of {self.batch_s:.1f} s")
            if self.ranks.leads:
                if resume == "never":
                    # Not before all that can be refused has been.
                    self.checkpoints.forget()
                    self.diary.forget()
                if measured is not None:
                    remember(self.folder, measured)
                # What a kill before the save left of a review is written again.
                self.diary.cut(self.step - int(self._unreviewed()))
                note_environment(self.folder / ENVIRONMENT, self.config, self.device, self.step, self.ranks.size)
            if self._unreviewed():
                # What the validation decides is decided as if it had not been stopped.
                self._review(Meter())
            if not self._ended():
                self._loop()
            elif not self.validation and not self.settings.average:
                self.validate()
            self._save_final()
            self.diary.close()
            self.ranks.wait()
        return TrainReport(
            checkpoint=self.folder / FINAL,
            steps=self.step,
            minutes=(time.monotonic() - started) / 60,
            resumed_from=resumed_from,
            started_from=self.system.origin.model if self.system.origin is not None else None,
            parameters=count_parameters(self.system.model),
            precision=str(self.precision),
            stopped_early=self.step < self.settings.max_steps,
            averaged=self.averaged,
            left_out=self.left_out,
            validation=self.validation,
            **self.accounts.result(),
        )

    def _loop(self) -> None:
        meter = Meter()
        settings, ranks = self.settings, self.ranks
        pin, per_step = self.device.type == "cuda", settings.accumulate
        coming = feed(self.collator, self.batches, self.step, per_step, settings.workers, ranks.rank, ranks.size, self.stop.flag, pin)
        # Closed at once, whatever ends the loop: its processes end with it.
        with closing(coming):
            for batches in meter.waiting_for(coming):
                losses = self.train_step(*batches)
                meter.done(self.accounts.note(self.step, batches, losses, self.watcher))
                self.step += 1
                shown = "  ".join(f"{task} {loss:.2f}" for task, loss in by_task(self.accounts.recent).items())
                self.watcher.progress("train", self.step, self.settings.max_steps, f"loss {shown}  {meter}")
                due = self._due()
                if ranks.leads and settings.log_every and self.step % settings.log_every == 0 and not due:
                    # Before it may stop: when it goes on, this step has been.
                    self.diary.write(self.step, self._state_of_training() | meter.lap())
                try:
                    self.stop.heed()
                    if due:
                        self._review(meter)
                        meter.reset()
                except Stopped:
                    break
                if self._ended():
                    return
                if due:
                    # It is saved already.
                    self.stop.heed()
        self._save_checkpoint()
        raise Stopped

    def _review(self, meter: Meter) -> None:
        """Validate, write down how things are going, and save.

        Raises:
            Stopped: If a process was asked to stop; then the state is that of before, and the review is done anew by the run that goes on.
        """
        self.ranks.same(f"weights at step {self.step}", lambda: weights_digest(self.system.model), DRIFTED)
        self.validate()
        samples = self._samples() if self.settings.sample_utterances else None
        self.history[self.step] = sum(self.validation.values()) / max(1, len(self.validation))
        if self.ranks.leads:
            self._write_down(meter, samples)
        self._save_checkpoint()

    def _samples(self) -> tuple[list[Sample], dict[str, dict[str, float]]] | None:
        """What the model writes, for the first process; all take part in making it whole, and in finding out whether to stop."""
        with self._averaged():
            system = whole_system(self.system, self.ranks.leads)
            if system is None:
                while self.stop.heed(busy=False):
                    pass
                return None
            system.model.to(self.device)
            return take_samples(system, self.dev_groups, self.settings.sample_utterances, self.collator, self.stop, self.watcher)

    def _write_down(self, meter: Meter, samples: tuple[list[Sample], dict[str, dict[str, float]]] | None) -> None:
        values = {
            **self._state_of_training(),
            "validation_loss": self.validation,
            "validation_loss_by_task": by_task(self.validation),
            "frames_per_s": meter.frames_per_s,
            "waiting_share": meter.waiting_share,
            "left_s": meter.step_s * (self.settings.max_steps - self.step),
            **self.accounts.review(self.watcher),
        }
        if samples is not None:
            taken, values["samples"] = samples
            self.diary.samples(self.step, taken)
        self.diary.write(self.step, values)
        self.diary.passed()

    def _state_of_training(self) -> dict[str, Any]:
        """What every line of the diary has."""
        return {
            "train_loss": self.accounts.recent,
            "train_loss_by_task": by_task(self.accounts.recent),
            "learning_rate": learning_rate(self.step - 1, self.settings),
            "gradient_norm": self.accounts.gradient_norm,
        }

    def _due(self) -> bool:
        """Whether the model is validated after this step."""
        return self.step % self.settings.validate_every == 0 or self.step == self.settings.max_steps

    def _unreviewed(self) -> bool:
        """Whether the run was stopped after a step and before the end of its validation."""
        return self.step > 0 and self._due() and self.step not in self.history

    def _ended(self) -> bool:
        """Whether there are no more steps to do."""
        patience = self.settings.patience or math.inf
        return self.step >= self.settings.max_steps or validations_without_gain(self.history) >= patience

    def train_step(self, *batches: Batch) -> Losses:
        """One optimiser step on one batch, or on several as if they were one, with those of the other processes.

        Experts that they do not use keep their weights bit for bit. Where memory is used up, the batches are halved, and the step is
        that of all halves together. The losses that come back are of this process's batches, averaged over the tokens of all.

        Raises:
            SmoeError: If the memory does not suffice for one utterance, a gradient is no number, or a process has gone.
        """
        # Before anything can fail on one process alone: all then send the same number of messages.
        whole = counts_of_all(self.ranks, self.system.model, batches)
        while True:
            try:
                losses = self._gradients(batches, whole)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.divides:
                    raise out_of_memory(f"of step {self.step}") from error
            # When the error is gone, which holds what was computed.
            batches = self._halved(batches)
        if not self.divides:
            self.ranks.sum_gradients(list(self.system.model.parameters()))
        norm = clip(self.system.model, self.optimiser, self.settings.clip_norm).item()
        if not math.isfinite(norm):
            self.accounts.refuse(self.step, batches, losses, norm, lambda: self._own_norm(batches, whole))
        self.accounts.gradient_norm = norm
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.settings) * group["factor"]
        with enough_for_state(self.step):
            self.optimiser.step()
        if self.moving is not None:
            self.moving.update(self.system.model)
        return losses

    def _own_norm(self, batches: Sequence[Batch], whole: Counts | None) -> float | None:
        """The norm of the gradients of this process alone, computed once more; None in shards, where no process has its own."""
        if self.divides:
            return None
        self._gradients(batches, whole)
        return gradient_norm(self.system.model).item()

    def _gradients(self, batches: Sequence[Batch], whole: Counts | None = None) -> Losses:
        """The gradients of this process's part of a step, and its losses, averaged over ``whole`` or else over its own tokens."""
        self.system.model.train()
        # None, not zero: AdamW would move an idle expert by its momentum and weight decay.
        self.optimiser.zero_grad(set_to_none=True)
        how = self.settings, self.precision, self.tokenizer.blank_id
        return gradients_of(self.system.model, batches, self.step, self.ranks, whole, *how)

    def _halved(self, batches: Sequence[Batch]) -> tuple[Batch, ...]:
        """The same utterances in smaller batches.

        Raises:
            SmoeError: If each batch is of one utterance.
        """
        self.optimiser.zero_grad(set_to_none=True)
        parts = in_halves(batches, f"at step {self.step}", self.device)
        # Any process may have to; the others do not know.
        (self.watcher if self.ranks.leads else self.own_watcher).log(
            f"out of memory at step {self.step}: its utterances are taken in {len(parts)} parts; lower `train.batch_s`"
        )
        return parts

    def _measure(self, resume: str) -> Measured:
        """Which arithmetic, and how large a batch: as this run has measured before, or anew.

        Raises:
            Stopped: If a process was asked to stop.
        """
        of = dependence(self.config, self.tokenizer.vocab_size, self.checkpoints.fingerprint, self.ranks.size, self.device)
        known = self.ranks.from_first(lambda: recall(self.folder, of) if resume == "auto" else None)
        self.precision = known.precision if known else self.ranks.from_first(lambda: choose_precision(self.settings.precision, self.device))
        self.precision.apply()
        if self.settings.batch_s == "auto":
            self._make_batches(known.batch_s if known else self._largest_batch_s())
        return Measured(of=of, precision=self.precision, batch_s=self.batch_s)

    def _largest_batch_s(self) -> float:
        """Seconds of audio in the largest batch that the memory of every process takes; finding out leaves no trace."""
        # The optimiser has no state yet: two numbers for each weight that learns.
        state = sum(2 * weight.nbytes for weight in self.system.model.parameters() if weight.requires_grad)
        own = largest_batch_s(
            self.groups,
            self.collator,
            lambda batch: self._gradients([batch]),
            self.optimiser.zero_grad,
            state,
            Memory(self.device, self.ranks.local_size),
            self.settings,
            self.stop.flag,
            self.watcher,
        )
        least = min(largest for (largest,) in self.ranks.gather(own))
        # Who was asked to stop gave up its search; the others find out when theirs is done.
        self.stop.heed()
        return least

    def validate(self) -> dict[str, float]:
        """Cross-entropy per target token of every route on (part of) the dev split, without label smoothing.

        With `train.ema_decay`, of the averaged weights. Every process does a part of it, and has the result.

        Raises:
            Stopped: If a process was asked to stop.
            SmoeError: If a loss is no number, or a process has gone.
        """
        how = self.settings, self.batch_s, self.precision, self.tokenizer.blank_id, self.ranks, self.stop, self.watcher
        with self._averaged():
            self.validation = validation_loss(self.system.model, self.dev_groups, self.collator, *how)
        shown = "  ".join(f"{route} {loss:.3f}" for route, loss in self.validation.items())
        self.watcher.log(f"step {self.step}: validation loss per token  {shown}")
        check_finite(self.validation, self.step, self.settings, self.folder)
        return self.validation

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it, the model has its averaged weights, if it has such."""
        return nullcontext() if self.moving is None else in_place_of(self.system.model, self.moving.averages)

    # --- files -------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        system = whole_system(self.system, self.ranks.leads)
        tensors = optimiser_tensors(self.system.model, self.optimiser) | (self.moving.tensors() if self.moving is not None else {})
        tensors = gathered(tensors, self.ranks.leads)
        if system is not None:
            self._write_checkpoint(system, tensors)
        self.ranks.wait()

    def _write_checkpoint(self, system: System, tensors: dict[str, torch.Tensor]) -> None:
        state = {
            **self.accounts.state(),
            "precision": asdict(self.precision),
            "batch_s": self.batch_s,
            "epochs": self.batches.epochs,
            "validation": {str(step): loss for step, loss in self.history.items()},
        }
        needed = chosen_steps(self.settings.average, self.history)
        self.checkpoints.save(self.step, system, Position(tensors, state), needed)

    def _save_final(self) -> None:
        """Write the model."""
        steps = {self.checkpoints.at(step): step for step in chosen_steps(self.settings.average, self.history)}
        mean, taken = mean_weights(list(steps), self.system.model, self.ranks, self.stop, self.watcher)
        self.averaged, self.left_out = ([step for folder, step in steps.items() if (folder in taken) == wanted] for wanted in (True, False))
        if not taken:
            if steps:
                self.watcher.log("warning: no checkpoint is left to average: the model has the last weights")
                self.validate()
            with self._averaged():
                self._write_final()
            return
        self.watcher.log(f"the model is the mean of the checkpoints of steps {', '.join(map(str, self.averaged))}")
        with in_place_of(self.system.model, mean):
            values = {"averaged": self.averaged, "validation_loss": self.validate()}
            if self.ranks.leads:
                self.diary.write(self.step, values)
            self._write_final()

    def _write_final(self) -> None:
        system = whole_system(self.system, self.ranks.leads)
        if system is not None:
            checkpoint.save(self.folder / FINAL, system)

    def _start(self) -> None:
        """Take the weights of another model, if the recipe starts from one."""
        if self.settings.init_from is not None:
            upcycling.start_from(self.settings.init_from, self.system, self.watcher)
        self._own_weights(self.divides)

    def _own_weights(self, in_shards: bool) -> None:
        """The model has new tensors; optimiser and moving average must be of those, or of this process's parts."""
        freeze(self.system.model, self.settings.freeze)
        check_all_learn(self.system.model, self.plan, self.settings)
        if in_shards:
            self.ranks.same("weights", lambda: weights_digest(self.system.model), DRIFTED)
            divide(self.system.model, self.ranks.gradients, self.device)
            self.watcher.log(f"weights in shards: each of {self.ranks.size} processes holds its part of them and of the optimiser's state")
        elif not self.divides:
            self.system.model.to(self.device)
        self.optimiser = make_optimiser(self.system.model, self.settings)
        self.moving = MovingAverage(self.system.model, self.settings.ema_decay) if self.settings.ema_decay else None

    def _resume(self) -> int | None:
        """Continue from the newest checkpoint that is whole."""
        found = self.checkpoints.newest(self.system, self.watcher)
        self.ranks.same("a newest checkpoint", lambda: found and found.folder.name, SHARED)
        if found is None:
            return None
        folder, saved, position = found
        checkpoint.load_weights(self.system.model, saved.model.state_dict(), self.config.model.tie_embeddings, str(folder))
        self._own_weights(self.divides)
        self.system.origin = saved.origin
        restore_optimiser(self.system.model, self.optimiser, position.tensors)
        if self.moving is not None:
            self.moving.restore(position.tensors)
        # The same arithmetic as before, or the weights would not be the same.
        self.precision = Precision(**position.state["precision"])
        self.step = int(position.state["step"])
        self.accounts.restore(position.state)
        if self.settings.batch_s == "auto":
            self._make_batches(position.state["batch_s"])
        self.batches.epochs = position.state.get("epochs", {})
        self.history = {int(step): loss for step, loss in position.state.get("validation", {}).items()}
        self.watcher.log(f"continuing from step {self.step} (`{folder}`)")
        return self.step
