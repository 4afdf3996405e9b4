"""The template of a run's workers: started, told to Ray, and ended.

In: a Ray that is about to start on this machine. Out: a process that forks its workers, and the
command of its raylet with the programs of this folder in place of Ray's. A command that does not
look as expected is left as it is, and costs what Ray costs. Cost: see `template.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

__all__ = ["end_template", "lean_command", "start_template"]

_FOLDER = Path(__file__).parent
_MAX_FOLDER_BYTES = 80
"""The name of a socket has 107 bytes at most."""
_PROGRAM = Path("_private", "workers", "default_worker.py")
"""What Ray starts for a worker, in its package."""
_PORTS = {
    "dashboard_agent_command": (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
    ),
    "runtime_env_agent_command": ("runtime_env_agent_port",),
}
"""Options of a raylet that start an agent, and the ports that it then waits for."""


_running: list[tuple[subprocess.Popen[bytes], str]] = []
"""The template of this process, if it has one, and the folder of its socket."""


def start_template(import_path: Sequence[str], log: Path) -> str:
    """Returns the address of its socket. import_path: folders that workers import from first. log:
    the file for what it prints."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > _MAX_FOLDER_BYTES:
        place = "/tmp"  # noqa: S108 - mkdtemp makes a folder that only this user can enter
    folder = tempfile.mkdtemp(prefix="corpus-embed-", dir=place)
    address = os.path.join(folder, "socket")
    code = (
        f"import sys; sys.path[:0] = {list(import_path)!r}; "
        f"from {__package__}.template import serve; serve({address!r})"
    )
    with log.open("ab") as messages:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with code of ours
            [sys.executable, "-P", "-c", code],
            env={"OMP_NUM_THREADS": "1", **os.environ},  # as Ray sets it in its workers
            stdin=subprocess.PIPE,
            stdout=messages,
            stderr=messages,
            start_new_session=True,  # Ctrl-C is for the driver
        )
    _running.append((process, folder))
    # its workers would take it for alive until somebody waits for it
    threading.Thread(target=process.wait, name="template", daemon=True).start()
    return address


def end_template() -> None:
    """Its workers end with their Ray."""
    while _running:
        process, folder = _running.pop()
        assert process.stdin is not None  # noqa: S101 - for mypy
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


def lean_command(command: Sequence[str], address: str | None) -> list[str]:
    """The command of a raylet whose agents are stand-ins, and whose workers are forked by the
    template at `address`, if any."""
    options = dict(argument[2:].split("=", 1) for argument in command[1:] if "=" in argument)
    for name, ports in _PORTS.items():
        if name in options:
            options[name] = _agent(options, ports)
    if address:
        options["python_worker_command"] = _forked(options["python_worker_command"], address)
        options["num_prestart_python_workers"] = "0"  # they would belong to no job yet
    return [_with_option(argument, options) for argument in command]


def _with_option(argument: str, options: dict[str, str]) -> str:
    name, equals, _ = argument[2:].partition("=")
    return f"--{name}={options[name]}" if equals and name in options else argument


def _agent(options: dict[str, str], ports: Sequence[str]) -> str:
    folder = options["session_dir"]
    files = [f"--file={folder}/{port}_{options['node_id']}" for port in ports]
    return subprocess.list2cmdline([sys.executable, "-I", "-S", str(_FOLDER / "agent.py"), *files])


def _forked(command: str, address: str) -> str:
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None  # noqa: S101 - for mypy: Ray is starting
    program = str(Path(spec.origin).parent / _PROGRAM)
    words = [str(_FOLDER / "worker.py"), address, program]
    return command.replace(subprocess.list2cmdline([program]), subprocess.list2cmdline(words), 1)
