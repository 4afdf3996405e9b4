"""What a run asks of its Ray cluster: which device it has, and how many actors each stage gets."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter

import ray

from pipeline.driver.connection import connect
from pipeline.driver.estimate.prices import CPU_CORE
from pipeline.driver.places import check_device
from pipeline.errors import SpecError
from pipeline.job.resolve import Job, device_here
from pipeline.job.spec import JobSpec

_KIND_OF_GPU = "accelerator_type:"
"""How Ray names the resource of a node that says which GPUs it has."""


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


def devices_of(job: Job) -> dict[str, float]:
    """What the machines of the cluster have now that a run with this job pays for, by name: GPUs,
    or cores of CPUs."""
    if job.engine.device != "cuda":
        return {CPU_CORE: ray.cluster_resources().get("CPU", 0.0)}
    devices: Counter[str] = Counter()
    for node in ray.nodes():
        if node["Alive"] and (n_gpus := node["Resources"].get("GPU", 0)):
            kinds = (name for name in node["Resources"] if name.startswith(_KIND_OF_GPU))
            name = next(kinds, "a GPU of unknown kind")
            devices[name.removeprefix(_KIND_OF_GPU)] += n_gpus
    return dict(devices)


def device_of(spec: JobSpec, address: str | None = None) -> str:
    """The device of a run. `runtime.device: auto` is cuda where the cluster, or without one this
    machine, has a GPU.

    Raises SpecError for a GPU that this machine, which is all there is, does not have, and for a
    cluster that has no GPU now: autoscaling may start one at any time, and the device decides the
    default dtype and with it the fingerprint.
    """
    check_device(spec, address)
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
