"""The plan of a spec for the device that its cluster has.

In: a spec and the address of a cluster. Out: a `Plan`. Cost: that of the plan, and for
`runtime.device: auto` on a cluster that of joining it, for which alone Ray is imported.
"""

from __future__ import annotations

from pipeline.driver.planning.places import check_device, check_dtype, is_alone, output_of
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.job.resolve import device_here, resolve
from pipeline.job.spec import JobSpec
from pipeline.output import lake
from pipeline.read.input.shards import Listing
from pipeline.read.pages import text_formats


def plan_job(spec: JobSpec, address: str | None = None) -> Plan:
    """The plan of a spec. Raises what `make_plan`, `device_of` and `resolve` raise."""
    device = device_of(spec, address)
    check_dtype(spec, device, address)
    store = output_of(spec)
    lake.ask_catalog(store, spec.publish, is_plan=True)
    listing = Listing(spec.input)
    job = resolve(spec, device, text_formats(spec.input, listing))
    return make_plan(job, store, listing=listing)


def device_of(spec: JobSpec, address: str | None) -> str:
    """The device of a run. `runtime.device: auto` is cuda where the cluster, or without one this
    machine, has a GPU. Ray is imported only where there is a cluster. Raises SpecError for a GPU
    that this machine, which is all there is, does not have, and what `device_of_cluster` raises.
    """
    check_device(spec, address)
    if spec.runtime.device != "auto":
        return spec.runtime.device
    if is_alone(address):
        return device_here()
    from pipeline.driver.cluster.devices import device_of_cluster

    return device_of_cluster(address)
