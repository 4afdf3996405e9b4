"""WARC and WET: every `conversion`, `response` and `resource` record is a document; warcinfo, request, metadata and
revisit records are none and are passed over.

The text of a text/plain record is its payload (all of WET is that); text/html goes through resiliparse (extra "html");
other content types are rejected. HTTP headers and encodings of `response` records are fastwarc's work (extra "warc").
`id_column` and kept columns name WARC headers (WARC-Record-ID, WARC-Target-URI, WARC-Date, ...); `text_column` is not
looked at. `source_record` is the byte offset of the record in the decompressed shard, `record_bytes` its length with
its headers.

Why the framing is read here: fastwarc returns a record that is cut off as if it were whole, and warcio passes over it in
silence. Here a record counts only when all of its Content-Length is there. Where no record starts although one should
(a wrong Content-Length, overwritten bytes), one `damaged_shard` row says so and reading goes on at the next record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import ShardDamaged
from pipeline.lineage import Shard, Span
from pipeline.read.byte_stream import ByteStream
from pipeline.read.columns import column_from_values
from pipeline.read.compression import decompressed_blocks
from pipeline.read.records import (
    BATCH_BYTES,
    BATCH_RECORDS,
    ReadOptions,
    Rejects,
    damaged_table,
    records_table,
    reject,
    reject_nul,
    utf8_column,
)
from pipeline.read.warc_text import NoText, text_of

DOCUMENT_TYPES = {"conversion", "response", "resource"}
_HEADER_BYTES = 1 << 20  # longest header block that is looked for
_RECORD_START = b"WARC/1."


class WarcReader:
    """Reads `.warc` and `.wet`, compressed per record or as a whole."""

    def spans(self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int) -> list[Span]:
        return [Span(shard=shard)]

    def records(self, file: BinaryIO, span: Span, options: ReadOptions) -> Iterator[pa.Table]:
        file.seek(0)
        stream = ByteStream(decompressed_blocks(file, span.shard.uri))
        batch = _Batch(options)
        is_lost = False  # since the last record
        damage: ShardDamaged | None = None
        while damage is None:
            bad: _BadFraming | None = None
            try:
                record = _next_record(stream, span.shard.uri, options.max_record_bytes)
                if record is None:
                    break
                is_lost = False
                if record.headers.get("warc-type", "").lower() in DOCUMENT_TYPES:
                    batch.add(record)
            except _BadFraming as error:
                bad = None if is_lost else error
                is_lost = True
            except ShardDamaged as error:
                damage = error
            if batch.is_full() or (bad and batch.records):
                yield batch.table()
                batch = _Batch(options)
            if bad:
                yield damaged_table(bad.position, str(bad), options)
            if is_lost:
                try:
                    stream.skip_to_line(_RECORD_START, _HEADER_BYTES)
                except ShardDamaged as error:
                    damage = error
        if batch.records:
            yield batch.table()
        if damage is not None:
            raise damage


class _BadFraming(ShardDamaged):
    """The bytes are there, but no record starts where one should."""


@dataclass(frozen=True)
class _Record:
    start: int
    head: bytes  # version and headers with the empty line
    headers: dict[str, str]  # names in lower case
    payload: bytes | None  # None when over the limit
    n_bytes: int


def _next_record(stream: ByteStream, uri: str, max_record_bytes: int) -> _Record | None:
    """The record at the stream's position, or None at its end. Raises ShardDamaged for a record that is cut off, and
    _BadFraming where no record is."""
    stream.skip_any(b"\r\n")  # two line ends close a record; some writers add more
    start = stream.position
    if not stream.peek(1):
        return None
    if stream.peek(len(_RECORD_START)) != _RECORD_START:
        raise _BadFraming(f"{uri}: no WARC record starts at decompressed byte {start}", start)
    end = stream.find(b"\r\n\r\n", _HEADER_BYTES)
    if end < 0 or stream.find(b"\n" + _RECORD_START, end) >= 0:  # the end may be that of the next record
        raise _BadFraming(f"{uri}: the headers of the record at decompressed byte {start} do not end", start)
    head = stream.take(end + 4)
    headers = _parse_headers(head)
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise _BadFraming(f"{uri}: the record at decompressed byte {start} has no valid Content-Length", start)
    n_payload = int(length)
    payload: bytes | None = None
    if len(head) + n_payload > max_record_bytes:
        whole = stream.skip(n_payload)
    else:
        payload = stream.take(n_payload)
        whole = len(payload) == n_payload
    if not whole:
        message = f"{uri}: the record at decompressed byte {start} ends before its {n_payload} bytes are there"
        raise ShardDamaged(message, start)
    return _Record(start, head, headers, payload, len(head) + n_payload)


def _parse_headers(head: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for line in head.decode("utf-8", "surrogateescape").split("\r\n")[1:]:
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            headers[name] = value.strip()
    return headers


class _Batch:
    """Documents on their way into one table."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._rejects: Rejects = {}
        self._texts: list[bytes | None] = []
        self._n_bytes = 0
        self.records: list[_Record] = []

    def is_full(self) -> bool:
        return self._n_bytes >= BATCH_BYTES or len(self.records) >= BATCH_RECORDS

    def add(self, record: _Record) -> None:
        text: bytes | None = None
        try:
            text = self._text(record)
            self._n_bytes += len(text)
        except NoText as error:
            reject(self._rejects, len(self.records), error.reason, str(error))
        self.records.append(_Record(record.start, b"", record.headers, None, record.n_bytes))
        self._texts.append(text)

    def _text(self, record: _Record) -> bytes:
        if record.payload is None:
            limit = self._options.max_record_bytes
            raise NoText("record_too_large", f"{record.n_bytes} bytes, input.max_record_bytes is {limit}")
        content_type = record.headers.get("content-type", "")
        limit = self._options.max_record_bytes
        return text_of(record.head, record.payload, record.headers["warc-type"].lower(), content_type, limit)

    def table(self) -> pa.Table:
        options, rejects = self._options, self._rejects
        text, bad = utf8_column(pa.array(self._texts, pa.binary()))
        for row in bad:
            reject(rejects, row, "invalid_utf8", "the payload is not UTF-8")
        reject_nul(text, rejects)
        doc_id: pa.Array = pa.nulls(len(text), pa.string())
        if options.id_column is not None:
            ids = self._header(options.id_column)
            doc_id, bad = utf8_column(pa.array([_encoded(value) for value in ids], pa.binary()))
            for row, value in enumerate(doc_id.is_valid().to_pylist()):
                if not value:
                    found = "not UTF-8" if row in bad else "the record has no such header"
                    reject(rejects, row, "invalid_id", f"{options.id_column}: {found}")
        kept = [column_from_values(name, self._header(name), type_, rejects) for name, type_ in options.keep.items()]
        return records_table(
            options,
            source_record=np.array([record.start for record in self.records], np.int64),
            record_bytes=np.array([record.n_bytes for record in self.records], np.int64),
            doc_id=doc_id,
            text=text,
            kept=kept,
            rejects=rejects,
        )

    def _header(self, name: str) -> list[str | None]:
        return [record.headers.get(name.lower()) for record in self.records]


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode("utf-8", "surrogateescape")
