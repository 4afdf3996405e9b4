"""Which documents of the head are not in the next snapshot: compared one by one, not by totals.

In: the parts of the head and those of the next snapshot. Out: the number of documents that leave,
by shard. A document stays when its id is in the next snapshot, or its text (of its first chunk):
then it has moved. Where the spec names no column of ids, an id is a place in a shard, so a document
that was edited has neither; it counts as replaced by a new one of the same shard. Only parts that
differ are read. Cost: four columns of these, and 24 bytes of memory for each of their documents.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.text_index import keys_of, or_none
from pipeline.storage.data_rows import READERS, read_columns
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store

_COLUMNS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("text_sha256", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
    ]
)
_NOTHING = pa.table(
    {"id": pa.nulls(0, pa.uint64()), "text": pa.nulls(0, pa.uint64()), "shard": pa.nulls(0)}
).cast(pa.schema([("id", pa.uint64()), ("text", pa.uint64()), ("shard", pa.string())]))


def leaving(live: Sequence[Manifest], parts: Sequence[Manifest]) -> list[Manifest]:
    """The parts of the head (`live`) that are not among those of the next snapshot."""
    next_ids = {part.part_id for part in parts}
    return [part for part in live if part.part_id not in next_ids]


def departures(
    store: Store, live: Sequence[Manifest], parts: Sequence[Manifest], *, has_ids: bool
) -> Counter[str]:
    """How many documents of each shard leave with the parts of the head (`live`) that are not among
    the next ones (`parts`). has_ids: whether a column of the input names the documents.

    A data file that is gone or damaged has no documents that could leave.
    """
    old = _documents(store, leaving(live, parts))
    new = _documents(store, leaving(parts, live))
    old_only = old.filter(_absent(old, new))
    by_shard = Counter[str](_counts(old_only["shard"]))
    if not has_ids:
        by_shard -= Counter(_counts(new.filter(_absent(new, old))["shard"]))
    return by_shard


def _absent(documents: pa.Table, others: pa.Table) -> pa.Array:
    """(N,) whether neither the id nor the text of a document is among those of the others."""
    same = np.zeros(documents.num_rows, bool)
    for name in ("id", "text"):
        same |= np.isin(documents[name].to_numpy(), others[name].to_numpy())
    return pa.array(~same)


def _documents(store: Store, parts: Sequence[Manifest]) -> pa.Table:
    """One row for each document: 8 bytes of a hash of its id and of its text, and its shard."""

    def of_file(path: str) -> pa.Table:
        documents = or_none(lambda: rows(read_columns(store, path, _COLUMNS.names, _COLUMNS)))
        return _NOTHING if documents is None else documents

    def rows(table: pa.Table) -> pa.Table:
        table = table.filter(pc.equal(table["chunk"], 0))
        columns = {
            "id": _hashes(table["doc_id"]),
            "text": keys_of(table["text_sha256"]),
            "shard": table["source_uri"].dictionary_encode(),
        }
        return pa.table(columns)

    paths = [file.path for part in parts for file in part.data_files]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(of_file, paths))
    types = _NOTHING.schema.set(2, pa.field("shard", pa.dictionary(pa.int32(), pa.string())))
    return pa.concat_tables([_NOTHING.cast(types), *(table.cast(types) for table in tables)])


def _hashes(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids.to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)


def _counts(shards: pa.ChunkedArray) -> dict[str, int]:
    counts = shards.unify_dictionaries().cast(pa.string()).value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counts}
