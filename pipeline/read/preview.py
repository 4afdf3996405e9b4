"""What `plan` shows of the input: the fields of the first record and the first text, or the cause
why there is none.

The first shards of each format are read by its own reader, exactly as a run would, up to the first
good record. Cost: one opened shard per format, three where it has no good record; at most
MAX_BYTES and MAX_SECONDS (and one request more) for each.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from pipeline.errors import InputError, ShardChanged, ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read import READERS, csv, format_of, jsonl, parquet, read_span
from pipeline.read.compression import path_of
from pipeline.read.input.shards import open_shard
from pipeline.storage import layout
from pipeline.storage.lineage import Shard, Span

MAX_BYTES = 64 << 20
"""The most bytes of a shard that are read: four records of the default limit."""

MAX_SECONDS = 10.0
"""After this long no further request is made for a preview."""

MAX_CHARS = 1000
"""The most characters of a text that are given."""

MAX_NAMED = 12
MAX_SHOWN_CHARS = 60
"""How many fields, and how much of a text, a line shows."""

MAX_RECORDS = 1000
"""How many rejected records are passed over in the search for a good one."""

_UNITS = {
    "jsonl": "line",
    "text": "line",
    "csv": "row",
    "parquet": "row",
    "warc": "record",
    "document": "file",
}

_FIELDS: dict[str, Callable[[BinaryIO, Span, InputSpec], list[str]]] = {
    "jsonl": jsonl.first_fields,
    "csv": csv.first_fields,
    "parquet": parquet.first_fields,
}
"""How the names that `input.text_column` can have are read; plain text and WARC have none."""

_MISTAKES = {
    "missing_text",
    "text_not_a_string",
    "invalid_id",
    "invalid_column",
    "malformed_json",
    "not_an_object",
}
"""Reasons that concern a whole input where the first records all have them."""


@dataclass(frozen=True)
class Preview:
    """The start of the first shard of one format.

    unit: what one document is: a "line", "row", "record" or "file". fields: the names of the
    fields of the first record, and of the folders `name=value` on its way; of plain text and WARC
    only those. text: the first good text before `prepare`, cut to MAX_CHARS; it can hold control
    characters. problem: in words why there is no text; exactly one of the two is None. is_mistake:
    whether the problem concerns the spec or the whole input rather than this one shard. is_error:
    whether it ends a run, whatever share of rejects that may have.
    """

    format: str
    uri: str
    unit: str
    fields: tuple[str, ...] = ()
    text: str | None = None
    problem: str | None = None
    is_mistake: bool = False
    is_error: bool = False

    def __str__(self) -> str:
        """What one document is, the fields and the start of the text, or why there is none."""
        names = [*self.fields[:MAX_NAMED], *(["…"] if len(self.fields) > MAX_NAMED else [])]
        fields = f", fields {', '.join(names)}" if names else ""
        unit = f"{self.format}: 1 document a {self.unit}{fields}"
        if self.text is None:
            return f"{unit}; {self.problem}"
        text = " ".join(self.text[: 2 * MAX_SHOWN_CHARS].split())
        shortened = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
        return f'{unit}; first: "{shortened}"'


def previews(shards: Sequence[Shard], spec: InputSpec) -> list[Preview]:
    """One preview for each format among `shards`, in the order of their first shards; none for a
    format whose shards are all empty. It is of the first shard, where that has no text of the one
    in the middle or the last one: a folder can hold a description beside its data. Where none of
    the three has a text it is of the first, and a mistake only if all of them are. Raises nothing
    for what it cannot read: that is a problem."""
    by_format: dict[str, list[Shard]] = {}
    for shard in shards:
        if shard.size_bytes:
            by_format.setdefault(format_of(shard.uri, spec.format), []).append(shard)
    return [
        _preview_of(dict.fromkeys([some[0], some[len(some) // 2], some[-1]]), spec)
        for some in by_format.values()
    ]


def _preview_of(shards: Iterable[Shard], spec: InputSpec) -> Preview:
    without_text: list[Preview] = []
    for shard in shards:
        entry = preview(shard, spec)
        if entry.text is not None or entry.is_error:
            return entry
        without_text.append(entry)
    return replace(without_text[0], is_mistake=all(entry.is_mistake for entry in without_text))


def preview(shard: Shard, spec: InputSpec) -> Preview:
    """The preview of one shard."""
    format = format_of(shard.uri, spec.format)
    start = Preview(format=format, uri=shard.uri, unit=_UNITS.get(format, "record"))
    fields: tuple[str, ...] = ()
    is_open = False
    try:
        with open_shard(shard, spec.storage_options) as opened:
            is_open = True
            file = cast(BinaryIO, Bounded(opened))
            span = Span(shard=shard)
            if format in _FIELDS:
                with contextlib.suppress(ShardDamaged):  # read again below, as a reject
                    fields = tuple(_FIELDS[format](file, span, spec))
                file.seek(0)
            in_path = layout.partition_values(path_of(shard.uri))
            fields += tuple(name for name in in_path if name not in fields)
            text, problem, is_mistake = _first_text(file, span, format, spec)
    except LimitReached:
        problem = f"no record ends within {MAX_BYTES} bytes or {MAX_SECONDS:.0f} s"
        return replace(start, fields=fields, problem=problem)
    except InputError as error:
        is_error = is_open and not isinstance(error, ShardChanged)
        start = replace(start, is_mistake=is_error, is_error=is_error)
        return replace(start, fields=fields, problem=str(error))
    return replace(start, fields=fields, text=text, problem=problem, is_mistake=is_mistake)


def _first_text(
    file: BinaryIO, span: Span, format: str, spec: InputSpec
) -> tuple[str | None, str | None, bool]:
    """(the first good text, or the first problem, whether that is a mistake)"""
    n_records = 0
    problem: str | None = None
    reasons: set[str] = set()
    for table in read_span(READERS[format], file, span, spec):
        for row in table.select(["text", "reason", "detail", "source_record"]).to_pylist():
            if row["text"] is not None:
                return row["text"][:MAX_CHARS], None, False
            reasons.add(row["reason"])
            problem = problem or (
                f"{span.shard.uri} record {row['source_record']}: {row['reason']}: {row['detail']}"
            )
        n_records += table.num_rows
        if n_records >= MAX_RECORDS:
            break
    if problem is None:
        return None, f"{span.shard.uri}: no records", False
    return None, problem, reasons <= _MISTAKES


class LimitReached(Exception):
    """More was asked for than a preview may read."""


class Bounded(io.RawIOBase):
    """A file of which at most MAX_BYTES are read, and nothing after MAX_SECONDS."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._rest_bytes = MAX_BYTES
        self._deadline = time.monotonic() + MAX_SECONDS

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._rest_bytes <= 0 or time.monotonic() > self._deadline:
            raise LimitReached
        data = self._file.read(self._rest_bytes if size < 0 else min(size, self._rest_bytes))
        self._rest_bytes -= len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
