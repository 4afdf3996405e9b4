"""Figures of processes and folders for benchmarks, read from /proc and the disk."""

from __future__ import annotations

import contextlib
import os
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
