"""The parts that were finished after a snapshot and are in none: what a run that was stopped, or is
under way, has done.

In: an output and its newest snapshot. Out: manifests. Cost: a listing of manifests with their ages,
and a small read for each of these parts.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.storage import layout
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tools.stored_objects import list_objects, of_kind


def waiting_parts(store: Store, head: Snapshot | None, live: Iterable[Manifest]) -> list[Manifest]:
    """The parts that were finished after a snapshot and are not in it: those of the fingerprint
    that was written to last. Older ones belong to shards that have changed since."""
    since = store.changed_at(store.info(layout.snapshot(head.number))) if head else 0.0
    live_ids = {part.part_id for part in live}
    manifests = {
        path: item
        for path, item in of_kind(dict(list_objects(store, layout.MANIFESTS)), "manifest").items()
        if item.location.part_id not in live_ids and item.changed_at >= since
    }
    if not manifests:
        return []
    youngest = max(manifests.values(), key=lambda item: item.changed_at)
    sizes = {
        path: item.size_bytes
        for path, item in manifests.items()
        if item.location.fingerprint == youngest.location.fingerprint
    }
    return [
        Manifest.from_json(data, f"{store.shown_uri}/{path}")
        for path, data in store.read_many(sizes)
    ]
