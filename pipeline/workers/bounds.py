"""Bounds of what one record can cost beyond its text: long ids and kept columns, partition values
that no store takes as a name, and more partitions than a part may have.

In: the records of a part. Out: the same records, those out of bounds rejected. Which records of a
part are rejected hangs on the part alone, so a retry rejects the same ones. Cost: a look at the
lengths of each column; the partitions of a part are counted once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.spec import JobSpec
from pipeline.storage.layout import MAX_PARTITION_STEP, partition_step
from pipeline.storage.room import folder_room_bytes


def reject_out_of_bounds(records: pa.Table, spec: JobSpec) -> pa.Table:
    """Reject the records whose id, kept columns or partition values are out of bounds."""
    records = _reject_long_values(records, spec)
    records = _reject_long_partitions(records, spec)
    return _reject_rare_partitions(records, spec)


def _reject_long_values(records: pa.Table, spec: JobSpec) -> pa.Table:
    """Each row of a document has its id and its kept columns beside its text: a long one is written
    as often as the document has chunks."""
    limit = spec.input.max_column_bytes
    reasons = {"doc_id": "invalid_id"} if spec.input.id_column else {}
    reasons |= dict.fromkeys(spec.input.keep, "invalid_column")
    for name, reason in reasons.items():
        column = records[name]
        if not pa.types.is_string(column.type):
            continue
        lengths = pc.fill_null(pc.binary_length(column), 0)
        is_long = pc.greater(lengths, limit)
        if not pc.any(is_long).as_py():
            continue
        shown_name = spec.input.id_column if name == "doc_id" else name
        size = pc.cast(lengths, pa.string())
        detail = pc.binary_join_element_wise(f"{shown_name}: ", size, _limit_words(limit), "")
        records = _rejected(records, is_long, reason, detail)
        # the value itself would only be carried along
        position = records.column_names.index(name)
        shortened = pc.if_else(is_long, pa.scalar(None, pa.string()), column)
        records = records.set_column(position, name, shortened)
    return records


def _limit_words(limit: int) -> str:
    return f" bytes, input.max_column_bytes is {limit}"


def _reject_long_partitions(records: pa.Table, spec: JobSpec) -> pa.Table:
    """Reject records whose partition values make a folder name that is longer than disks allow, or
    folders that together are longer than a key of this output's store can be."""
    by = spec.output.partition_by
    if not by or not records.num_rows:
        return records
    n_bytes = np.full(records.num_rows, len(by) - 1)  # the slashes between the folders
    for name in by:
        n_step_bytes = _step_bytes(name, records[name])
        n_bytes += n_step_bytes
        if (is_long := n_step_bytes > MAX_PARTITION_STEP).any():
            detail = f"partition column {name} is too long"
            records = _rejected(records, pa.array(is_long), "invalid_column", detail)
    room_bytes = folder_room_bytes(spec.output.uri)
    if (is_long := n_bytes > room_bytes).any():
        names = ", ".join(by)
        limit = f" bytes of folders, {room_bytes} fit into a key of this output"
        sizes = pc.cast(pa.array(n_bytes), pa.string())
        detail = pc.binary_join_element_wise(f"partition columns {names}: ", sizes, limit, "")
        records = _rejected(records, pa.array(is_long), "invalid_column", detail)
    return records


def _step_bytes(name: str, column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The length in bytes of the Hive folder of each row."""
    values = pc.cast(column, pa.string()).combine_chunks().dictionary_encode("encode")
    steps = [partition_step(name, value) for value in values.dictionary.to_pylist()]
    lengths = np.array([len(step.encode()) for step in steps], np.int64)
    return lengths[values.indices.to_numpy()]


def _reject_rare_partitions(records: pa.Table, spec: JobSpec) -> pa.Table:
    """A part makes a file for each combination of partition values. Those with the most records
    keep theirs, and the records of the others are rejected; of equally many, the first stay."""
    by = list(spec.output.partition_by)
    limit = spec.output.max_partitions
    is_good = pc.is_null(records["reason"])
    good = records.filter(is_good)
    if not by or good.num_rows <= limit:
        return records
    numbers = np.zeros(good.num_rows, np.int64)
    for name in by:
        values = pc.cast(good[name], pa.string()).combine_chunks()
        encoded = values.dictionary_encode(null_encoding="encode")
        codes = encoded.indices.to_numpy()
        _, numbers = np.unique(numbers * (len(encoded.dictionary) + 1) + codes, return_inverse=True)
    counts = np.bincount(numbers)
    if len(counts) <= limit:
        return records
    _, first = np.unique(numbers, return_index=True)
    kept = np.lexsort((first, -counts))[:limit]
    is_rare = np.zeros(records.num_rows, bool)
    is_rare[is_good.to_numpy(zero_copy_only=False)] = ~np.isin(numbers, kept)
    detail = (
        f"{len(counts)} combinations of {', '.join(by)} in one part, output.max_partitions is "
        f"{limit}; those with the most records keep theirs"
    )
    return _rejected(records, pa.array(is_rare), "too_many_partitions", detail)


def _rejected(
    records: pa.Table, is_bad: pa.ChunkedArray | pa.Array, reason: str, detail: str | pa.Array
) -> pa.Table:
    """Records with a reason and a detail where `is_bad`, unless they have a reason already."""
    is_bad = pc.and_(pc.is_null(records["reason"]), is_bad)
    for column, value in {"reason": reason, "detail": detail}.items():
        filled = pc.if_else(is_bad, value, records[column])
        records = records.set_column(records.column_names.index(column), column, filled)
    return records
