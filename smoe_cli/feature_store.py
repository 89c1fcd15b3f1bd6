"""Features on disk, for trainings that would compute the same again and again."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lhotse import MonoCut
from pydantic import Field
from torch import Tensor

from smoe_cli.config import FEATURE_HANDLING, Config, FeatureSettings
from smoe_cli.cuts import stream_manifest
from smoe_cli.errors import DataError
from smoe_cli.features import FrontEnd, Key
from smoe_cli.layout import Layout
from smoe_cli.manifests import read_lines
from smoe_cli.records import Record, write_atomically
from smoe_cli.watch import Watcher

CHUNK = 64
"""Cuts that a process is handed at once."""


class FeaturesReport(Record):
    """What `smoe features` computed."""

    folder: Path
    cuts: int
    stored: int = Field(description="Utterances and bands in the store; the tasks of one share its features.")
    computed: int = Field(description="Of them, those that were not there before.")
    bytes: int = Field(description="Size of these on disk.")


class FeatureStore:
    """Features by what they were computed of: settings, the file as it is, the part of it, and what was done to the audio.

    Args:
        folder: Of the store; other settings have another one in it.
        settings: Of the features.
    """

    def __init__(self, folder: Path, settings: FeatureSettings) -> None:
        what = json.dumps(settings.model_dump(exclude=FEATURE_HANDLING), sort_keys=True)
        self.folder = folder / blake2b(what.encode(), digest_size=4).hexdigest()

    def path(self, key: Key) -> Path:
        """Where the features of a cut lie, or will."""
        try:
            found = Path(key[0]).stat()
            state = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            state = "gone"  # which reading it will say
        name = blake2b(f"{key} {state}".encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"

    def get(self, key: Key) -> Tensor | None:
        """Features (T,F), float16; None: they were never computed.

        Raises:
            DataError: If they are damaged.
        """
        path = self.path(key)
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"cannot read stored features `{path}`: {error}", "remove the file; it is computed again") from error

    def put(self, key: Key, features: Tensor) -> int:
        """Keep features, whole or not at all; returns the bytes that they take.

        Raises:
            DataError: If the folder cannot be written or the disk is full.
        """
        content = io.BytesIO()
        np.save(content, features.numpy(), allow_pickle=False)
        write_atomically(self.path(key), content.getvalue())
        return content.tell()


def fill(config: Config, splits: Sequence[str], jobs: int, watcher: Watcher) -> FeaturesReport:
    """Compute what the store of a recipe lacks, in several processes. A call that was stopped goes on where it was.

    Args:
        splits: Whose cuts; those without a manifest are passed over.
        jobs: Processes.

    Raises:
        DataError: If there is no manifest, audio cannot be read, or the store cannot be written.
    """
    layout = Layout.of(config)
    paths = [path for split in splits if (path := layout.cuts(split)).exists()]
    if not paths:
        raise DataError(f"no manifests in `{layout.cuts_dir}`", "run `smoe prepare` first")
    if not config.features.stored:
        watcher.log("note: training computes features anew unless the recipe says `features.stored: true`")
    store = FeatureStore(layout.features, config.features)
    total = sum(1 for path in paths for _ in read_lines(path))
    counts = {"cuts": 0, "stored": 0, "computed": 0, "bytes": 0}
    # Forked processes would inherit threads of torch in the middle of something.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (store, config.features)) as pool:
        chunks = _chunks(_once(paths, counts, store))
        # A pool takes all that it can get: a few at a time, so that a large manifest stays on disk.
        while some := list(islice(chunks, 4 * jobs)):
            for found in pool.map(_compute, some):
                if isinstance(found, tuple):
                    raise DataError(*found)
                counts["computed"] += len(found)
                counts["bytes"] += sum(found)
            watcher.progress("features computed", counts["cuts"], total)
    return FeaturesReport(folder=store.folder, **counts)


def _once(paths: Iterable[Path], counts: dict[str, int], store: FeatureStore) -> Iterator[MonoCut]:
    """One cut of each utterance and band, if its features are not there."""
    seen: set[bytes] = set()
    for path in paths:
        for cut in stream_manifest(path):
            counts["cuts"] += 1
            place = store.path(FrontEnd.key(cut))
            digest = place.name.encode()
            if digest in seen:
                continue
            seen.add(digest)
            counts["stored"] += 1
            if not place.exists():
                yield cut


def _chunks(cuts: Iterator[MonoCut]) -> Iterator[list[MonoCut]]:
    while some := list(islice(cuts, CHUNK)):
        yield some


_WORKER: dict[str, FrontEnd] = {}


def _start(store: FeatureStore, settings: FeatureSettings) -> None:
    """What each process does first."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    _WORKER["front"] = FrontEnd(settings, cache_mb=0, store=store)


def _compute(cuts: list[MonoCut]) -> list[int] | tuple[str, str]:
    """Compute and keep the features of some cuts; returns the bytes of each, or what is wrong and the cure."""
    front = _WORKER["front"]
    try:
        return [front.keep(cut) for cut in cuts]
    except DataError as error:
        return error.message, error.hint
