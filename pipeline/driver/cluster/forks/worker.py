"""What Ray starts in place of its worker program: it has the template fork a worker, and where that
fails it becomes the worker itself.

    python worker.py SOCKET PROGRAM ARGUMENTS...

In: the socket of a template (`template.py`), and Ray's own command. Out: a worker, here or forked,
with the environment, folder, files, priority and signals of this process. Cost: 0.03 s of CPU, and
no import of this package.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

__all__ = ["main"]

_PATIENCE_S = 30.0
"""How long a template may import and fork; Ray gives a worker a minute to report."""


def main() -> None:
    address, *command = sys.argv[1:]
    if not _is_forked(address, command):
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 - Ray's own command


def _is_forked(address: str, command: list[str]) -> bool:
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "blocked_signals": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "niceness": os.nice(0),
    }
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE_S)
            connection.connect(address)
            socket.send_fds(connection, [b"0"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    main()
