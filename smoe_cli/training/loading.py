"""Batches for the loop: what makes them, and in which order; collated in worker processes, from any step on."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from lhotse import CutSet, MonoCut
from torch.utils.data import DataLoader

from smoe_cli.augmentation import Augmentation, Masking
from smoe_cli.batching import Batch, Collator, RouteBatches
from smoe_cli.config import Config
from smoe_cli.cut_table import CutTable, Stub, number_of
from smoe_cli.errors import SmoeError
from smoe_cli.feature_store import FeatureStore
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import Route
from smoe_cli.tokenizer import Tokenizer
from smoe_cli.train_settings import AugmentSettings
from smoe_cli.training.guard import leave_locks
from smoe_cli.watch import Watcher

STOPS = (signal.SIGINT, signal.SIGTERM)
LOST = re.compile(r"DataLoader worker \(pid|Pin memory thread exited")
"""In the message of torch's error when a loader process has ended by itself."""


def feed(
    collator: Collator,
    batches: RouteBatches,
    step: int,
    per_step: int,
    workers: int,
    rank: int = 0,
    size: int = 1,
    stop: threading.Event | None = None,
    pin: bool = False,
) -> Generator[tuple[Batch, ...], None, None]:
    """The batches of each step from ``step`` on, ``per_step`` of one route each.

    Args:
        workers: Processes that read and collate; 0: this one.
        rank, size: This is one of ``size`` training processes: of ``size * per_step`` batches it has every ``size``-th.
        stop: Whether training is to stop; the batches of a single process then end, should a worker end.
        pin: Whether they lie in pinned memory, for a GPU; with workers, a thread sees to that ahead of the step that needs them.

    Raises:
        SmoeError: If a batch cannot be made, or a worker has ended.
    """
    with _unheard(), warnings.catch_warnings():
        # How many processes read is the user's choice, also where torch would take fewer.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(
            CutBatches(collator, table_of(batches)),
            sampler=From(batches, step, per_step, rank, size),
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=False,
            worker_init_fn=obey_the_trainer_alone,
        )
        made = map(_sound, iter(loader))
    with workers_noticed():
        try:
            yield from zip(*[made] * per_step, strict=True)
        except RuntimeError as error:
            # Other processes would wait for this one's step.
            if size > 1 or stop is None or not stop.is_set() or not LOST.search(str(error)):
                raise


@contextmanager
def _unheard() -> Iterator[None]:
    """Within it, no signal asks this thread to stop, nor the processes that it starts, until they let themselves be asked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_the_trainer_alone(worker: int) -> None:
    """In a loader process: only the training process may end it.

    Who stops a run often tells all of its processes (Ctrl-C, `timeout`, torchrun, Slurm): a loader that obeyed would take the batches away
    that the trainer needs to finish its step. That it ends after the trainer, however that ends, is torch's own doing: it looks every 5 s.
    """
    del worker
    leave_locks()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # for processes that do not begin as a copy of the trainer

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def workers_noticed() -> Iterator[None]:
    """Within it, the error of a loader process that has ended says what to do; torch may raise it at any moment.

    Raises:
        SmoeError: If one has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise SmoeError(
            f"a process that loads data has ended: {str(error).splitlines()[0].strip()}",
            "most often memory is used up, or `/dev/shm` is too small: lower `train.workers` or `train.batch_s`; the same command goes on "
            "from the last checkpoint",
            own=True,
        ) from error


def collator_of(config: Config, tokenizer: Tokenizer, plan: RoutingPlan) -> Collator:
    """What makes the batches of a recipe from its cuts."""
    augment, features = config.train.augment, config.features
    augmentation = Augmentation(augment, features.sample_rate_hz, config.train.seed) if augment != AugmentSettings() else None
    store = FeatureStore(Layout.of(config).features, features) if features.stored else None
    masks = config.train.time_warp_frames or config.train.time_masks or config.train.frequency_masks
    masking = Masking(config.train) if masks else None
    return Collator(FrontEnd(features, store=store), tokenizer, plan, config.model.max_tokens, augmentation, masking)


def batches_of(config: Config, groups: dict[Route, CutSet], batch_s: float, watcher: Watcher) -> RouteBatches:
    """The batches of a recipe's training cuts, in their order; says how corpora are blended.

    Args:
        groups: Route -> its training cuts.
        batch_s: Seconds of audio in one, padding included.
        watcher: Told of blended corpora.

    Raises:
        DataError: If a cut alone is longer than its part of a batch, or a corpus with a weight has no cut.
    """
    settings = config.train
    batches = RouteBatches(
        groups,
        batch_s,
        settings.max_utterances,
        settings.seed,
        settings.temperature,
        settings.route_weights,
        config.corpus_weights(),
        settings.corpus_temperature,
        settings.turns_per_batch,
    )
    for route, shares in batches.corpus_shares.items():
        watcher.log(f"{route}: " + ", ".join(f"{share:.0%} of the batches from `{name}`" for name, share in shares.items()))
    return batches


def _sound(batch: Batch | SmoeError) -> Batch:
    if isinstance(batch, SmoeError):
        batch.own = True
        raise batch
    return batch


class CutBatches(torch.utils.data.Dataset[Batch | SmoeError]):
    """Lets loader workers collate: the "index" is the batch's number, and its list of cuts or of their numbers in a table."""

    def __init__(self, collator: Collator, table: CutTable | None) -> None:
        self.collator, self.table = collator, table

    def __getitem__(self, index: tuple[int, list[MonoCut | int]]) -> Batch | SmoeError:
        """The batch, or what is wrong with it: raised in a worker, an error would come back as a traceback."""
        number, cuts = index
        try:
            return self.collator([self.table[cut] if self.table is not None and isinstance(cut, int) else cut for cut in cuts], number)
        except SmoeError as error:
            return error


class From:
    """The batch stream from a step on, as the loader's sampler; ``per_step`` batches for each step and process."""

    def __init__(self, batches: RouteBatches, step: int, per_step: int, rank: int = 0, size: int = 1) -> None:
        self.batches, self.step, self.per_step, self.rank, self.size = batches, step, per_step, rank, size

    def __iter__(self) -> Iterator[tuple[int, list[MonoCut | int]]]:
        of_a_step = self.size * self.per_step
        numbered = enumerate(self.batches.stream(self.step, of_a_step), start=self.step * of_a_step)
        for number, cuts in islice(numbered, self.rank, None, self.size):
            # A stub knows its table, and must not take it along to another process.
            yield number, [number_of(cut) if isinstance(cut, Stub) else cut for cut in cuts]


def table_of(batches: RouteBatches) -> CutTable | None:
    """The table that stubs are looked up in; None where the cuts are whole."""
    first = next(iter(next(iter(batches.groups.values()))))
    return first.table if isinstance(first, Stub) else None
