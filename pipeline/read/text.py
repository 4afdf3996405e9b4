"""Plain text: one document per line, cut at byte ranges when it is not compressed.

The whole line is the text. There are no other columns, so `id_column` and kept columns are refused
as a mistake in the spec, and `text_column` is ignored. Lines that are only ASCII white space are
not records. `source_record` is the byte offset of the line in the decompressed shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.job.input_spec import InputSpec
from pipeline.read.lines import LineBatch, line_spans, read_lines, starts_wrong
from pipeline.read.records import Rejects, records_table, reject_large, reject_nul, utf8_column
from pipeline.storage.lineage import Shard, Span


class TextReader:
    """Reads `.txt`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return line_spans(shard, part_bytes)

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        columns = [*([spec.id_column] if spec.id_column else []), *spec.keep]
        if columns:
            raise InputError(
                f"{span.shard.uri}: plain text has no columns, and the spec names "
                f"{', '.join(columns)}. Remove input.id_column and input.keep_columns."
            )
        is_first = True
        for batch in read_lines(file, span, spec.max_record_bytes):
            table = _table(batch, spec)
            has_rejects = table["reason"].null_count < table.num_rows
            if has_rejects and is_first and starts_wrong(file, span):
                return  # the shard is one reject, of the span that starts with it
            is_first = False
            if table.num_rows:
                yield table


def _table(batch: LineBatch, spec: InputSpec) -> pa.Table:
    batch = batch.without_blank()
    rejects: Rejects = {}
    reject_large(batch.n_bytes, spec, rejects)
    text = utf8_column(
        pa.array(batch.lines, pa.binary()), rejects, "invalid_utf8", "the line is not UTF-8"
    )
    reject_nul(text, rejects)
    return records_table(
        spec,
        source_record=batch.starts,
        record_bytes=batch.n_bytes,
        doc_id=None,
        text=text,
        kept=[],
        rejects=rejects,
    )
