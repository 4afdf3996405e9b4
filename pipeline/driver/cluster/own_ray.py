"""What a Ray that a run starts for itself on this machine does without.

In: a `ray.init` that is about to start a cluster, or an execution of Ray Data on that cluster. Out:
the same with fewer processes: no server for people (dashboard), no scaling of nodes (monitor), no
copying of logs, which nobody reads; and the three actors that Ray Data keeps beside a dataset are
objects of the driver. Each of these processes takes half a second to a second of CPU before the
first part is begun (benchmarks/LOG.md). Its two agents, which the raylet insists on, are stand-ins,
and its workers may be forks of one process (`forks/`). Whoever asks for Ray's metrics gets all of
them.

Method: Ray 2.60 has no settings for this, so functions of it are replaced while a block runs. In
any other version nothing is replaced, and Ray costs its processes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from pipeline.driver.cluster.forks.start import lean_command

__all__ = ["SWITCH", "can_fork", "in_driver", "is_collecting", "replaced", "without_services"]

SWITCH = "RAY_enable_metrics_collection"
"""Ray's own variable; `connect` sets it to 0 for a cluster of one job where it is not set."""

_TRIED = "2.60."
"""The versions of Ray whose functions are replaced begin so."""

_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
_DATA = "ray.data._internal"
_LOCATIONS = f"{_DATA}.execution.operators.actor_pool_map_operator"


def is_collecting() -> bool:
    """Whether a Ray that this process starts or has joined collects metrics, as far as known."""
    return os.environ.get(SWITCH, "1").lower() not in ("0", "false")


def can_fork() -> bool:
    """Whether workers of a Ray that is started now can be forked. Ray is not imported for it."""
    return sys.platform == "linux" and _is_replaceable()


def _is_replaceable() -> bool:
    return version("ray").startswith(_TRIED) and not is_collecting()


@contextlib.contextmanager
def without_services(address: str | None = None) -> Iterator[None]:
    """A Ray that is started in the block has no services that only people and clusters ask, and its
    workers are forked by the template at `address`, if any."""
    with contextlib.ExitStack() as stack:
        if _is_replaceable():
            for name in _SERVICES:
                stack.enter_context(replaced("ray._private.node:Node", name, _nothing))
            start = _lean_start(address)
            stack.enter_context(replaced("ray._private.services", "start_ray_process", start))
        yield


def _lean_start(address: str | None) -> Callable[..., Any]:
    """What starts a process of Ray, with another command for a raylet."""
    from ray._private.services import start_ray_process

    def start(command: list[str], process_type: str, *others: Any, **named: Any) -> Any:
        lean = lean_command(command, address) if process_type == "raylet" else command
        return start_ray_process(lean, process_type, *others, **named)

    return start


@contextlib.contextmanager
def in_driver() -> Iterator[None]:
    """Executions of Ray Data in the block keep their figures, the places of their actors and the
    resources that are theirs in this process. Only for a cluster of one machine and one run: there
    each actor is on that machine, and all of it belongs to the one execution."""
    tracker = Handle(Tracker())
    places = (
        (f"{_DATA}.stats", "get_or_create_stats_actor", Handle(Figures())),
        (_LOCATIONS, "get_or_create_actor_location_tracker", tracker),
        (
            f"{_DATA}.utils.cached_ray_internals",
            "get_or_create_actor_location_tracker",
            tracker,
        ),
        (
            f"{_DATA}.cluster_autoscaler.default_autoscaling_coordinator",
            "get_or_create_autoscaling_coordinator",
            Handle(Machine()),
        ),
    )
    with contextlib.ExitStack() as stack:
        if _is_replaceable():
            for module, name, handle in places:
                stack.enter_context(replaced(module, name, _giving(handle)))
        yield


class Handle:
    """An object in place of an actor: `handle.method.remote(…)` calls it at once and returns a
    reference to the result, as an actor's handle does. It can be sent to a worker, which then has
    a copy."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(getattr(self._actor, name))


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any, **named: Any) -> Any:
        import ray

        return ray.put(self._function(*arguments, **named))


class Figures:
    """Takes the figures of datasets for a dashboard that is not there."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _nothing


class Tracker:
    """Where actors are: with one machine, always where their pool has seen them start."""

    def update_actor_location(self, *_: Any) -> None:
        """Nothing to keep."""

    def get_actor_locations(self, *_: Any) -> dict[str, str]:
        """No news; a pool then stays with what it knows."""
        return {}


class Machine:
    """Reserves all of this machine for whoever asks, and requests no others."""

    def request_resources(self, *_: Any, **__: Any) -> None:
        """Nothing to request."""

    def cancel_request(self, *_: Any, **__: Any) -> None:
        """Nothing was requested."""

    def get_reserved_resources(self, *_: Any, **__: Any) -> dict[str, dict[str, float]]:
        """Resources by name, by the id of their node."""
        import ray

        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a function whose work is left out."""


def _giving(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextlib.contextmanager
def replaced(place: str, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """A function of a module, or with `module:class` of a class, is another one while the block
    runs; nothing happens where Ray no longer has it."""
    module, _, owner_name = place.partition(":")
    try:
        owner = importlib.import_module(module)
        owner = getattr(owner, owner_name) if owner_name else owner
        original = getattr(owner, name)
    except (ImportError, AttributeError):
        yield
        return
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
