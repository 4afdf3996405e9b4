"""What a run asks of its Ray cluster: which device it has, and how many actors each stage gets."""

from __future__ import annotations

import os
from collections import Counter

import ray

from pipeline.driver.cluster.connection import connect
from pipeline.driver.estimate.prices import CPU_CORE
from pipeline.driver.planning.pools import Pools, pools_of
from pipeline.errors import SpecError
from pipeline.job.resolve import Job

_KIND_OF_GPU = "accelerator_type:"
"""How Ray names the resource of a node that says which GPUs it has."""


def pool_sizes(job: Job, n_splits: int, n_parts: int) -> Pools:
    """The pools that the resources of the cluster allow, see `pools_of`."""
    resources = ray.cluster_resources()
    cpus = max(1, int(resources.get("CPU", 1)))
    return pools_of(job, cpus, int(resources.get("GPU", 0)), n_splits, n_parts)


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


def device_of_cluster(address: str | None) -> str:
    """The device of a run on the cluster at `address` (or RAY_ADDRESS), or on the Ray that this
    process has already: cuda where it has a GPU.

    Raises SpecError for a cluster that has no GPU now: autoscaling may start one at any time, and
    the device decides the default dtype and with it the fingerprint.
    """
    joined = address or os.environ.get("RAY_ADDRESS")
    if joined:
        connect(address)
    if ray.cluster_resources().get("GPU", 0):
        return "cuda"
    if joined:
        raise SpecError(
            f"runtime.device is auto, and no node of the cluster at {joined} has a GPU now; "
            "whether one will be started is unknown. Set runtime.device to cuda, which then "
            "requests GPU nodes, or to cpu."
        )
    return "cpu"
