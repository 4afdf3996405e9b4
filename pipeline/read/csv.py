"""CSV and tab-separated values: never split, because a quoted field may hold newlines.

`csv_dialect` splits rows into fields, fed line by line from `lines`, so that one bad row costs one
row: Arrow's CSV reader fails the whole block for it. `source_record` is the number of the row,
counted from 0 after the header without blank lines; `record_bytes` its length without line ends. A
row with too many or too few fields is rejected. A quote that is never closed would swallow the rest
of the shard: its first line is rejected, and reading continues with the line after it. The same
happens to a quoted field of more than `max_record_bytes`. Among the lines that are read again for
that, each further failure halves the bytes that a field can extend over, so that the work stays
linear. A line end inside of a field stays as it is.

Cost: about 50 MB/s on a core with lines of 40 bytes, more with longer ones. Memory: a row of up to
`max_record_bytes`, twice.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.errors import ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read.columns import column_from_values
from pipeline.read.compression import without_compression_suffix
from pipeline.read.csv_dialect import Dialect, dialect_of
from pipeline.read.lines import read_lines
from pipeline.read.records import (
    Rejects,
    batched,
    check_columns,
    records_table,
    reject,
    reject_nul,
    string_column,
)
from pipeline.read.values.texts import filled
from pipeline.storage.lineage import Shard, Span

_MAX_LINES = 1 << 18
"""The most lines of a quoted field. Until the field ends each line is a Python string of its own,
which takes a hundred bytes even when it is empty."""


class CsvReader:
    """Reads `.csv` and `.tsv`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return [Span(shard=shard)]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        rows, header = opened(file, span, spec)
        if not header:
            return
        hint = " If the first row is no header, or another delimiter splits it, set input.csv."
        names = check_columns(header, span.shard.uri, spec, hint)
        places = {name: header.index(name) for name in names}
        first_row = 0
        for batch in batched(rows, lambda row: row.n_bytes):
            yield _table(batch, first_row, len(header), places, spec)
            first_row += len(batch)


def first_fields(file: BinaryIO, span: Span, spec: InputSpec) -> list[str]:
    """The columns that the header or the spec names, for a preview."""
    return opened(file, span, spec)[1]


def opened(file: BinaryIO, span: Span, spec: InputSpec) -> tuple[_Rows, list[str]]:
    """The rows after the header, and the names of the columns; none where the shard is empty."""
    # The limit is global to the process and 128 KiB by default; it is only raised here.
    csv.field_size_limit(max(csv.field_size_limit(), spec.max_record_bytes + 1))
    batches = _lines(file, span, spec)
    first_batch = next(batches, [])
    is_tsv = without_compression_suffix(span.shard.uri).lower().endswith(".tsv")
    names = list(spec.csv.columns or ())

    def is_header(fields: list[str]) -> bool:
        if names:
            return len(fields) == len(names)
        return all(fields.count(name) == 1 for name in spec.fields)

    dialect = dialect_of([line for line, _ in first_batch], spec.csv, is_tsv, is_header)
    lines = itertools.chain([first_batch], batches)
    rows = _Rows(lines, dialect, spec.max_record_bytes, n_header_rows=0 if names else 1)
    if not first_batch:
        return rows, []
    if not names:
        header = next(rows, None)
        names = header.fields if header else []
    return rows, names


class _Row(NamedTuple):
    """One parsed row, or one that could not be parsed: then `reason` is set."""

    fields: list[str]
    n_bytes: int
    reason: str | None = None
    detail: str = ""


_Line = tuple[str, int]
"""Content with its line end, and the length in bytes without it."""


