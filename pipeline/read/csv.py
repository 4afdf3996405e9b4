r"""CSV with a header row (and tab-separated values, by the suffix .tsv): never split, because a
quoted field may hold newlines.

Python's own `csv` reads the rows, fed line by line from `lines`, so that one bad row costs one row:
Arrow's CSV reader fails the whole block for it. `source_record` is the number of the row, counted
from 0 after the header without blank lines; `record_bytes` its length without line ends. A row with
too many or too few fields is rejected. A quote that is never closed would swallow the rest of the
shard: its first line is rejected, and reading continues with the line after it. The same happens to
a quoted field of more than `max_record_bytes`. Among the lines that are read again for that, each
further failure halves the bytes that a field can extend over, so that the work stays linear. Every
line end inside a field becomes \n.

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
from pipeline.read.texts import filled
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
        rows = _rows(file, span, spec)
        header = next(rows, None)
        if header is None:
            return
        names = check_columns(header.fields, span.shard.uri, spec)
        places = {name: header.fields.index(name) for name in names}
        first_row = 0
        for batch in batched(rows, lambda row: row.n_bytes):
            yield _table(batch, first_row, len(header.fields), places, spec)
            first_row += len(batch)


def first_fields(file: BinaryIO, span: Span, spec: InputSpec) -> list[str]:
    """The columns that the header names, for a preview."""
    header = next(_rows(file, span, spec), None)
    return header.fields if header else []


class _Row(NamedTuple):
    """One parsed row, or one that could not be parsed: then `reason` is set."""

    fields: list[str]
    n_bytes: int
    reason: str | None = None
    detail: str = ""


_Line = tuple[str, int]
"""Content with its line end, and the length in bytes without it."""


def _lines(file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[Iterable[_Line]]:
    """Batches of lines. Bytes that are not UTF-8 become surrogates, so that only their row is
    rejected."""
    for batch in read_lines(file, span, spec.max_record_bytes):
        content = b"\n".join(batch.lines).decode("utf-8", "surrogateescape").split("\n")
        yield zip([line + "\n" for line in content], batch.n_bytes.tolist(), strict=True)


def _rows(file: BinaryIO, span: Span, spec: InputSpec) -> _Rows:
    # The limit is global to the process and 128 KiB by default; it is only raised here.
    csv.field_size_limit(max(csv.field_size_limit(), spec.max_record_bytes + 1))
    delimiter = "\t" if without_compression_suffix(span.shard.uri).lower().endswith(".tsv") else ","
    return _Rows(_lines(file, span, spec), delimiter, spec.max_record_bytes)


class _Overflow(Exception):
    """The row that `csv` is assembling is over the limit."""


class _Rows(Iterator[_Row]):
    """Rows of a stream of lines, the header first. Raises ShardDamaged at the number of the row
    that is cut off."""

    def __init__(
        self, lines: Iterator[Iterable[_Line]], delimiter: str, max_record_bytes: int
    ) -> None:
        self._source = itertools.chain.from_iterable(lines)
        self._again: deque[_Line] = deque()  # lines to read again
        self._row_lines: list[_Line] = []
        self._n_row_bytes = 0
        self._max_bytes = max_record_bytes
        self._max_field_bytes = max_record_bytes
        self._delimiter = delimiter
        self._reader = self._new_reader()
        self._damage: ShardDamaged | None = None
        self._n_rows = -1  # after the header

    def _new_reader(self) -> Iterator[list[str]]:
        # strict: a quote that is still open at the end of the shard is an error, not a field
        return csv.reader(self._feed(), delimiter=self._delimiter, strict=True)

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
        self._reader = self._new_reader()
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
            reject(rejects, number, "invalid_column", detail)
    columns = {
        name: [None if number in rejects else row.fields[place] for number, row in enumerate(rows)]
        for name, place in places.items()
    }
    fields = [
        string_column(columns[name], rejects, "invalid_utf8", "not UTF-8")
        for name in spec.text_fields
    ]
    text = filled(spec.template, fields, rejects) if spec.template else fields[0]
    reject_nul(text, rejects)
    doc_id = None
    if spec.id_column is not None:
        doc_id = string_column(columns[spec.id_column], rejects, "invalid_id", "not UTF-8")
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
