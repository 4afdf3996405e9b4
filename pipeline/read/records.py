"""What every reader shares: a batch of records becomes a table of `schema.records_schema`.

A reader collects one value per record for each column, and a sparse `Rejects` for the few records
that are rejected. Here they become one Arrow table: a rejected record keeps its position, length
and id, and has a reason instead of a text. Tables are built in bulk, from about 1 MiB of text at a
time, so a reader's memory is bounded by its batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.storage.schema import REASONS, records_schema

T = TypeVar("T")

BATCH_BYTES = 1 << 20
"""About how many bytes of source text become one table."""

BATCH_RECORDS = 4096
"""The most records in one table of a format that is read record by record."""

DETAIL_CHARS = 200
"""The most characters of a `detail`, which tells a person what is wrong with a record."""

_NAMES_CHARS = 600

Rejects = dict[int, tuple[str, str]]
"""Row number within the batch -> (reason, detail). The first reason given for a row stays."""


class NoText(Exception):
    """The record has no text; `reason` is one of `schema.REASONS`, the message its detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_SURROGATE = re.compile("[\ud800-\udfff]")


def batched(
    items: Iterator[T], n_bytes: Callable[[T], int], n_records: int = BATCH_RECORDS
) -> Iterator[list[T]]:
    """Lists of items of about BATCH_BYTES, at most `n_records` each. The items before damage are
    yielded before ShardDamaged is raised."""
    batch: list[T] = []
    n_batch_bytes = 0
    damage: ShardDamaged | None = None
    while True:
        item = None
        try:
            item = next(items, None)
        except ShardDamaged as error:
            damage = error
        if item is None:
            break
        batch.append(item)
        n_batch_bytes += n_bytes(item)
        if n_batch_bytes >= BATCH_BYTES or len(batch) >= n_records:
            yield batch
            batch = []
            n_batch_bytes = 0
    if batch:
        yield batch
    if damage is not None:
        raise damage


def check_columns(columns: Sequence[str], uri: str, spec: InputSpec, hint: str = "") -> list[str]:
    """The columns that `spec` uses, each once.

    columns: those of the shard. hint: another way out than to set the column. Raises InputError for
    a column of `spec` that the shard does not have, or has more than once.
    """
    settings = dict.fromkeys(spec.keep, "keep_columns")
    if spec.id_column is not None:
        settings[spec.id_column] = "id_column"
    settings |= dict.fromkeys(spec.text_fields, spec.text_setting)
    for name, setting in settings.items():
        count = columns.count(name)
        if count != 1:
            names = ", ".join(columns).encode("utf-8", "replace").decode()
            if len(names) > _NAMES_CHARS:
                names = f"{names[:_NAMES_CHARS]}… ({len(columns)} columns)"
            raise InputError(
                f"{uri}: column {name!r} {'found twice' if count else 'not found'}; columns are "
                f"{names}. Set input.{setting}.{hint}"
            )
    return list(settings)


def reject_large(n_bytes: npt.NDArray[np.int64], spec: InputSpec, rejects: Rejects) -> None:
    """Reject the records that are longer than `input.max_record_bytes`. n_bytes: (N,) lengths."""
    for row in rows_where(n_bytes > spec.max_record_bytes):
        detail = f"{n_bytes[row]} bytes, input.max_record_bytes is {spec.max_record_bytes}"
        reject(rejects, row, "record_too_large", detail)


def reject(rejects: Rejects, row: int, reason: str, detail: str) -> None:
    """Reject `row`, unless an earlier rule already did."""
    if row not in rejects:
        if len(detail) > DETAIL_CHARS:
            detail = detail[: DETAIL_CHARS - 1] + "…"
        rejects[row] = (reason, detail.encode("utf-8", "backslashreplace").decode())


def reject_all(rejects: Rejects, rows: Iterable[int], reason: str, detail: str) -> None:
    for row in rows:
        reject(rejects, row, reason, detail)


