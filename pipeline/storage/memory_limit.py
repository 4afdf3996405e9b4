"""A limit on what a library may allocate, for decoders that believe the sizes that a file claims.

The limit is the kernel's, RLIMIT_DATA: what this process can map privately, counted when it is
mapped and not when it is touched. An allocation beyond it fails, and the library raises an error.
It holds for the whole process while a step is computed, so only one step is computed at a time.
Cost: about 15 microseconds a step.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")

MIN_GROWTH_BYTES = 512 << 20
MAX_RATIO = 100
"""Manifests, which compress best of what lies under `_meta`, take a tenth of their size."""

_LIMIT_LOCK = threading.Lock()


def limited(steps: Iterator[T], max_growth_bytes: int) -> Iterator[T]:
    """The items of `steps`; while each is computed, the process can grow by at most
    `max_growth_bytes`. Only Linux has the limit."""
    while True:
        with _LIMIT_LOCK:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if sys.platform == "linux":
                limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
                limits.append(_mapped_bytes() + max_growth_bytes)
                resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
            try:
                step = next(steps, None)
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        if step is None:
            return
        yield step


def within_memory(read: Callable[[], T], n_bytes: int) -> T:
    """The result of reading a table of `n_bytes`, in which pages can claim gigabytes. Raises
    pa.ArrowInvalid when that takes more than MIN_GROWTH_BYTES and MAX_RATIO times its size."""
    try:
        return next(limited((read() for _ in range(1)), MIN_GROWTH_BYTES + MAX_RATIO * n_bytes))
    except MemoryError as error:
        raise pa.ArrowInvalid(f"it claims more than its {n_bytes} bytes can hold") from error


def _mapped_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
