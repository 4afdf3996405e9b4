"""The shards of a snapshot by state: new, changed, unchanged, removed, damaged.

In: the manifests of the snapshot, and the last complete snapshot of another run, which it is
compared with. Out: numbers and examples. Cost: a pass over the manifests of both; of the earlier
one only its shards are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from pipeline.errors import OutputError
from pipeline.output.damage import DamagedShard, damaged_shards
from pipeline.output.snapshots import live_parts
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store

MAX_NAMED = 5
"""How many shards of a state are named."""


@dataclasses.dataclass(frozen=True)
class ShardState:
    """How many shards are in a state, in bytes as stored, and the first of them by URI."""

    name: str
    meaning: str
    count: int
    size_bytes: int
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardStates:
    """compared_with: the number of the earlier snapshot; None where there is none to compare with,
    and every shard counts as new."""

    compared_with: int | None
    states: tuple[ShardState, ...]
    damaged: tuple[DamagedShard, ...]


def shard_states(
    store: Store, head: Snapshot, parts: Sequence[Manifest], earlier: Iterable[Snapshot]
) -> ShardStates:
    """Compare the shards of a snapshot with those of the newest complete snapshot of another run.

    earlier: kept snapshots before `head`, newest first.
    """
    compared, before = _earlier_shards(store, head, earlier)
    now = _shards(parts)
    uris_before = {uri for uri, _ in before}
    uris_now = {uri for uri, _ in now}
    by_state = {
        ("new", "not in the earlier snapshot"): [s for s in now if s[0] not in uris_before],
        ("changed", "the same place with another version"): [
            s for s in now if s not in before and s[0] in uris_before
        ],
        ("unchanged", "the same version as before"): [s for s in now if s in before],
        ("removed", "no longer in the input"): [s for s in before if s[0] not in uris_now],
    }
    sizes = before | now
    states = tuple(
        ShardState(
            name,
            meaning,
            len(shards),
            sum(sizes[shard] for shard in shards),
            tuple(shown(uri) for uri, _ in sorted(shards)[:MAX_NAMED]),
        )
        for (name, meaning), shards in by_state.items()
    )
    return ShardStates(compared.number if compared else None, states, tuple(damaged_shards(parts)))


def _earlier_shards(
    store: Store, head: Snapshot, earlier: Iterable[Snapshot]
) -> tuple[Snapshot | None, dict[tuple[str, str], int]]:
    for snapshot in earlier:
        if snapshot.complete and snapshot.run_id != head.run_id:
            try:
                return snapshot, _shards(live_parts(store, snapshot))
            except OutputError:  # its list is gone: the one before it may be there
                continue
    return None, {}


def _shards(parts: Iterable[Manifest]) -> dict[tuple[str, str], int]:
    """Bytes by URI and version."""
    shards = (span.shard for part in parts for span in part.split.spans)
    return {(shard.uri, shard.etag): shard.size_bytes for shard in shards}
