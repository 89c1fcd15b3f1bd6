"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

# From malloc.h; Python has no names for them.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER, MORE_BYTES = -1, 64 * 2**20


def keep_memory() -> bool:
    """Let glibc keep what is freed, instead of handing large blocks back to the system.

    Every step allocates the same tensors again. By default each of them is mapped anew, and the system clears its pages one by one: a
    million of them in a step of the model at paper scale, an eighth of its time. The most memory that is ever in use stays the same; the
    process has it to its end.

    Returns:
        Whether it does; elsewhere than on glibc nothing changes.
    """
    return all(mallopt(what, value) for what, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, MORE_BYTES)))


def mallopt(what: int, value: int) -> bool:
    """Set an option of glibc's allocator; false elsewhere than on glibc, or if it refuses."""
    function = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return function is not None and bool(function(what, value))
