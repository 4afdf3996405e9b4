"""Stands in for an agent of Ray that nobody asks: says that its services are not there, and waits.

    python agent.py --file=PORT_FILE... OTHERS...

In: the files in which the raylet waits for the ports of an agent; what else the raylet adds is
ignored. Out: these files, with Ray's own word for a service that is not there, and a process that
ends with the raylet, as the raylet ends with an agent. Cost: 0.01 s of CPU; Ray's two agents take
1.5 s, and the raylet waits for them.
"""

from __future__ import annotations

import os
import sys
import time

__all__ = ["main"]

_FILE = "--file="
_NOT_THERE = "-1"
_POLL_S = 1.0


def main() -> None:
    raylet = int(os.environ["RAY_RAYLET_PID"])
    for argument in sys.argv[1:]:
        if argument.startswith(_FILE):
            _write(argument.removeprefix(_FILE))
    while os.getppid() == raylet:
        time.sleep(_POLL_S)


def _write(path: str) -> None:
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w", encoding="ascii") as file:
        file.write(_NOT_THERE)
    os.replace(draft, path)


if __name__ == "__main__":
    main()