def rows_where(mask: pa.BooleanArray | npt.NDArray[np.bool_]) -> list[int]:
    """Indices of the rows where a mask (N,) is true; null counts as false."""
    if not isinstance(mask, np.ndarray):
        mask = mask.fill_null(False).to_numpy(zero_copy_only=False)
    return np.flatnonzero(mask).tolist()


def records_table(
    spec: InputSpec,
    *,
    source_record: npt.NDArray[np.int64],
    record_bytes: npt.NDArray[np.int64],
    doc_id: pa.Array | None,
    text: pa.Array,
    kept: Sequence[pa.Array],
    rejects: Rejects,
) -> pa.Table:
    """One batch as a table of `records_schema(spec.keep)`: N rows, text null exactly where a
    reason is set.

    source_record, record_bytes: (N,). doc_id (None where there are no ids), text: (N,) string.
    kept: for each kept column one (N,) array of its declared type, in the order of `spec.keep`. A
    good row must have a text; without one the reader has a bug.
    """
    n_records = len(source_record)
    nulls = pa.nulls(n_records, pa.string())
    reason = nulls
    detail = nulls
    if rejects:
        reasons: list[str | None] = [None] * n_records
        details: list[str | None] = [None] * n_records
        for row, (reasons[row], details[row]) in rejects.items():
            if reasons[row] not in REASONS:
                raise ValueError(f"{reasons[row]!r} is not in schema.REASONS")
        reason = pa.array(reasons, pa.string())
        detail = pa.array(details, pa.string())
        text = pc.if_else(reason.is_valid(), pa.scalar(None, pa.string()), text)
    numbers = [pa.array(source_record, pa.int64()), pa.array(record_bytes, pa.int64())]
    columns = [*numbers, nulls if doc_id is None else doc_id, text, reason, detail, *kept]
    return pa.Table.from_arrays(columns, schema=records_schema(spec.keep))


def damaged_table(position: int, detail: str, spec: InputSpec, lost_bytes: int) -> pa.Table:
    """The one-row table that stands for everything unreadable of a shard from `position` on.

    lost_bytes: how many stored bytes of the shard that is; the `record_bytes` of the row.
    """
    rejects: Rejects = {}
    reject(rejects, 0, "damaged_shard", detail)
    return records_table(
        spec,
        source_record=np.array([position]),
        record_bytes=np.array([lost_bytes], np.int64),
        doc_id=None,
        text=pa.nulls(1, pa.string()),
        kept=[pa.nulls(1, type_) for type_ in spec.keep.values()],
        rejects=rejects,
    )


def reject_nul(text: pa.Array, rejects: Rejects) -> None:
    """Reject the rows of `text` that contain U+0000: tokenizers written in C would stop there and
    embed half a text."""
    data = text.buffers()[2]
    # ten times faster than the search by row
    if data is not None and (np.frombuffer(data, np.uint8) == 0).any():
        reject_all(
            rejects,
            rows_where(pc.match_substring(text, "\0")),
            "nul_character",
            "U+0000 in the text",
        )


def utf8_column(data: pa.Array, rejects: Rejects, reason: str, detail: str) -> pa.Array:
    """(N,) binary to (N,) string; a row that is not valid UTF-8 is rejected and becomes null.

    Arrow checks the whole batch at once; only a batch that fails is checked row by row.
    """
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        values = [value and value.decode("utf-8", "surrogateescape") for value in data.to_pylist()]
        return string_column(values, rejects, reason, detail)


def string_column(
    values: Sequence[str | None], rejects: Rejects, reason: str, detail: str
) -> pa.Array:
    """(N,) string. A value with half of a surrogate pair has no UTF-8 form: it is rejected and
    becomes null."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        bad_rows = {row for row, value in enumerate(values) if value and _SURROGATE.search(value)}
    reject_all(rejects, bad_rows, reason, detail)
    return pa.array(
        [None if row in bad_rows else value for row, value in enumerate(values)], pa.string()
    )
