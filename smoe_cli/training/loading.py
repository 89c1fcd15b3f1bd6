"""The stream of batches as torch's loader wants it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lhotse import MonoCut

from smoe_cli.batching import Batch, Collator, RouteBatches
from smoe_cli.errors import SmoeError


class CutBatches(torch.utils.data.Dataset[Batch | SmoeError]):
    """Lets loader workers collate: the "index" is the batch's list of cuts."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __getitem__(self, cuts: list[MonoCut]) -> Batch | SmoeError:
        """The batch, or what is wrong with it: raised in a worker, an error would come back as a traceback."""
        try:
            return self.collator(cuts)
        except SmoeError as error:
            return error


class From:
    """The batch stream from a step on, as the loader's sampler."""

    def __init__(self, batches: RouteBatches, step: int) -> None:
        self.batches, self.step = batches, step

    def __iter__(self) -> Iterator[list[MonoCut]]:
        return self.batches.stream(self.step)
