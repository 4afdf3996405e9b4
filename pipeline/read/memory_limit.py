"""A limit on what a library may allocate: for decoders that believe the sizes that a file claims.

The limit is the kernel's, RLIMIT_DATA: what this process may map privately, counted when it is
mapped and not when it is touched. An allocation beyond it fails, and the library raises. It holds
for the whole process while a step is computed, so one step at a time is. Cost: about 15
microseconds a step.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_ONE = threading.Lock()


def limited(steps: Iterator[T], n_bytes: int) -> Iterator[T]:
    """The items of `steps`, while the process grows by at most `n_bytes` for each. Without a limit
    elsewhere than on Linux."""
    while True:
        with _ONE:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if sys.platform == "linux":
                mapped = (
                    int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
                )
                lowest = min(
                    (known for known in (soft, hard) if known != resource.RLIM_INFINITY),
                    default=mapped + n_bytes,
                )
                resource.setrlimit(resource.RLIMIT_DATA, (min(lowest, mapped + n_bytes), hard))
            try:
                step = next(steps, None)
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        if step is None:
            return
        yield step
