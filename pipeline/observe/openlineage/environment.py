"""Whether events are asked for, and what the scheduler above a run says about itself: environment
variables in, plain facts out. Nothing of OpenLineage is imported.
"""

from __future__ import annotations

import os
import uuid
from typing import NamedTuple

_SWITCHES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_TRANSPORT = "OPENLINEAGE__TRANSPORT"
DEFAULT_NAMESPACE = "corpus-embed"


class Parent(NamedTuple):
    """A run of another system, such as a task of Airflow."""

    namespace: str
    name: str
    run_id: str


def is_on() -> bool:
    """Whether the environment names a receiver and does not disable events."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    named = any(os.environ.get(name) for name in _SWITCHES)
    return named or any(name.startswith(_TRANSPORT) for name in os.environ)


def job_namespace() -> str:
    """The namespace of jobs, as other OpenLineage clients read it."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or DEFAULT_NAMESPACE


def parent() -> Parent | None:
    """The run that started this one, from OPENLINEAGE_PARENT_ID."""
    return _parent("OPENLINEAGE_PARENT_ID")


def root_parent() -> Parent | None:
    """The run at the root of the hierarchy, from OPENLINEAGE_ROOT_PARENT_ID."""
    return _parent("OPENLINEAGE_ROOT_PARENT_ID")


def _parent(variable: str) -> Parent | None:
    """`namespace/name/run id`; a namespace can have slashes of its own. Raises ValueError for
    anything else."""
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    namespace, _, rest = value.rpartition("/")
    namespace, _, name = namespace.rpartition("/")
    try:
        run_id = str(uuid.UUID(rest))
    except ValueError:
        run_id = ""
    if not (namespace and name and run_id):
        raise ValueError(f"{variable} is not namespace/name/run id, the last one a UUID")
    return Parent(namespace, name, run_id)
