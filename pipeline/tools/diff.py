"""How many rows to put and to delete between two snapshots, and if asked which: the change feed,
counted.

In: an output and two of its snapshots. Out: a `Diff`. Cost and memory: those of
`pipeline/output/change_feed.py`; with `keys`, also every key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.output.change_feed import KEY, changes


@dataclasses.dataclass(frozen=True)
class Diff:
    """What to put and to delete to go from snapshot `since` to snapshot `until`.

    cursor: the `since` of the next diff. upserts, deletes: the keys (doc_id, chunk) as tables; None
    where only numbers were asked for.
    """

    since: int
    until: int
    cursor: str
    n_upserts: int
    n_deletes: int
    upserts: pa.Table | None = None
    deletes: pa.Table | None = None


def diff(
    uri: str,
    since: int | str,
    until: int | None = None,
    *,
    keys: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Diff:
    """Count what differs between snapshot `since` (a number or a cursor; 0: the empty store) and
    snapshot `until` (the newest by default). keys: whether to list the keys, too.

    Raises OutputError when one of the two is not kept, or is another one than that of the cursor;
    SpecError for a `since` that is neither number nor cursor.
    """
    feed = changes(uri, since, until, storage_options)
    upserts = feed.upserts(KEY)
    deletes = feed.deletes()
    if not keys:
        return Diff(feed.since, feed.until, feed.cursor, _count(upserts), _count(deletes))
    put, gone = _table(upserts), _table(deletes)
    return Diff(feed.since, feed.until, feed.cursor, put.num_rows, gone.num_rows, put, gone)


_TYPES = {"doc_id": pa.string(), "chunk": pa.int32()}


def _table(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    rows = list(batches)
    return pa.table(
        {
            name: pa.chunked_array([batch.column(name) for batch in rows], type_)
            for name, type_ in _TYPES.items()
        }
    )


def _count(batches: Iterable[pa.RecordBatch]) -> int:
    return sum(len(batch) for batch in batches)
