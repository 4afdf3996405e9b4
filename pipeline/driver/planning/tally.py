"""What a refresh changes, in numbers: shards of the head compared with those listed now, and rows
of the head compared with those of the next snapshot.

Live manifests, a listing and later the parts of the next snapshot become counts for people and for
`limits`. Cost: a pass over the live manifests; where vectors were reused, one column of the parts
that change and 8 bytes for each of their rows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.driver.planning.splits import decompressed_bytes
from pipeline.output.text_index import keys_of_files
from pipeline.storage.lineage import Manifest, Shard
from pipeline.storage.store import Store

DENSITY_FACTOR = 8
"""How many times as many documents per byte a shard that nobody has read can have as those of the
head: a plan must not stop a run that could be fine."""

MAX_COMPARED_ROWS = 1 << 26
"""The most rows whose texts the driver compares at the end of a run; they take 2 GiB of memory."""


@dataclasses.dataclass(frozen=True)
class ShardChanges:
    """Numbers of shards.

    max_documents: the most documents that the next snapshot can have, by a generous estimate for
    shards that nobody has read.
    """

    unchanged: int
    changed: int
    new: int
    removed: int
    max_documents: int


def shard_changes(shards: Sequence[Shard], live: Sequence[Manifest]) -> ShardChanges:
    """Compare the listing with the shards of the head."""
    before = {span.shard for part in live for span in part.split.spans}
    uris = {shard.uri for shard in before}
    unread = [shard for shard in shards if shard not in before]
    changed = sum(shard.uri in uris for shard in unread)
    documents: Counter[tuple[str, str]] = Counter()
    for part in live:
        for source in part.sources:
            documents[source.uri, source.etag] += source.n_records - source.n_rejects
    unread_bytes = sum(map(decompressed_bytes, unread))
    documents_per_byte = documents.total() / max(1, sum(part.record_bytes for part in live))
    read_documents = sum(documents[shard.uri, shard.etag] for shard in shards)
    return ShardChanges(
        unchanged=len(shards) - len(unread),
        changed=changed,
        new=len(unread) - changed,
        removed=len(uris - {shard.uri for shard in shards}),
        max_documents=read_documents + round(DENSITY_FACTOR * unread_bytes * documents_per_byte),
    )


def row_counts(store: Store, live: Sequence[Manifest], parts: Sequence[Manifest]) -> dict[str, int]:
    """How many rows of the next snapshot (`parts`) come from where, and how many of the head
    (`live`) disappear.

    carried: rows of parts that stay. reused: rows of new parts with a stored vector. embedded: the
    other rows of new parts. removed: rows of parts that leave for which no row with the same text
    is in a new part; each row of a new part replaces one. rejected: records of new parts.
    """
    live_ids = {part.part_id for part in live}
    next_ids = {part.part_id for part in parts}
    new = [part for part in parts if part.part_id not in live_ids]
    leaving = [part for part in live if part.part_id not in next_ids]
    n_new = sum(part.n_rows for part in new)
    n_reused = sum(part.n_reused for part in new)
    n_moved = _moved(store, leaving, new) if n_reused else 0
    return {
        "carried": sum(part.n_rows for part in parts) - n_new,
        "reused": n_reused,
        "embedded": n_new - n_reused,
        "removed": sum(part.n_rows for part in leaving) - n_moved,
        "rejected": sum(part.n_rejects for part in new),
    }


def _moved(store: Store, leaving: Sequence[Manifest], new: Sequence[Manifest]) -> int:
    """How many rows of `leaving` have a row with the same text in `new`, each row counted once; an
    estimate for more than MAX_COMPARED_ROWS."""
    n_leaving = sum(part.n_rows for part in leaving)
    if n_leaving + sum(part.n_rows for part in new) > MAX_COMPARED_ROWS:
        return min(n_leaving, sum(part.n_reused for part in new))
    old_texts, old_counts = _text_counts(store, leaving)
    new_texts, new_counts = _text_counts(store, new)
    _, in_old, in_new = np.intersect1d(
        old_texts, new_texts, assume_unique=True, return_indices=True
    )
    return int(np.minimum(old_counts[in_old], new_counts[in_new]).sum())


def _text_counts(
    store: Store, parts: Sequence[Manifest]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """(keys of the different texts, number of rows with each), both (N,)."""
    keys = keys_of_files(store, [file.path for part in parts for file in part.data_files])
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *keys]), return_counts=True)
