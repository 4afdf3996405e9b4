"""Rows to the bytes of a Parquet file, whole in memory, and the Hive folders they go into.

Physical form (measured, docs/design.md): `fixed_size_list<float32>[D]`, BYTE_STREAM_SPLIT and
zstd-1, no dictionary on float vectors, page checksums. Half precision is rounding *inside* float32:
half the bytes after compression, and every reader understands it, which native FLOAT16 columns do
not (Spark refuses the whole file).
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.storage import layout, schema

ROW_GROUP_BYTES = 32 << 20
_PLAIN = ("doc_id", "text", "embedding", "embedding_scale", "text_sha256")


def partitions(
    table: pa.Table, by: Sequence[str]
) -> Iterator[tuple[dict[str, str | None], str, pa.Table]]:
    """Split rows by the values of the columns `by`: (values as text, folder, rows without these
    columns).

    Order of rows is kept inside each. Without `by`, or without rows, everything is one partition
    with folder ''.
    """
    if not by:
        yield {}, "", table
        return
    if not table.num_rows:
        return
    as_text = pa.table({name: pc.cast(table[name], pa.string()) for name in by})
    keys = as_text.group_by(by, use_threads=False).aggregate([]).to_pylist()
    rest = table.drop_columns(list(by))
    for key in keys:
        masks = [
            pc.is_null(as_text[name]) if value is None else pc.equal(as_text[name], value)
            for name, value in key.items()
        ]
        folder = "/".join(layout.partition_step(name, key[name]) for name in by)
        # a row whose own value is null compares as null, which a filter drops
        yield key, folder, rest.filter(functools.reduce(pc.and_, masks))


def encode(
    table: pa.Table, metadata: Mapping[str, object], more_tables: Iterable[pa.Table] = ()
) -> bytes:
    """A complete Parquet file with lineage in its key-value metadata, checked by reading its footer
    back.

    more_tables: rows that follow those of `table`; each table becomes one row group or more. A
    dictionary becomes the strings that it stands for, one row group at a time. Raises OutputError
    if the footer does not say what was written.
    """
    arrow_schema = _decoded(table.slice(0, 0)).schema
    sink = io.BytesIO()
    n_rows = 0
    vectors = arrow_schema.field("embedding").type if "embedding" in arrow_schema.names else None
    split_floats = vectors is not None and pa.types.is_float32(vectors.value_type)
    dictionaries = [name for name in arrow_schema.names if name not in _PLAIN]
    if vectors is not None and not split_floats:
        # Parquet stores int8 as 32-bit integers: plain takes 0.35 of raw float32, with a dictionary
        # 0.235 (measured)
        dictionaries.append("embedding.list.element")
    with pq.ParquetWriter(
        sink,
        arrow_schema.with_metadata(schema.footer(metadata)),
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionaries,
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"} if split_floats else None,
        write_page_checksum=True,
        write_page_index=True,
        store_schema=True,
    ) as writer:
        for rows in itertools.chain([table], more_tables):
            n_rows += rows.num_rows
            group_rows = ROW_GROUP_BYTES * max(rows.num_rows, 1) // max(_decoded_bytes(rows), 1)
            group_rows = max(1, group_rows)
            for start in range(0, max(rows.num_rows, 1), group_rows):
                group = _decoded(rows.slice(start, group_rows))
                writer.write_table(group, row_group_size=group_rows)
    data = sink.getvalue()
    n_encoded = pq.read_metadata(pa.BufferReader(data)).num_rows
    if n_encoded != n_rows:
        raise OutputError(
            f"a data file was encoded with {n_encoded} rows instead of {n_rows}; report this"
        )
    return data


def _decoded(rows: pa.Table) -> pa.Table:
    """Rows with strings in place of dictionaries."""
    for position, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            column = rows.column(position).cast(field.type.value_type)
            rows = rows.set_column(position, field.with_type(field.type.value_type), column)
    return rows


def _decoded_bytes(rows: pa.Table) -> int:
    """What `rows.nbytes` would be without dictionaries."""
    n_bytes = 0
    for column in rows.columns:
        if not pa.types.is_dictionary(column.type):
            n_bytes += column.nbytes
            continue
        for values in column.chunks:
            lengths = pc.fill_null(pc.binary_length(values.dictionary), 0).cast(pa.int64())
            n_bytes += 4 * len(values) + (pc.sum(lengths.take(values.indices)).as_py() or 0)
    return n_bytes
