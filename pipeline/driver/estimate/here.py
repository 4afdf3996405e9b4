"""What this machine has for a run that stays on it: cores, GPUs, memory, and what they are called.

In: nothing. Out: numbers and names, as Ray would count them. torch and ray are not imported. Cost:
a few reads below /proc.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
from pathlib import Path

from pipeline.job.cpu_features import cpu_name

__all__ = ["Here", "this_machine"]


@dataclasses.dataclass(frozen=True)
class Here:
    """gpu_name: of the first GPU, None without one or where its driver does not say."""

    cpus: int
    gpus: int
    cpu_name: str
    gpu_name: str | None
    memory_bytes: int


def this_machine() -> Here:
    return Here(
        cpus=_cpus(),
        gpus=len(glob.glob("/dev/nvidia[0-9]*")),
        cpu_name=cpu_name(),
        gpu_name=_gpu_name(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _cpus() -> int:
    """Cores that this process may use: fewer than the machine's in a container with a quota."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(len(os.sched_getaffinity(0)), round(int(quota) / int(period))))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_name() -> str | None:
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        with contextlib.suppress(OSError):
            if match := re.search(r"^Model:\s*(.+)$", Path(path).read_text(), re.M):
                return match[1].strip()
    return None
