"""The Ray cluster a run uses: joining or starting it, what device it has, and how many actors each stage gets."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from pathlib import Path

import ray

from pipeline.plan import Job
from pipeline.spec import JobSpec


@dataclasses.dataclass(frozen=True)
class Pools:
    """How many actors each stage gets, and what each of them asks of the cluster."""

    tokenizers: int
    tokenizer_cpus: float
    embedders: int
    embedder_cpus: float
    embedder_gpus: float
    embedder_threads: int | None
    writer_cpus: float


def pool_sizes(job: Job, n_splits: int) -> Pools:
    """Pool sizes from the cluster's resources; `runtime.tokenizers` and `runtime.embedders` override.

    GPU cluster: one embedder a GPU, tokenizers on the CPUs that are left. CPU only: embedding is nearly all of the
    work, so each core gets a one-thread embedder, and reading and writing ride along on a fraction of a core.
    """
    runtime, resources = job.spec.runtime, ray.cluster_resources()
    cpus = max(1, int(resources.get("CPU", 1)))
    if job.device == "cuda":
        embedders = max(1, int(resources.get("GPU", 1))) if runtime.embedders == "auto" else runtime.embedders
        tokenizers = max(1, cpus - 2 * embedders) if runtime.tokenizers == "auto" else runtime.tokenizers
        return Pools(min(tokenizers, n_splits), 1, embedders, 1, 1, None, 0.5)
    embedders = min(cpus, n_splits) if runtime.embedders == "auto" else runtime.embedders
    tokenizers = max(1, cpus // 4) if runtime.tokenizers == "auto" else runtime.tokenizers
    return Pools(min(tokenizers, n_splits), 0.1, embedders, 0.8 * cpus / max(embedders, cpus), 0, max(1, cpus // embedders), 0.1)


def device_of(spec: JobSpec, address: str | None = None) -> str:
    """The device of `runtime.device: auto`: cuda where the cluster, or this machine when there is none, has a GPU."""
    if spec.runtime.device != "auto":
        return spec.runtime.device
    if address or os.environ.get("RAY_ADDRESS"):
        connect(address)
    if ray.is_initialized():
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start one on this machine. Idempotent."""
    if ray.is_initialized():
        return
    logs = Path(os.environ.get("CORPUS_EMBED_LOG_DIR", Path.home() / ".cache" / "corpus-embed" / "logs"))
    logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(logs / "ray.log")
    environment = {name: value for name, value in os.environ.items() if name.startswith(("CORPUS_EMBED_", "HF_HUB_OFFLINE"))}
    ray.init(
        address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None if address else False,
        runtime_env={"env_vars": environment} if environment else None,
    )  # fmt: skip
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
