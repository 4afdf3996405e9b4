"""A Ray that a run starts for itself has no process that the run does not need.

Oracle: the processes below the driver as /proc lists them, and the named actors that Ray lists.
"""

from __future__ import annotations

import json
import sys
import types

import pytest

from pipeline.driver.cluster import own_ray
from tests import ROOT
from tests.support.processes import printed_by

PROCESSES = """
import json, os, time, ray
from pipeline.driver.cluster.connection import connect, disconnect, is_own
from pipeline.driver.cluster.own_ray import Machine, in_driver
from tests.support.processes import below

class Worker:
    def __call__(self, batch):
        return batch

connect(None)
blocks = [__import__("pyarrow").table({"n": [n]}) for n in range(3)]
with in_driver():
    rows = ray.data.from_blocks(blocks).map_batches(
        Worker, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.1, batch_format="pyarrow"
    ).take_all()
pids = below(os.getpid())
print(json.dumps({
    "is_own": is_own(),
    "machine": [part["CPU"] for part in Machine().get_reserved_resources("data-1").values()],
    "cpus": ray.cluster_resources()["CPU"],
    "rows": sorted(row["n"] for row in rows),
    "actors": sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)),
    "processes": list(pids.values()),
}))
disconnect()
deadline = time.monotonic() + 100
while (left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]):
    assert time.monotonic() < deadline, left
    time.sleep(0.05)
"""
SERVICES = {"dashboard/dashboard.py", "log_monitor.py", "monitor.py"}


@pytest.mark.ray
@pytest.mark.parametrize("is_collecting", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_services_and_side_actors_are_started_only_where_metrics_are_asked_for(
    is_collecting: bool,
) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "RAY_enable_metrics_collection": "1" if is_collecting else None,
    }
    printed = printed_by(PROCESSES, timeout_s=200, environment=environment)
    state = json.loads(printed.splitlines()[-1])
    assert state["is_own"]
    assert state["machine"] == [state["cpus"]]
    assert state["rows"] == [0, 1, 2]
    services = {name for name in SERVICES if any(name in line for line in state["processes"])}
    assert services == (SERVICES if is_collecting else set())
    assert bool(state["actors"]) == is_collecting
    assert any("raylet" in line for line in state["processes"])


def test_what_ray_has_no_more_is_not_replaced_and_the_rest_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("a_library")
    module.function = len
    monkeypatch.setitem(sys.modules, "a_library", module)
    with own_ray.replaced("a_library", "function", max):
        assert module.function is max
    assert module.function is len
    for place in ("a_library", "a_library:Class", "no_library"):
        with own_ray.replaced(place, "gone", max):
            assert vars(module).get("gone") is None
