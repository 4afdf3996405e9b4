"""JSON Lines: one object per line, cut at byte ranges when it is not compressed.

Everything is done a batch (1 MiB) at a time: `json_values` decodes it, then there is one list
comprehension and one Arrow array per column. `source_record` is the byte offset of the line in the
decompressed shard, `record_bytes` its length without the line end. Lines that are only ASCII white
space are not records. The last value of a repeated key counts. A column is the key of that very
name, else a path `a.b` into nested objects. A shard that is one JSON array, pretty-printed JSON or
no JSON at all is one reject (`containers`).

Cost: about 240 MB/s on a core with documents of 8 kB, 110 MB/s with records of 200 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.job.input_spec import InputSpec
from pipeline.read.columns import column_from_values
from pipeline.read.containers import json_problem_of
from pipeline.read.lines import LineBatch, line_spans, read_lines, starts_wrong
from pipeline.read.records import Rejects, records_table, reject_nul
from pipeline.read.values.ids import ids_of_values
from pipeline.read.values.json_values import (
    MISSING,
    column_of,
    decode,
    decode_each,
    restore,
    restore_decimals,
)
from pipeline.read.values.texts import text_by_template, text_of_values
from pipeline.storage.lineage import Shard, Span


class JsonlReader:
    """Reads `.jsonl`, `.ndjson` and `.json`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return line_spans(shard, part_bytes)

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        is_first = True
        for batch in read_lines(file, span, spec.max_record_bytes, json_problem_of):
            values = decode(batch.lines)
            if values is None and is_first and starts_wrong(file, span, json_problem_of):
                return  # the shard is one reject, of the span that starts with it
            is_first = False
            table = _table(batch, values, spec)
            if table.num_rows:
                yield table


def first_fields(file: BinaryIO, span: Span, spec: InputSpec) -> list[str]:
    """The keys of the first object of a shard, for a preview."""
    return list(next(first_objects(file, span, spec), {}))


def first_objects(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[dict[str, Any]]:
    """The objects of a shard that are not empty, in order; what is no object is passed over."""
    for batch in read_lines(file, span, spec.max_record_bytes, json_problem_of):
        yield from filter(None, decode_each(batch.without_blank(), spec, {}))


def _table(batch: LineBatch, values: list[dict[str, Any]] | None, spec: InputSpec) -> pa.Table:
    """values: the decoded lines, or None where they must be decoded one by one."""
    rejects: Rejects = {}
    if values is None:
        batch = batch.without_blank()
        values = decode_each(batch, spec, rejects)
    if spec.template is None:
        text = text_of_values(values, spec.text_column, rejects)
    else:
        text = text_by_template(values, spec.template, rejects)
    reject_nul(text, rejects)
    doc_id = None
    if spec.id_column is not None:
        ids = column_of(values, spec.id_column)
        ids = restore_decimals(ids, batch, spec.id_column)
        doc_id = ids_of_values(ids, values, spec.id_column, rejects)
    kept = []
    for name, type_ in spec.keep.items():
        column = restore(column_of(values, name), batch, name)
        column = [None if value is MISSING else value for value in column]
        kept.append(column_from_values(name, column, type_, rejects))
    return records_table(
        spec,
        source_record=batch.starts,
        record_bytes=batch.n_bytes,
        doc_id=doc_id,
        text=text,
        kept=kept,
        rejects=rejects,
    )
