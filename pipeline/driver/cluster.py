"""The Ray cluster that a run uses: joining or starting it, which device it has, and how many actors
each stage gets."""

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
from pipeline.storage.caches import writable_folder
from pipeline.storage.filesystems import reason


@dataclasses.dataclass(frozen=True)
class Pool:
    """The workers of a stage.

    min_workers: how many it starts with and keeps. max_workers: how many it can grow to. cpus,
    gpus: what each worker requests from the cluster. threads: how many each computes with; None for
    PyTorch's default.
    """

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float = 0.0
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Pools:
    """The pool of each stage."""

    tokenizers: Pool
    embedders: Pool
    writers: Pool


def pool_sizes(job: Job, n_splits: int, n_parts: int) -> Pools:
    """Pool sizes from the cluster's resources; `runtime.tokenizers` and `runtime.embedders`
    override the counts.

    GPU cluster: there is one embedder per GPU, and 70 % of the CPUs tokenize. Embedders request no
    CPU, so tokenizers can never keep one from its GPU. CPU only: embedding is nearly all of the
    work, so each core gets an embedder with one thread. The shares of all pools add up to the CPUs
    of the cluster; otherwise one stage could wait without end for what another one holds.

    Ray Data grows a pool up to `max_workers` while parts wait for it and a node has room, which is
    how nodes that join late are used, and removes those workers again when they are idle.
    """
    runtime = job.spec.runtime
    resources = ray.cluster_resources()
    cpus = max(1, int(resources.get("CPU", 1)))
    gpus = int(resources.get("GPU", 0))
    on_gpu = job.engine.device == "cuda"
    tokenize_share, embed_share, write_share = (0.7, 0.0, 0.1) if on_gpu else (0.1, 0.8, 0.1)

    max_embedders = max(1, n_parts) if runtime.embedders == "auto" else runtime.embedders
    embedders = max_embedders
    if on_gpu:
        embedders = min(max(1, gpus), max_embedders)
    elif runtime.embedders == "auto":
        embedders = min(cpus, max_embedders)

    tokenizers = (
        max(1, int(tokenize_share * cpus)) if runtime.tokenizers == "auto" else runtime.tokenizers
    )
    min_tokenizers = min(tokenizers, n_splits)
    tokenizers_grow = on_gpu and runtime.tokenizers == "auto"

    writers = max(2, embedders, cpus // 4)

    def cpus_each(share: float, workers: int) -> float:
        return min(1.0, math.floor(share * cpus / workers * 1000) / 1000)

    return Pools(
        tokenizers=Pool(
            min_workers=min_tokenizers,
            max_workers=n_splits if tokenizers_grow else min_tokenizers,
            # An embedder must fit on the same node, which may have only one CPU.
            cpus=min(cpus_each(tokenize_share, tokenizers), round(1 - embed_share, 3)),
        ),
        embedders=Pool(
            min_workers=embedders,
            max_workers=max_embedders,
            cpus=cpus_each(embed_share, embedders),
            gpus=1.0 if on_gpu else 0.0,
            threads=None if on_gpu else max(1, cpus // embedders),
        ),
        writers=Pool(
            min_workers=writers,
            max_workers=max(writers, max_embedders) if on_gpu else writers,
            cpus=cpus_each(write_share, writers),
        ),
    )


def device_of(spec: JobSpec, address: str | None = None) -> str:
    """The device of a run. `runtime.device: auto` is cuda where the cluster, or without one this
    machine, has a GPU.

    Raises SpecError for a cluster that has no GPU now: autoscaling may start one at any time, and
    the device decides the default dtype and with it the fingerprint.
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
                f"runtime.device is auto, and no node of the cluster at {joined} has a GPU now; "
                "whether one will be started is unknown. Set runtime.device to cuda, which then "
                "requests GPU nodes, or to cpu."
            )
        return "cpu"
    return device_here()


def log_path() -> Path:
    """The file that Ray's own messages go to: `ray.log` in CORPUS_EMBED_LOG_DIR, by default in the
    cache folder `logs`."""
    if chosen := os.environ.get("CORPUS_EMBED_LOG_DIR"):
        Path(chosen).mkdir(parents=True, exist_ok=True)
    return (Path(chosen) if chosen else writable_folder("logs")) / "ray.log"


_connections: list[str] = []
"""The address that `connect` has joined, if any; "local" for a cluster that it has started."""


def disconnect() -> None:
    """Undo `connect`. Otherwise Ray reports dead workers on standard output, even while Python
    exits.
    """
    if _connections:
        _connections.clear()
        ray.shutdown()


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start one on this machine. Idempotent.

    Workers of a cluster get the CORPUS_EMBED_* settings of this process; their credentials come
    from their own environment or role. Raises ClusterError.
    """
    if ray.is_initialized():
        return
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
    # Nobody reads the metrics of a cluster that exists for one job; they take 1 % of two cores.
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
        failure = "Ray cannot start"
        advice = "Check whether this machine is overloaded"
        if remote:
            failure = f"the Ray cluster at {address} cannot be joined"
            advice = "Check --address and RAY_ADDRESS, and that the cluster is running"
        raise ClusterError(
            f"{failure}: {reason(error)}. {advice}; Ray's own messages are in {log_path()}. Then "
            "run the same command again."
        ) from error
    _connections.append(address)
    if threading.current_thread() is threading.main_thread():
        # ray.init installs its own handler, which exits with 15 and no message.
        signal.signal(signal.SIGTERM, on_sigterm)
    handler = logging.FileHandler(log_path())
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.level = logging.INFO


def _check_answers(address: str) -> None:
    """Raises OSError when nothing listens at host:port. Ray 2.60 alone would keep trying for a
    quarter of an hour, without a message."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


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
