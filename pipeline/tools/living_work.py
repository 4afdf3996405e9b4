"""Who works on an output while it is vacuumed, by the marks and the lease that lie in it.

In: the objects of an output, listed after the vacuum has left its own mark. Out: what they say of
runs, compactions and publications that are alive. Cost: a small read a mark.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.output.lease import is_alive
from pipeline.output.work import SILENT_S, VACUUM, is_dead
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.stored_objects import Objects, of_kind


class Work(NamedTuple):
    """Who is alive. fingerprints: those that runs and compactions write under."""

    fingerprints: frozenset[str]
    publishes: bool
    paths: frozenset[str]

    @property
    def is_any(self) -> bool:
        return bool(self.fingerprints) or self.publishes


def living_work(store: Store, objects: Objects, now: float) -> Work:
    """The work that is under way. paths: its marks and records, and the newest lease where its
    holder lives.
    now: seconds since 1970 by the store's clock."""
    marks = {
        path: item.location
        for path, item in of_kind(objects, "work").items()
        if is_alive(item.changed_at, now, SILENT_S) and not is_dead(store, path)
    }
    records = of_kind(objects, "live record").items()
    live = [path for path, item in records if is_alive(item.changed_at, now, SILENT_S)]
    activities = {location.name for location in marks.values()} - {VACUUM}
    leases = of_kind(objects, "lease")
    last = max((item.location.number or 0 for item in leases.values()), default=0)
    newest = {path: item for path, item in leases.items() if item.location.number == last}
    is_held = layout.lease(last, "released") not in newest and any(
        is_alive(item.changed_at, now, SILENT_S) for item in newest.values()
    )
    return Work(
        fingerprints=frozenset(mark.fingerprint for mark in marks.values() if mark.fingerprint),
        publishes="publish" in activities,
        paths=frozenset([*marks, *live, *(newest if is_held else ())]),
    )
