"""What a worker that is forked must not have from the process that imported Ray for it.

Ray 2.60 reads its settings from the environment when it is imported. Most can be read again; the
job and the raylet of a worker cannot. The job of a Ray that has just started is the first one.
Workers end with the process that they take for the raylet: the template, which ends with it.

Ray draws its ids from generators that are seeded at their first use. Ray Data draws some when it is
imported, after which all forks would go on with the same ones (seen: two workers that create the
same object).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from pipeline.driver.cluster.own_ray import replaced

__all__ = [
    "differs_in_forks",
    "is_of_this_job",
    "no_ids_drawn",
    "prepare",
    "raylet_of",
    "read_environment",
]

_FIRST_JOB = "01000000"
_JOB = "RAY_JOB_ID"
_RAYLET = "RAY_RAYLET_PID"


def prepare() -> None:
    """Before Ray is imported."""
    os.environ |= {_JOB: _FIRST_JOB, _RAYLET: str(os.getpid())}


def no_ids_drawn() -> AbstractContextManager[None]:
    """What is imported in the block has its ids from the system."""
    ids: Any = importlib.import_module("ray.actor").ActorClassID

    class FromSystem:
        @staticmethod
        def from_random() -> object:
            return ids(os.urandom(ids.size()))

    return replaced("ray.actor", "ActorClassID", FromSystem)


def differs_in_forks() -> bool:
    """Whether two forks of this process draw different ids. Cost: two forks, 0.02 s."""
    return _id_in_fork() != _id_in_fork()


def _id_in_fork() -> bytes:
    from ray import ObjectID

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ObjectID.from_random().binary())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        drawn = pipe.read()
    os.waitpid(child, 0)
    return drawn


def is_of_this_job(environment: Mapping[str, str]) -> bool:
    """Whether a worker that Ray starts with this environment can be forked here."""
    return environment.get(_JOB) == _FIRST_JOB and environment.get(_RAYLET, "").isdigit()


def raylet_of(environment: Mapping[str, str]) -> int:
    """The process of the raylet that starts a worker."""
    return int(environment[_RAYLET])


def read_environment() -> None:
    """Reads again, in a fork, what Ray has read when it was imported: the driver has made a token
    since."""
    library: Any = importlib.import_module("ray._raylet")
    library.Config.initialize("")
    library.AuthenticationTokenLoader.instance().reset_cache()
