"""Times by the store's own clock, so that no decision rests on the clock of a machine of ours.

In: a Store. Out: seconds since 1970. S3 says when an object was changed (LastModified, whole seconds), a disk has mtimes.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import OutputError
from pipeline.retry import retried
from pipeline.storage import Store, shown


def store_time(store: Store) -> float:
    """The time by the store's clock: when it says that an object written now was changed."""
    probe = f"_meta/probes/{os.urandom(8).hex()}"
    store.put_if_absent(probe, b"time")
    try:
        return changed_at(store, retried(lambda: store.fs.info(store.path(probe)), f"read {shown(store.uri)}/{probe}"))
    finally:
        store.delete(probe)


def changed_at(store: Store, info: Mapping[str, Any]) -> float:
    """When an object was last changed, from what the file system says of it. Raises OutputError where it says nothing."""
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    raise OutputError(f"{shown(store.uri)}: the store does not say when objects were changed, so no age can be told")
