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
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

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


def _mapped_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
