"""The process that imports once what every worker of a run needs, and forks them.

In: a socket, where `worker.py` asks for a worker. Out: for each request a fork of this process that
runs Ray's worker program. Method: a fork shares what is imported, so a worker starts in 0.1 s of
CPU where it took one to two seconds. This process computes nothing before it forks. It ends with
the driver, which holds its standard input, and with the raylet. Cost: the imports of an embedder,
2 s of CPU, while Ray starts.

What a fork of Ray 2.60 must not share is in `own_state.py`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.driver.cluster.forks import own_state

__all__ = ["import_modules", "serve"]

_MODULES = (
    "ray._private.workers.default_worker",
    "ray.data",
    "pipeline.workers.stages",
    "pipeline.embed.loading",
)
_MAX_REQUEST_BYTES = 1 << 24
_REQUEST_S = 5.0


class _Request(NamedTuple):
    """connection: to `worker.py`. files: its standard files. facts: what it says of itself."""

    connection: socket.socket
    files: list[int]
    facts: dict[str, Any]


def serve(address: str) -> None:
    """Returns in a forked worker alone, once it has ended, or where nothing can be forked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    import_modules()
    if not own_state.differs_in_forks():
        logging.warning("Workers are not forked, because forks draw the same ids.")
        return
    signal.signal(signal.SIGCHLD, _bury)
    ends = [sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select([listener, *ends], [], [])
        if not set(ready).isdisjoint(ends):
            shutil.rmtree(Path(address).parent, ignore_errors=True)
            os._exit(0)
        request = _received(listener.accept()[0])
        if request is None:
            continue
        if len(ends) == 1:
            ends.append(os.pidfd_open(own_state.raylet_of(request.facts["environment"])))
        if os.fork() == 0:
            listener.close()
            os.close(ends[1])
            _become_worker(request)
            return
        request.connection.close()
        for file in request.files:
            os.close(file)


def import_modules() -> None:
    """What workers need, ready to be forked."""
    gc.disable()
    own_state.prepare()
    with own_state.no_ids_drawn():
        for module in _MODULES:
            importlib.import_module(module)
    gc.freeze()  # nothing writes to the pages of what stays, so they stay shared


def _received(connection: socket.socket) -> _Request | None:
    """What `worker.py` asks for, or None for what cannot be forked here: it then becomes the worker
    itself."""
    files: list[int] = []
    try:
        connection.settimeout(_REQUEST_S)
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as stream:
            facts = json.loads(stream.read(_MAX_REQUEST_BYTES))
        if own_state.is_of_this_job(facts["environment"]):
            return _Request(connection, files, facts)
    except (OSError, ValueError):
        pass
    connection.close()
    for file in files:
        os.close(file)
    return None


def _bury(*_: object) -> None:
    """A dead worker that is not waited for would seem alive to Ray."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_worker(request: _Request) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        facts = request.facts
        os.setpgid(0, 0)  # Ray ends what is left of a worker's group together with the worker
        for number, file in enumerate(request.files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(facts["environment"])
        os.chdir(facts["folder"])
        os.nice(facts["niceness"] - os.nice(0))
        signal.pthread_sigmask(signal.SIG_SETMASK, facts["blocked_signals"])
        sys.argv = facts["command"]
        own_state.read_environment()
        request.connection.sendall(b"1")
        request.connection.close()
    except BaseException:  # noqa: BLE001 - `worker.py` becomes the worker itself
        os._exit(1)
    gc.enable()
    runpy.run_path(sys.argv[0], run_name="__main__")
