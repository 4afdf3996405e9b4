"""Joining a Ray cluster, or starting one on this machine, and leaving it again.

In: the address of a cluster, or none. Out: a process that is connected to it, or ClusterError.
Method: `ray.init`, with Ray's own messages in a file, signals held back while it works, and workers
that import what this process imports. Cost: 3 s to start a cluster on an idle machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.driver.cluster.forks.start import end_template, start_template
from pipeline.driver.cluster.own_ray import SWITCH, can_fork, replaced, without_services
from pipeline.driver.interrupts import held_back
from pipeline.driver.planning.places import is_connected
from pipeline.errors import ClusterError
from pipeline.storage.caches import writable_folder
from pipeline.storage.filesystems import reason
from pipeline.storage.garbage import uncollected

if TYPE_CHECKING:
    from ray.job_config import JobConfig


def log_path() -> Path:
    """The file that Ray's own messages go to: `ray.log` in CORPUS_EMBED_LOG_DIR, by default in the
    cache folder `logs`."""
    if chosen := os.environ.get("CORPUS_EMBED_LOG_DIR"):
        Path(chosen).mkdir(parents=True, exist_ok=True)
    return (Path(chosen) if chosen else writable_folder("logs")) / "ray.log"


_connections: list[str] = []
"""The address that `connect` has joined, if any; "local" for a cluster that it has started."""


def is_own() -> bool:
    """Whether `connect` has started the cluster that this process is connected to."""
    return _connections == ["local"] and is_connected()


def disconnect() -> None:
    """Undo `connect`. Otherwise Ray reports dead workers on standard output, even while Python
    exits.
    """
    if _connections:
        import ray

        _connections.clear()
        with held_back():
            ray.shutdown()
            end_template()


def connect(
    address: str | None,
    meanwhile: Callable[[], object] = lambda: None,
    *,
    is_forking: bool = False,
) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start one on this machine. Idempotent.

    meanwhile: imports what comes next, in a thread, because Ray's processes start for seconds.
    is_forking: whether workers of a cluster that is started may be forks of one process.
    Workers of a cluster get the CORPUS_EMBED_* settings of this process; their credentials come
    from their own environment or role. Raises ClusterError.
    """
    if is_connected():
        return
    end_template()
    # Without an address Ray would join any cluster that runs on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    remote = address != "local"
    settings = {
        name: value for name, value in os.environ.items() if name.startswith("CORPUS_EMBED_")
    }
    # Ray's C++ side would write over the progress display.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # How often a task is retried that was killed because its node ran out of memory: by default
    # without limit.
    os.environ.setdefault("RAY_task_oom_retries", "20")
    # Ray 2.60 ends a process that is idle for a second: then each write task would start its own,
    # which takes 1.6 s of CPU per part.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    template = None
    # Nobody reads the metrics, events and statistics of a cluster that exists for one job; they
    # take 1.4 % of two cores.
    if not remote:
        os.environ.setdefault(SWITCH, "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault("RAY_event_stats", "0")
        if is_forking and can_fork():
            with contextlib.suppress(OSError):  # no folder for its socket: Ray needs none there
                template = start_template(_import_path(), log_path())
    with held_back(), uncollected():  # a module that is half imported cannot be imported again
        import ray
    # see MAX_RESTARTS in execution.py
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for 'Write'")
    # a few records, as those of --limit, are fewer parts than embedders
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors for")
    try:
        _check_answers(address)
        services = contextlib.nullcontext() if remote else without_services(template)
        with (
            held_back(),
            _without_rays_sigterm(),
            _stderr_to(log_path()),
            services,
            _in_a_thread(meanwhile),
        ):
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if remote else False,
                runtime_env={"env_vars": settings} if remote and settings else None,
                job_config=cast(Any, None if "://" in address else _own_path()),
                **({} if remote else _places()),
            )
            _connections.append(address)
    except ClusterError:
        end_template()
        raise
    except Exception as error:  # Ray raises a bare Exception when a node is slow to start
        end_template()
        failure = "Ray cannot start"
        advice = "Check whether this machine is overloaded"
        if remote:
            failure = f"the Ray cluster at {address} cannot be joined"
            advice = "Check --address and RAY_ADDRESS, and that the cluster is running"
        raise ClusterError(
            f"{failure}: {reason(error)}. {advice}; Ray's own messages are in {log_path()}. Then "
            "run the same command again."
        ) from error
    with held_back():
        import ray.data  # it sets up its logger when it is imported
    handler = logging.FileHandler(log_path())
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.level = logging.INFO


def _places() -> dict[str, Any]:
    """Where a Ray of our own puts its sockets and shared memory, as far as its defaults would fail.
    Raises ClusterError."""
    places: dict[str, Any] = {}
    chosen = os.environ.get("RAY_TMPDIR", "")
    folder = chosen or os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - Ray's own default
    if len(os.fsencode(os.path.join(folder, _LONGEST_SOCKET))) > _MAX_SOCKET_BYTES:
        if chosen:
            raise ClusterError(
                f"RAY_TMPDIR {chosen}: Ray's sockets below it would have names of more than "
                f"{_MAX_SOCKET_BYTES} bytes, which the system does not take. Set RAY_TMPDIR to a "
                "folder with a shorter name, or leave it unset for /tmp."
            )
        places["_temp_dir"] = "/tmp/ray"  # noqa: S108 - Ray's own default
    if sys.platform == "linux" and not os.path.isdir(_SHARED_MEMORY):
        places["_plasma_directory"] = tempfile.gettempdir()
        places["object_store_memory"] = _OBJECT_STORE_BYTES
    return places


_LONGEST_SOCKET = "ray/session_2026-11-25_23-12-13_864412_4194304/sockets/plasma_store"
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the mount itself
_OBJECT_STORE_BYTES = 1 << 30
"""Size of the object store where there is no shared memory to measure."""


def _check_answers(address: str) -> None:
    """Raises OSError when nothing listens at host:port. Ray 2.60 alone would keep trying for a
    quarter of an hour, without a message."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


def _own_path() -> JobConfig:
    """Lets workers import what the driver imports. Ray 2.60 puts the driver's working folder, and
    the folder of its script, before everything else on the path of workers: a `pipeline.py` or a
    `types.py` of the user would run there in place of ours. It leaves both out for a job that
    brings a working folder of its own."""
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPath(_py_driver_sys_path=_import_path())


def _import_path() -> list[str]:
    root = Path(__file__).parents[3]
    return [] if root.name in ("site-packages", "dist-packages") else [str(root)]


@contextlib.contextmanager
def _in_a_thread(function: Callable[[], object]) -> Iterator[None]:
    """Runs a function beside the block, and waits for it. What it raises is lost: the caller needs
    its work, and meets the same error."""

    def run() -> None:
        with contextlib.suppress(Exception), uncollected():
            function()

    thread = threading.Thread(target=run, name="meanwhile")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _without_rays_sigterm() -> AbstractContextManager[None]:
    """ray.init installs a handler of SIGTERM that exits with 15, without a message, and where Ray
    cannot be left."""
    return replaced("ray._private.utils", "set_sigterm_handler", lambda _handler: None)


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Redirects file descriptor 2 to a file: ray.init writes there from C++ too."""
    sys.stderr.flush()
    original = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
