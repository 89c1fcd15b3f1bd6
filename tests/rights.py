"""Rights of files and folders that count in tests, whoever runs them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSION, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 0x20080522, 1, 2


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """Nobody may read a file, or enter and read a folder; root gives up its right to ignore that, in this thread and those it starts."""
    libc, header, capabilities = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    mode = path.stat().st_mode
    path.chmod(0)
    libc.capget(header, capabilities)
    before = list(capabilities)
    capabilities[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    libc.capset(header, capabilities)
    try:
        if os.access(path, os.R_OK, effective_ids=True):
            pytest.skip("this user may read everything and cannot give up that right")
        yield
    finally:
        capabilities[:] = before
        libc.capset(header, capabilities)
        path.chmod(mode)
