"""The plan of a spec for the device that its cluster has.

In: a spec and the address of a cluster. Out: a `Plan`. Cost: that of the plan, and for
`runtime.device: auto` that of joining the cluster, for which alone Ray is imported.
"""

from __future__ import annotations

from pipeline.driver.planning.places import check_device, check_dtype, output_of
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.job.resolve import resolve
from pipeline.job.spec import JobSpec
from pipeline.output import lake
from pipeline.read.pages import text_formats


def plan_job(spec: JobSpec, address: str | None = None) -> Plan:
    """The plan of a spec. Ray is imported only for `runtime.device: auto`. Raises what `make_plan`
    and `resolve` raise."""
    check_device(spec, address)
    device: str = spec.runtime.device
    if device == "auto":
        from pipeline.driver.cluster.devices import device_of

        device = device_of(spec, address)
    check_dtype(spec, device, address)
    store = output_of(spec)
    lake.ask_catalog(store, spec.publish, is_plan=True)
    return make_plan(resolve(spec, device, text_formats(spec.input)), store)
