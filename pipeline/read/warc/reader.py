"""WARC and WET: every `conversion`, `response` and `resource` record is a document; warcinfo,
request, metadata and revisit records are skipped.

The text of a text/plain record is its payload, as in all of WET. text/html is decoded as by a
browser and converted by resiliparse (extra "html"); other content types are rejected. `id_column`
and kept columns name WARC headers (WARC-Record-ID, WARC-Target-URI, WARC-Date, ...); `text_column`
is ignored. `source_record` is the byte offset of the record in the decompressed shard,
`record_bytes` its length with its headers.

Why the framing is parsed in this module: fastwarc returns a record that is cut off as if it were
whole, and warcio skips it silently. Here a record counts only when its whole Content-Length can be
read. Where no record starts although one should (a wrong Content-Length, overwritten bytes), one
`damaged_shard` row reports it, and reading continues at the next record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read.byte_stream import ByteStream
from pipeline.read.columns import column_from_values
from pipeline.read.compression import decompressed_blocks
from pipeline.read.containers import problem_of
from pipeline.read.records import (
    NoText,
    Rejects,
    batched,
    records_table,
    reject,
    reject_all,
    reject_nul,
    rows_where,
    string_column,
    utf8_column,
)
from pipeline.read.warc.http_body import parse_headers
from pipeline.read.warc.text import text_of
from pipeline.storage.lineage import Shard, Span

DOCUMENT_TYPES = {"conversion", "response", "resource"}
_HEADER_BYTES = 1 << 20
"""The longest header block of a record."""
_RECOGNISED_BYTES = 512
"""How many of the first bytes of a shard show what it is instead of WARC."""
_RECORD_START = b"WARC/"
"""Followed by a version: 1.1, 1.0, or 0.17 and 0.18 of the drafts, as in ClueWeb09."""


class WarcReader:
    """Reads `.warc` and `.wet`, compressed per record or as a whole."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        return [Span(shard=shard)]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        file.seek(0)
        stream = ByteStream(decompressed_blocks(file, span.shard.uri))

        def stored_bytes(n_bytes: int) -> int:
            """How many bytes of the file `n_bytes` of the stream take, at its ratio so far."""
            return n_bytes * file.tell() // max(file.tell(), stream.position, 1)

        documents = _documents(stream, span.shard.uri, spec.max_record_bytes, stored_bytes)
        for batch in batched(documents, lambda doc: len(doc.text or b"") + doc.n_head_bytes):
            yield _table(batch, spec)


class _BadFraming(ShardDamaged):
    """The bytes can be read, but no record starts where one should."""


@dataclass(frozen=True)
class _Document:
    """A record, or a place where none starts.

    n_head_bytes: of its version and header lines. headers: by name in lower case. reject: reason
    and detail.
    """

    start: int
    n_bytes: int = 0
    n_head_bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: bytes | None = None
    reject: tuple[str, str] | None = None

    @property
    def type(self) -> str:
        return self.headers.get("warc-type", "").lower()


def _documents(
    stream: ByteStream, uri: str, max_bytes: int, stored_bytes: Callable[[int], int]
) -> Iterator[_Document]:
    damage: _BadFraming | None = None  # since which no record was found
    cut: ShardDamaged | None = None
    document: _Document | None = None
    while True:
        try:
            document = _next_record(stream, uri, max_bytes)
        except _BadFraming as error:
            damage = damage or error
            stream.skip_to_line(_RECORD_START, _HEADER_BYTES)
            continue
        except ShardDamaged as error:
            document = None
            cut = error
        if damage is not None:
            end = document.start if document else cut.position if cut else stream.position
            lost_bytes = stored_bytes(end - damage.position)
            yield _Document(damage.position, lost_bytes, reject=("damaged_shard", str(damage)))
            damage = None
        if cut is not None:
            raise cut
        if document is None:
            return
        if document.type in DOCUMENT_TYPES:
            yield document


