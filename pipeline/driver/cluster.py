"""The Ray cluster a run uses: joining or starting it, what device it has, and how many actors each
stage gets."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import ray

from pipeline.errors import ClusterError, SpecError
from pipeline.job.resolve import Job, device_here
from pipeline.job.spec import JobSpec
from pipeline.storage.caches import cache_folder


@dataclasses.dataclass(frozen=True)
class Pool:
    """How many workers a stage starts with and keeps, how many it may grow to, and what each asks
    of the cluster."""

    workers: int
    most: int
    cpus: float
    gpus: float = 0.0
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Pools:
    """One pool a stage."""

    tokenizers: Pool
    embedders: Pool
    writers: Pool


def pool_sizes(job: Job, n_splits: int, n_parts: int) -> Pools:
    """Pool sizes from the cluster's resources; `runtime.tokenizers` and `runtime.embedders`
    override the counts.

    GPU cluster: one embedder a GPU, 70 % of the CPUs tokenize; embedders ask for no CPU, so
    tokenizers can never keep one from its GPU. CPU only: embedding is nearly all of the work, so
    each core gets a one-thread embedder. The shares of all pools add up to the CPUs there are: Ray
    would otherwise let one stage wait for ever for what another one holds.

    Ray Data grows a pool up to `most` while parts wait for it and a node has room, which is how
    nodes that join late are used, and takes those workers away again when they idle.
    """
    runtime, resources = job.spec.runtime, ray.cluster_resources()
    cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    on_gpu = job.engine.device == "cuda"
    tokenize, embed, write = (0.7, 0.0, 0.1) if on_gpu else (0.1, 0.8, 0.1)
    most = max(1, n_parts) if runtime.embedders == "auto" else runtime.embedders
    embedders = (
        min(max(1, gpus), most)
        if on_gpu
        else min(cpus, most)
        if runtime.embedders == "auto"
        else most
    )
    tokenizers = (
        max(1, int(tokenize * cpus)) if runtime.tokenizers == "auto" else runtime.tokenizers
    )
    writers = max(2, embedders, cpus // 4)

    def share(part: float, workers: int) -> float:
        return min(1.0, math.floor(part * cpus / workers * 1000) / 1000)

    tokenizers_now = min(tokenizers, n_splits)
    return Pools(
        tokenizers=Pool(
            tokenizers_now,
            n_splits if on_gpu and runtime.tokenizers == "auto" else tokenizers_now,
            # beside an embedder on a node of one CPU
            min(share(tokenize, tokenizers), round(1 - embed, 3)),
        ),
        embedders=Pool(
            embedders,
            most,
            share(embed, embedders),
            1.0 if on_gpu else 0.0,
            None if on_gpu else max(1, cpus // embedders),
        ),
        writers=Pool(writers, max(writers, most) if on_gpu else writers, share(write, writers)),
    )


def device_of(spec: JobSpec, address: str | None = None) -> str:
    """The device of `runtime.device: auto`: cuda where the cluster, or this machine when there is
    none, has a GPU.

    Raises SpecError for a cluster without a GPU at the moment: autoscaling may start one any time,
    and the device decides the default dtype and with it the fingerprint.
    """
    if spec.runtime.device != "auto":
        return spec.runtime.device
    joined = address or os.environ.get("RAY_ADDRESS")
    if joined:
        connect(address)
    if ray.is_initialized():
        if ray.cluster_resources().get("GPU", 0):
            return "cuda"
        if joined:
            raise SpecError(
                f"runtime.device is auto and no node of the cluster at {joined} has a GPU now; whether one will be started "
                "cannot be known. Set runtime.device to cuda (GPU nodes are then asked for) or cpu."
            )
        return "cpu"
    return device_here()


def log_path() -> Path:
    """The file that Ray's own messages go to: `ray.log` in CORPUS_EMBED_LOG_DIR, by default in the
    cache folder `logs`."""
    folder = Path(os.environ.get("CORPUS_EMBED_LOG_DIR") or cache_folder("logs"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "ray.log"


_connections: list[str] = []
"""What `connect` itself joined or started."""


def disconnect() -> None:
    """Undo `connect`. Until then Ray writes of dead workers to standard output, also while Python
    ends."""
    if _connections:
        _connections.clear()
        ray.shutdown()


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start one on this machine. Idempotent.

    Workers of a cluster get the CORPUS_EMBED_* settings of this process; credentials they have from
    their own environment or role.
    """
    if ray.is_initialized():
        return
    # without an address Ray joins whatever runs here
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    remote = address != "local"
    settings = {
        name: value for name, value in os.environ.items() if name.startswith("CORPUS_EMBED_")
    }
    # ray's C++ side would write over the progress display
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # of a task killed for its node's memory: for ever by default
    os.environ.setdefault("RAY_task_oom_retries", "20")
    # Ray 2.60 ends a process after a second without work: each write task would then start its own,
    # 1.6 s of CPU a part.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # nobody reads the metrics of a cluster that lives as long as one job: 1 % of two cores
    if not remote:
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # see MAX_RESTARTS in run.py
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for 'Write'")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(address)
        with _stderr_to(log_path()):
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if remote else False,
                runtime_env={"env_vars": settings} if remote and settings else None,
            )
    except Exception as error:  # Ray raises a bare Exception when a node is slow to start
        what, hint = "Ray cannot start", "See whether this machine is overloaded"
        if remote:
            what = f"the Ray cluster at {address} cannot be joined"
            hint = "Check --address and RAY_ADDRESS, and that the cluster runs"
        raise ClusterError(
            f"{what}: {type(error).__name__}: {error}. {hint}; Ray's own words are in {log_path()}. Run the same command again."
        ) from error
    _connections.append(address)
    if threading.current_thread() is threading.main_thread():
        # ray.init puts its own in place, which exits with 15 and no word
        signal.signal(signal.SIGTERM, on_sigterm)
    handler = logging.FileHandler(log_path())
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [handler], False, logging.INFO


def _check_answers(address: str) -> None:
    """Raises OSError when nobody listens at host:port. Ray 2.60 asks for a quarter of an hour,
    without a word."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Send file descriptor 2 to a file for a moment: ray.init also writes there from C++."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
