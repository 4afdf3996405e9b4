"""Plain text: one document per line (`text`), or one per file (`document`).

The whole line or file is the text. There are no other columns, so `id_column`, kept columns and a
template are refused as a mistake in the spec, and `text_column` is ignored. Lines that are only
ASCII white space are not records. `source_record` is the byte offset of the line in the
decompressed shard, and 0 for a file. Shards of lines are cut at byte ranges when they are not
compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError, ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read.compression import TrailingGarbage, decompressed_blocks
from pipeline.read.containers import other_kind
from pipeline.read.lines import (
    BYTE_ORDER_MARK,
    LineBatch,
    line_spans,
    read_lines,
    starts_wrong,
)
from pipeline.read.records import Rejects, records_table, reject_large, reject_nul, utf8_column
from pipeline.storage.lineage import Shard, Span


class TextReader:
    """Reads `.txt`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return line_spans(shard, part_bytes)

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        _refuse_columns(span.shard, spec)
        is_first = True
        for batch in read_lines(file, span, spec.max_record_bytes):
            table = _records(batch.without_blank(), spec)
            has_rejects = table["reason"].null_count < table.num_rows
            if has_rejects and is_first and starts_wrong(file, span):
                return  # the shard is one reject, of the span that starts with it
            is_first = False
            if table.num_rows:
                yield table


class DocumentReader:
    """Reads text files of any suffix, for `input.format: document`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return [Span(shard=shard)]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        _refuse_columns(span.shard, spec)
        file.seek(0)
        pieces: list[bytes] = []
        n_bytes = 0
        garbage: TrailingGarbage | None = None
        try:
            for block in decompressed_blocks(file, span.shard.uri):
                if not n_bytes and (problem := other_kind(block)):
                    raise ShardDamaged(f"{span.shard.uri}: the shard {problem}", 0)
                n_bytes += len(block)
                pieces = [*pieces, block] if n_bytes <= spec.max_record_bytes else []
        except TrailingGarbage as error:
            garbage = error  # the document before it is complete
        if n_bytes:
            text = b"".join(pieces).removeprefix(BYTE_ORDER_MARK)
            yield _records(LineBatch([text], np.zeros(1, np.int64), np.array([n_bytes])), spec)
        if garbage is not None:
            raise garbage


def _refuse_columns(shard: Shard, spec: InputSpec) -> None:
    columns = [*([spec.id_column] if spec.id_column else []), *spec.keep]
    if spec.template:
        columns += spec.template.fields
    if columns:
        raise InputError(
            f"{shard.uri}: plain text has no columns, and the spec names {', '.join(columns)}. "
            "Remove input.id_column, input.keep_columns and input.text_template."
        )


def _records(batch: LineBatch, spec: InputSpec) -> pa.Table:
    """A record for each of the texts of a batch."""
    rejects: Rejects = {}
    reject_large(batch.n_bytes, spec, rejects)
    text = utf8_column(
        pa.array(batch.lines, pa.binary()), rejects, "invalid_utf8", "the text is not UTF-8"
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
