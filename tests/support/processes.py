"""The processes below one of ours, by what they call themselves: the victims of kill tests.

In: the pid of a driver. Out: pids. Read from /proc; Ray sets a worker's title to what it runs at
the moment. `printed_by` runs code in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests import ROOT


def below(pid: int) -> dict[int, str]:
    """Command lines of all descendants of `pid`."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
    command_lines: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in [child for child, its_parent in parents.items() if its_parent == parent]:
            with contextlib.suppress(OSError):
                command_lines[child] = (
                    Path(f"/proc/{child}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
            waiting.append(child)
    return command_lines


def named(pid: int, name: str) -> list[int]:
    """Descendants of `pid` with `name` in their title."""
    return [child for child, title in below(pid).items() if name in title]


def kill_when_seen(pid: int, name: str, deadline_s: float = 120) -> int:
    """SIGKILL the first descendant with `name` in its title; returns its pid, 0 when none came."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        for victim in named(pid, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                return victim
        time.sleep(0.02)
    return 0


class Killer(threading.Thread):
    """Kills descendants of `pid` one after another, of the kinds in `names` in turn, at seeded
    random moments."""

    def __init__(self, pid: int, names: list[str], n_kills: int, seed: int, pause_s: float) -> None:
        super().__init__(name="killer", daemon=True)
        self._pid, self._chance, self._pause_s = pid, random.Random(seed), pause_s
        self._names = [names[n % len(names)] for n in range(n_kills)]
        self._chance.shuffle(self._names)
        self.killed: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        for name in self._names:
            while not self.stopped.is_set() and not kill_when_seen(self._pid, name, 1):
                pass
            self.killed += [name] * (not self.stopped.is_set())
            self.stopped.wait(self._chance.uniform(0, self._pause_s))


def status_of(pid: int) -> dict[str, str]:
    """What /proc says of a process, by field. Raises OSError when it ended."""
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def printed_by(
    code: str,
    *arguments: str,
    timeout_s: float = 120,
    environment: Mapping[str, str | None] = {},
) -> str:
    """What `code` prints in an interpreter of its own, at the root of the repository; the test
    fails where it does not end well. environment: variables beside those of this process; None
    takes one away."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done.stdout