def _lines(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[list[_Line]]:
    """Batches of lines. Bytes that do not fit the charset become surrogates, so that only their row
    is rejected."""
    encoding = spec.csv.encoding
    for batch in read_lines(file, span, spec.max_record_bytes, keeps_returns=True):
        if encoding == "utf-8":
            content = b"\n".join(batch.lines).decode(encoding, "surrogateescape").split("\n")
        else:  # a stray lead byte must not take the end of its line with it
            content = [line.decode(encoding, "surrogateescape") for line in batch.lines]
        yield list(zip([line + "\n" for line in content], batch.n_bytes.tolist(), strict=True))


class _Overflow(Exception):
    """The row that `csv` is assembling is over the limit."""


class _Rows(Iterator[_Row]):
    """Rows of a stream of lines, the header first. Raises ShardDamaged at the number of the row
    that is cut off."""

    def __init__(
        self,
        lines: Iterable[list[_Line]],
        dialect: Dialect,
        max_record_bytes: int,
        n_header_rows: int,
    ) -> None:
        self._source = itertools.chain.from_iterable(lines)
        self._again: deque[_Line] = deque()  # lines to read again
        self._row_lines: list[_Line] = []
        self._n_row_bytes = 0
        self._max_bytes = max_record_bytes
        self._max_field_bytes = max_record_bytes
        self._dialect = dialect
        self._reader = dialect.rows(self._feed())
        self._damage: ShardDamaged | None = None
        self._n_rows = -n_header_rows  # after the header

    def _feed(self) -> Iterator[str]:
        try:
            while line := self._again.popleft() if self._again else next(self._source, None):
                self._row_lines.append(line)
                n_lines = len(self._row_lines)
                self._n_row_bytes += line[1] + (n_lines > 1)
                limit = self._max_bytes if n_lines == 1 else self._max_field_bytes
                if self._n_row_bytes > limit or n_lines > _MAX_LINES:
                    raise _Overflow
                yield line[0]
        except ShardDamaged as error:
            self._damage = error

    def __next__(self) -> _Row:
        while True:
            if not self._again:
                self._max_field_bytes = self._max_bytes
            self._row_lines = []
            self._n_row_bytes = 0
            try:
                fields = next(self._reader)
            except (csv.Error, _Overflow, StopIteration) as error:
                if self._damage is not None:  # the row is cut off, and belongs to the damage
                    row = max(0, self._n_rows)
                    lost_bytes = self._damage.lost_bytes
                    raise ShardDamaged(str(self._damage), row, lost_bytes) from error
                if isinstance(error, StopIteration):
                    raise
                self._n_rows += 1
                return self._skip_first_line(error)
            if fields:
                self._n_rows += 1
                return _Row(fields, self._n_row_bytes)

    def _skip_first_line(self, error: Exception) -> _Row:
        """Reject the first line of the row at fault, and read the lines after it again."""
        (_, n_bytes), *rest = self._row_lines
        self._again.extendleft(reversed(rest))
        self._reader = self._dialect.rows(self._feed())
        max_field_bytes = self._max_field_bytes
        if rest:
            self._max_field_bytes = min(max_field_bytes, self._n_row_bytes) // 2
        if not isinstance(error, _Overflow):
            return _Row([], n_bytes, "invalid_column", f"not CSV: {error}")
        detail = f"a line is longer than input.max_record_bytes, {self._max_bytes}"
        if rest:
            detail = (
                f"a quoted field that starts in this line does not end within {max_field_bytes} "
                f"bytes and {_MAX_LINES} lines"
            )
        return _Row([], n_bytes, "record_too_large", detail)


def _table(
    rows: list[_Row], first_row: int, n_fields: int, places: dict[str, int], spec: InputSpec
) -> pa.Table:
    rejects: Rejects = {}
    for number, row in enumerate(rows):
        if row.reason is not None:
            reject(rejects, number, row.reason, row.detail)
        elif len(row.fields) != n_fields:
            detail = f"{len(row.fields)} fields, the header has {n_fields}"
            if any('"' in field for field in row.fields):
                detail += "; input.csv.quote and escape say how fields are quoted"
            reject(rejects, number, "invalid_column", detail)
    columns = {
        name: [None if number in rejects else row.fields[place] for number, row in enumerate(rows)]
        for name, place in places.items()
    }
    cause = f"not {spec.csv.encoding.upper()}"
    fields = [
        string_column(columns[name], rejects, "invalid_utf8", cause) for name in spec.text_fields
    ]
    text = filled(spec.template, fields, rejects) if spec.template else fields[0]
    reject_nul(text, rejects)
    doc_id = None
    if spec.id_column is not None:
        doc_id = string_column(columns[spec.id_column], rejects, "invalid_id", cause)
    kept = [
        column_from_values(name, _empty_as_null(columns[name], type_), type_, rejects)
        for name, type_ in spec.keep.items()
    ]
    return records_table(
        spec,
        source_record=np.arange(first_row, first_row + len(rows), dtype=np.int64),
        record_bytes=np.array([row.n_bytes for row in rows], np.int64),
        doc_id=doc_id,
        text=text,
        kept=kept,
        rejects=rejects,
    )


def _empty_as_null(values: list[str | None], type_: pa.DataType) -> list[str | None]:
    """An empty field is an empty string; in a column of numbers, dates or booleans it is null."""
    return list(values) if pa.types.is_string(type_) else [value or None for value in values]
