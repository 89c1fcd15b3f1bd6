"""A Dask cluster as an executor, for work that is done recording by recording."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from smoe_cli.errors import ConfigError, SmoeError

TIMEOUT_S = 20


class Cluster(NamedTuple):
    """A cluster that answers, and how many recordings its workers read at once."""

    executor: Executor
    readers: int


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to a running scheduler; its workers need smoe installed, and the same paths to the audio.

    Args:
        address: As `dask scheduler` prints it, for example `tcp://host:8786`.

    Raises:
        ConfigError: If dask is not installed, or nobody answers there.
        SmoeError: If the cluster is lost on the way.
    """
    try:
        dask = import_module("dask.distributed")
    except ImportError:
        raise ConfigError("not installed: dask", "pip install 'smoe[dask]'") from None
    try:
        client = dask.Client(address, timeout=TIMEOUT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at `{address}`: {error}", "start one with `dask scheduler`, or correct --cluster"
        ) from error
    try:
        # Workers may come later.
        yield Cluster(client.get_executor(), sum(client.nthreads().values()) or 1)
    except (dask.KilledWorker, dask.CancelledError) as error:
        raise SmoeError(f"the cluster at `{address}` was lost: {error}", "run the command again; it goes on where it was") from error
    finally:
        client.close()