def _next_record(stream: ByteStream, uri: str, max_bytes: int) -> _Document | None:
    """The record at the stream's position, or None at its end. Raises ShardDamaged for a record
    that is cut off, and _BadFraming where no record starts."""
    stream.skip_any(b"\r\n")  # two line ends close a record; some writers add more
    start = stream.position
    if not stream.peek(1):
        return None
    if stream.peek(len(_RECORD_START)) != _RECORD_START:
        problem = problem_of(stream.peek(_RECOGNISED_BYTES)) if start == 0 else None
        if problem:
            raise _BadFraming(f"{uri}: the shard {problem}", start)
        raise _BadFraming(f"{uri}: no WARC record starts at decompressed byte {start}", start)
    n_head_bytes = _head_bytes(stream)
    # The end that was found may be that of the next record.
    if not n_head_bytes or stream.find(b"\n" + _RECORD_START, n_head_bytes) >= 0:
        raise _BadFraming(
            f"{uri}: the headers of the record at decompressed byte {start} do not end", start
        )
    headers = parse_headers(stream.take(n_head_bytes))
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise _BadFraming(
            f"{uri}: the record at decompressed byte {start} has no valid Content-Length", start
        )
    n_payload_bytes = int(length)
    document = _Document(start, n_head_bytes + n_payload_bytes, n_head_bytes, headers)
    is_large = document.n_bytes > max_bytes
    payload = b"" if is_large else stream.take(n_payload_bytes)
    is_whole = stream.skip(n_payload_bytes) if is_large else len(payload) == n_payload_bytes
    if not is_whole:
        raise ShardDamaged(
            f"{uri}: the record at decompressed byte {start} ends before the {n_payload_bytes} "
            "bytes of its Content-Length",
            start,
        )
    if is_large:
        detail = f"{document.n_bytes} bytes, input.max_record_bytes is {max_bytes}"
        return replace(document, reject=("record_too_large", detail))
    if document.type not in DOCUMENT_TYPES:
        return document
    try:
        return replace(document, text=text_of(payload, headers, max_bytes))
    except NoText as error:
        return replace(document, reject=(error.reason, str(error)))


def _head_bytes(stream: ByteStream) -> int:
    """Length of the header block with the empty line that ends it, or 0. Its lines end as the first
    one does: in CRLF, or in LF as some writers have it. Looking for both would read ahead, and meet
    damage before the record in front of it is given out."""
    first_end = stream.find(b"\n", _HEADER_BYTES)
    empty_line = b"\n\r\n" if stream.peek(first_end + 1).endswith(b"\r\n") else b"\n\n"
    end = stream.find(empty_line, _HEADER_BYTES)
    return end + len(empty_line) if end >= 0 else 0


def _table(documents: list[_Document], spec: InputSpec) -> pa.Table:
    rejects: Rejects = {}
    for row, document in enumerate(documents):
        if document.reject:
            reject(rejects, row, *document.reject)
    payloads = pa.array([document.text for document in documents], pa.binary())
    text = utf8_column(payloads, rejects, "invalid_utf8", "the payload is not UTF-8")
    reject_nul(text, rejects)

    def header(name: str) -> list[str | None]:
        return [document.headers.get(name.lower()) for document in documents]

    doc_id = None
    if spec.id_column is not None:
        name = spec.id_column
        doc_id = string_column(header(name), rejects, "invalid_id", f"{name}: not UTF-8")
        detail = f"{name}: the record has no such header"
        reject_all(rejects, rows_where(doc_id.is_null()), "invalid_id", detail)
    kept = [
        column_from_values(name, header(name), type_, rejects) for name, type_ in spec.keep.items()
    ]
    return records_table(
        spec,
        source_record=np.array([document.start for document in documents], np.int64),
        record_bytes=np.array([document.n_bytes for document in documents], np.int64),
        doc_id=doc_id,
        text=text,
        kept=kept,
        rejects=rejects,
    )
