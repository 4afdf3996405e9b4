"""Figures of processes and folders for benchmarks, read from /proc and the disk."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import status_of


def rss_mib(pid: int) -> float:
    """The resident memory of a process. Raises OSError when it has ended."""
    return int(status_of(pid)["VmRSS"].split()[0]) / 1024


def private_mib(pid: int) -> float:
    """The memory that a process shares with nobody; 0 when it has ended."""
    with contextlib.suppress(OSError, KeyError):
        return int(status_of(pid)["RssAnon"].split()[0]) / 1024
    return 0.0


def process_figures(pid: int, name: str) -> dict[str, float]:
    """Memory and open files of a process, with its name in the keys."""
    return {
        f"{name}: RSS MiB": rss_mib(pid),
        f"{name}: open files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@contextlib.contextmanager
def measured(label: str, n_items: int) -> Iterator[None]:
    """Print the time, the CPU time per item, and the memory of this process for a block of code."""
    before_mib = rss_mib(os.getpid())
    start = time.perf_counter()
    cpu_start = time.process_time()
    yield
    seconds = time.perf_counter() - start
    cpu_s = time.process_time() - cpu_start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{label}: {seconds:.1f} s, {cpu_s:.1f} s of CPU ({cpu_s / n_items * 1e6:.0f} µs each), "
        f"memory {before_mib:.0f} → {rss_mib(os.getpid()):.0f} MiB, peak {peak_mib:.0f}",
        flush=True,
    )
