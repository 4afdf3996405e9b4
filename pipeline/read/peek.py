"""The first records of a shard with all of their fields, for whoever does not know them yet.

In: a shard and how it is read. Out: one mapping a record, from each name that a spec can give
(`a`, or the path `a.b`) to its value as plain Python. The shard is read by the functions of its
reader. Cost: at most the bytes and seconds of a preview.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from pipeline.errors import InputError, ShardDamaged
from pipeline.job.csv_spec import CsvSpec
from pipeline.job.input_spec import InputSpec
from pipeline.read import READERS, csv, format_of, jsonl, read_span
from pipeline.read.compression import path_of
from pipeline.read.input.shards import open_shard
from pipeline.read.preview import Bounded, LimitReached
from pipeline.read.row_groups import ParquetShard
from pipeline.storage import layout
from pipeline.storage.lineage import Shard, Span

Record = dict[str, Any]

MAX_DEPTH = 4
"""How many objects inside each other a path goes through."""

WARC_HEADERS = (
    "WARC-Target-URI",
    "WARC-Record-ID",
    "WARC-Date",
    "WARC-Identified-Content-Language",
)
"""The headers of a WARC record that are looked at."""

DELIMITERS = (",", "\t", ";", "|")

TEXT = "text"
"""The name of the text of formats that have no fields."""

_MAX_PARQUET_BYTES = 64 << 20


def peek(shard: Shard, spec: InputSpec, n_records: int) -> list[Record]:
    """Up to `n_records` first good records of a shard; fewer where it breaks off or the limits of a
    preview are reached. Columns that its path holds (`lang=ja/`) are in each.

    Raises InputError where nothing of it can be read.
    """
    format = format_of(shard.uri, spec.format)
    records: list[Record] = []
    with open_shard(shard, spec.storage_options) as opened:
        file = cast(BinaryIO, Bounded(opened))
        rows = _ROWS.get(format, _rows_of_texts)(file, Span(shard=shard), spec)
        try:
            for record in itertools.islice(rows, n_records):
                records.append(record)
        except (LimitReached, ShardDamaged) as error:
            if not records:
                raise InputError(str(error) or f"{shard.uri}: no record ends early") from error
    in_path = layout.partition_values(path_of(shard.uri))
    return [{**in_path, **record} for record in records]


def delimiter_of(shard: Shard, spec: InputSpec) -> str:
    """The delimiter with which the first rows of a CSV shard have most columns, all the same number
    of them."""
    widths: dict[str, int] = {}
    for delimiter in DELIMITERS:
        choice = spec.model_copy(update={"csv": CsvSpec(delimiter=delimiter)})
        with open_shard(shard, spec.storage_options) as opened:
            rows, names = csv.opened(cast(BinaryIO, Bounded(opened)), Span(shard=shard), choice)
            lengths = {len(row.fields) for row in itertools.islice(rows, 20)}
        widths[delimiter] = len(names) if lengths <= {len(names)} else 0
    return max(widths, key=lambda delimiter: widths[delimiter])


def _rows_of_json(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[Record]:
    for record in jsonl.first_objects(file, span, spec):
        yield dict(_flat(record, "", 0))


def _rows_of_parquet(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[Record]:
    shard = ParquetShard(file, span.shard.uri)
    names = list(dict.fromkeys(shard.schema.names))
    for group in range(shard.metadata.num_row_groups):
        for batch in shard.batches(group, names, _MAX_PARQUET_BYTES):
            for record in batch.to_pylist(maps_as_pydicts="lossy"):
                yield dict(_flat(record, "", 0))


def _rows_of_csv(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[Record]:
    rows, names = csv.opened(file, span, spec)
    for row in rows:
        if row.reason is None and len(row.fields) == len(names):
            yield dict(zip(names, row.fields, strict=True))


def _rows_of_texts(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[Record]:
    is_warc = format_of(span.shard.uri, spec.format) == "warc"
    names = WARC_HEADERS if is_warc else ()
    plain = InputSpec(uri=spec.uri, format=spec.format, keep_columns=dict.fromkeys(names, "string"))
    for table in read_span(READERS[format_of(span.shard.uri, spec.format)], file, span, plain):
        for row in table.to_pylist():
            if row["text"] is not None:
                yield {TEXT: row["text"], **{name: row[name] for name in names}}


_ROWS: dict[str, Callable[[BinaryIO, Span, InputSpec], Iterator[Record]]] = {
    "jsonl": _rows_of_json,
    "parquet": _rows_of_parquet,
    "csv": _rows_of_csv,
}


def _flat(record: Record, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects by their paths; lists are leaves."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth < MAX_DEPTH:
            yield from _flat(value, f"{name}.", depth + 1)
        else:
            yield name, value
