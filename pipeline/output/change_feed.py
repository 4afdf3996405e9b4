"""The change feed: the rows to put and the keys to delete so that a store with one kept snapshot
holds another.

A key is (doc_id, chunk). Its value in a snapshot is the multiset of its rows: one row, unless
documents share an id. A key whose value differs is an upsert, with all of its rows in the later
snapshot, or a delete if it has none there. Rows are equal when fingerprint, text_sha256,
characters, tokens and kept columns are: the first two stand for the vector. Where a row came from
does not count, so compaction and moved shards change nothing.

Only parts that are in one of the two snapshots are read; where ids may be shared, also the keys of
the others. Cost: the columns that are compared, once; then changed parts whole. Memory: 32 bytes
for each of at most PASS_ROWS rows and twice that for sorting; more rows are compared in several
passes, by the hash of their key, and each pass reads again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import OutputError, SpecError
from pipeline.output.dataset import arrow_schema, read_head, rows_of
from pipeline.output.identity import identity_of
from pipeline.output.snapshots import live_parts
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store

PASS_ROWS = 1 << 23
KEY = ["doc_id", "chunk"]
_NOT_COMPARED = {
    *KEY,
    "text",
    "embedding",
    "embedding_scale",
    "source_uri",
    "source_etag",
    "source_record",
    "part_id",
    "run_id",
}
Keys = npt.NDArray[np.bytes_]  # (N,) of 16 bytes
Values = npt.NDArray[np.uint64]  # (N, 2)


def changes(
    uri: str,
    since: int | str,
    until: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Changes:
    """What to put and to delete so that a store with snapshot `since` holds snapshot `until` (the
    newest by default).

    since: the `cursor` of the changes that the store took last; 0 is the empty store. A number
    alone also names a snapshot, but not which one, after a roll-back or a restore of the output.
    Raises OutputError when one of the two is not kept, or when the snapshot of that number is
    another one than the cursor's; SpecError for a `since` that is neither.
    """
    return Changes(Store(uri, storage_options), since, until)


def cursor_of(snapshot: Snapshot) -> str:
    """A snapshot by number, run and content: `<number>-<run_id>-<hash of its file list>`."""
    digest = snapshot.file_list.rpartition("/")[2].partition(".")[0]
    return f"{snapshot.number}-{snapshot.run_id}-{digest}"


def _check_cursor(store: Store, cursor: str, snapshot: Snapshot) -> None:
    """Raises OutputError when a snapshot is not the one that a cursor was made from."""
    if cursor_of(snapshot) != cursor:
        raise OutputError(
            f"{store.shown_uri}: snapshot {snapshot.number} is not the one that this cursor has "
            f"seen: it is now from run {snapshot.run_id}, and the cursor is {cursor}. The output "
            "was rolled back, or restored from a backup. Start from the empty store: since=0, and "
            "replace what the store holds."
        )


class _Side(NamedTuple):
    """One of the two snapshots, and the parts of it that the other one lacks."""

    snapshot: Snapshot
    generation: Generation
    own: Sequence[Manifest]


class Changes:
    """The difference of two snapshots, read as it is iterated. No key is in both streams, so their
    order is free."""

    def __init__(self, store: Store, cursor: int | str, until: int | None) -> None:
        self._store = store
        number = str(cursor).partition("-")[0]
        if not number.isdecimal():
            raise SpecError(f"since is {cursor!r}: give a number, or the cursor of earlier changes")
        since = int(number)
        after = read_head(store, until)
        before = read_head(store, since) if since else after
        if since and str(cursor) != number:
            _check_cursor(store, str(cursor), before[0])
        self.since = since
        self.until = after[0].number
        self.cursor = cursor_of(after[0])
        new = {_files(part): part for part in live_parts(store, after[0])}
        old = {_files(part): part for part in live_parts(store, before[0])} if since else {}
        self._old = _Side(*before, [part for files, part in old.items() if files not in new])
        self._new = _Side(*after, [part for files, part in new.items() if files not in old])
        common = [part for files, part in new.items() if files in old]
        self._common = [] if _unique_ids(*before) and _unique_ids(*after) else common
        n_rows = sum(part.n_rows for part in [*self._old.own, *self._new.own])
        self._n_passes = max(1, -(-n_rows // PASS_ROWS))

    def upserts(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of `until` whose keys are new or have another value; all columns, or some.

        They are all rows of their keys: they replace whatever the store has under these. Raises
        SpecError for a column that the snapshot does not have.
        """
        known: list[str] = arrow_schema(self._new.generation).names
        names = known if columns is None else list(columns)
        if unknown := sorted({*names} - {*known}):
            raise SpecError(f"snapshot {self.until} has no columns {unknown}; it has {known}")
        for number in range(self._n_passes):
            changed, _ = self._compare(number)
            for batch in self._scan(self._new, [*self._new.own, *self._common], [*{*names, *KEY}]):
                if len(rows := batch.filter(pa.array(np.isin(_keys(batch), changed)))):
                    yield rows.select(names)

    def deletes(self) -> Iterator[pa.RecordBatch]:
        """Keys (doc_id, chunk) of `since` without a row in `until`, each once."""
        for number in range(self._n_passes):
            _, gone = self._compare(number)
            is_due = np.ones(len(gone), bool)
            for batch in self._scan(self._old, self._old.own, KEY):
                keys, first = np.unique(_keys(batch), return_index=True)
                hit = np.isin(keys, gone)
                place = np.searchsorted(gone, keys[hit])
                if is_due[place].any():
                    yield batch.take(pa.array(np.sort(first[hit][is_due[place]])))
                is_due[place] = False

    @functools.lru_cache(maxsize=1)  # noqa: B019  both feeds need it; goes with the next object or pass
    def _compare(self, number: int) -> tuple[Keys, Keys]:
        """Sorted keys with another value in `until`, and sorted keys that are gone, as far as they
        belong to a pass."""
        old, new = ([*self._values(side, side.own, number)] for side in (self._old, self._new))
        if self._common:
            own_keys = (keys for keys, _ in [*old, *new])
            touched = np.unique(np.concatenate([np.empty(0, "S16"), *own_keys]))
            for keys, values in self._values(self._new, self._common, number):
                hit = np.isin(keys, touched)
                old.append((keys[hit], values[hit]))
                new.append((keys[hit], values[hit]))
        (old_keys, old_values), (new_keys, new_values) = _summed(old), _summed(new)
        _, in_old, in_new = np.intersect1d(
            old_keys, new_keys, assume_unique=True, return_indices=True
        )
        differs = np.ones(len(new_keys), bool)
        differs[in_new] = (old_values[in_old] != new_values[in_new]).any(axis=1)
        return new_keys[differs], np.setdiff1d(old_keys, new_keys, assume_unique=True)

    def _values(
        self, side: _Side, parts: Sequence[Manifest], number: int
    ) -> Iterator[tuple[Keys, Values]]:
        """Keys and hashes of the compared columns, of the rows that belong to a pass."""
        known = arrow_schema(side.generation).names
        names = [name for name in known if name not in _NOT_COMPARED]
        for batch in self._scan(side, parts, [*KEY, *names]):
            keys = _keys(batch)
            rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
            values = np.frombuffer(_digests(map(repr, rows)), np.uint64).reshape(-1, 2)
            mine = keys.view(np.uint64)[::2] % np.uint64(self._n_passes) == number
            yield keys[mine], values[mine]

    def _scan(
        self, side: _Side, parts: Sequence[Manifest], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        return (batch for _, batch in rows_of(self._store, side.generation, parts, columns))


def _unique_ids(snapshot: Snapshot, generation: Generation) -> bool:
    """Whether no two documents of a snapshot share an id, as far as its record can tell."""
    return identity_of(generation).input.id_column is None or snapshot.n_duplicate_ids == 0


def _files(part: Manifest) -> tuple[tuple[str, str], ...]:
    return tuple((file.path, file.sha256) for file in part.data_files)


def _keys(batch: pa.RecordBatch) -> Keys:
    pairs = zip(*(batch.column(name).to_pylist() for name in KEY), strict=True)
    return np.frombuffer(_digests(f"{doc_id}\0{chunk}" for doc_id, chunk in pairs), "S16")


def _digests(texts: Iterable[str]) -> bytes:
    return b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)


def _summed(batches: Sequence[tuple[Keys, Values]]) -> tuple[Keys, Values]:
    """Sorted distinct keys, and for each the sum of its rows' hashes: equal for equal multisets."""
    all_keys = np.concatenate([np.empty(0, "S16"), *(keys for keys, _ in batches)])
    all_values = np.concatenate([np.empty((0, 2), np.uint64), *(values for _, values in batches)])
    keys, place = np.unique(all_keys, return_inverse=True)
    values = np.zeros((len(keys), 2), np.uint64)
    np.add.at(values, place, all_values)
    return keys, values
