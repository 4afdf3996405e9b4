"""The places that a spec names, before anything is asked of them: a spec comes in, the store of its
output comes out, or what makes one of the places unusable."""

from __future__ import annotations

import logging
import os
import sys

from pipeline.errors import SpecError
from pipeline.job import cpu_features
from pipeline.job.resolve import device_here
from pipeline.job.spec import JobSpec
from pipeline.storage.addresses import shown
from pipeline.storage.preflight import check_place
from pipeline.storage.room import problem_of_workers
from pipeline.storage.store import Store

__all__ = ["check_device", "check_dtype", "is_alone", "is_connected", "output_of"]

log = logging.getLogger(__name__)


def output_of(spec: JobSpec) -> Store:
    """The store of the output. Raises SpecError for an output that cannot be written where the spec
    says, and for inputs and models that workers cannot see; StorageError when the store of the
    output cannot be asked."""
    for name, uris in (("input.uri", spec.input.uri), ("model.path", [spec.model.path])):
        for uri in uris:
            if problem := problem_of_workers(uri):
                raise SpecError(f"{name} {shown(uri)}: {problem}.")
    store = Store(spec.output.uri, spec.output.storage_options)
    check_place(store)
    return store


def check_device(spec: JobSpec, address: str | None) -> None:
    """Raises SpecError for a run on this machine alone that asks for a GPU which it does not have:
    it would wait for one for hours."""
    if spec.runtime.device == "cuda" and is_alone(address) and device_here() == "cpu":
        raise SpecError(
            "runtime.device is cuda, and this machine has no GPU (no /dev/nvidia*). Set "
            "runtime.device: cpu, or give the --address of a Ray cluster that has GPUs."
        )


def check_dtype(spec: JobSpec, device: str, address: str | None) -> None:
    """Raises SpecError for a run on this machine alone whose CPU would emulate the dtype, and
    warns of one that it is slow at. device: what `runtime.device` came to."""
    if device == "cpu" and spec.model.dtype == "float16":
        log.warning(
            "model.dtype float16 on a CPU is mostly slower than float32, and less exact: set "
            "model.dtype: float32"
        )
    if device == "cpu" and is_alone(address):
        cpu_features.check_dtype(spec.model.dtype)


def is_alone(address: str | None) -> bool:
    """Whether the workers of a run are on this machine and nowhere else."""
    return not (address or os.environ.get("RAY_ADDRESS") or is_connected())


def is_connected() -> bool:
    """Whether this process is connected to a Ray, its own or another one; does not import it."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())
