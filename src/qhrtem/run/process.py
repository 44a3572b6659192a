"""Settings of the process that a command runs in; a library user decides on these for himself."""

from __future__ import annotations

import ctypes
import sys

import torch
from threadpoolctl import threadpool_info, threadpool_limits

# <malloc.h> of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BLOCKS = 32 * 1024 * 1024  # bytes; the largest threshold it accepts on 64-bit systems
KEEP_HEAP = 2**31 - 1  # bytes


def prepare(threads: int | None = None) -> None:
    """Give transforms and matrix algebra one thread each and let the allocator keep freed memory.

    threads: of matrix algebra, where they must be as many as in an earlier process; sums are split between
    them, so their number shows in the last bits.

    Threads inside a small transform or solution wait for each other when cores are shared, so parallel work
    is spread over columns instead. A wave of some megabytes that goes back to the system at every step costs
    as much in page faults as its transform does.
    """
    torch.set_num_threads(1)
    threadpool_limits(threads or 1, user_api="blas")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent outside the GNU C library
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, KEEP_BLOCKS)
            mallopt(M_TRIM_THRESHOLD, KEEP_HEAP)


def algebra_threads() -> int:
    """Return how many threads matrix algebra takes in this process."""
    return max(
        (int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"), default=1
    )
