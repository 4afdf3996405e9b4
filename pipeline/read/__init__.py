"""Readers: a raw shard becomes tables of `schema.records_schema`, in which every record is good or
rejected with a reason.

There is one file per format. A new format is one file with a class that has `spans` and `records`,
its name in `job.input_spec.FORMATS`, and a line each in READERS and EXTENSIONS. Compression (.gz
.gzip .zst .zstd .bz2 .xz) is recognised by the suffix of a shard, not by the spec. Nothing is
dropped silently: only blank lines of line formats are not records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.errors import ShardDamaged, SpecError
from pipeline.job.input_spec import InputSpec
from pipeline.read.compression import (
    COMPRESSION_SUFFIXES,
    compression_of,
    path_of,
    without_compression_suffix,
)
from pipeline.read.csv import CsvReader
from pipeline.read.jsonl import JsonlReader
from pipeline.read.parquet import ParquetReader
from pipeline.read.path_columns import path_columns, with_path_columns, without_path_columns
from pipeline.read.records import damaged_table
from pipeline.read.text import DocumentReader, TextReader
from pipeline.read.warc.reader import WarcReader
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard, Span

__all__ = ["EXTENSIONS", "READERS", "Reader", "format_of", "read_span"]


class Reader(Protocol):
    """What a format implements."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        """Cut a shard into spans that can be read independently, of about `part_bytes` each; one
        span for the whole shard where reading cannot start in the middle. It is called on the
        driver while planning, so it must be cheap. It never raises an error for damage."""
        ...

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        """The records of `span` in order, as non-empty tables of `records_schema(spec.keep)` of
        bounded size.

        file: raw (compressed if the URI says so) and seekable. Raises ShardDamaged with the
        position from which nothing can be read, after everything before it; InputError for a column
        that the shard does not have. Errors of the file itself pass through.
        """
        ...


READERS: dict[str, Reader] = {
    "jsonl": JsonlReader(),
    "parquet": ParquetReader(),
    "text": TextReader(),
    "csv": CsvReader(),
    "warc": WarcReader(),
    "document": DocumentReader(),
}

EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".warc": "warc",
    ".wet": "warc",
}


def format_of(uri: str, format: str = "auto") -> str:
    """The name of the reader for `uri`: `format`, which is `input.format` of a spec, or for auto
    the one of the suffix under the compression suffix.

    Raises SpecError for an unknown suffix and for compressed Parquet.
    """
    if format == "auto":
        name = without_compression_suffix(uri).lower()
        formats = [format for suffix, format in EXTENSIONS.items() if name.endswith(suffix)]
        if not formats:
            raise SpecError(
                f"{shown(uri)}: the name does not show the format; {known_suffixes()}. "
                f"Set input.format to one of {', '.join(READERS)}."
            )
        format = formats[0]
    # pandas' own example calls a Parquet file "df.parquet.gzip", after the compression inside
    is_named_inside = path_of(uri).lower().endswith(".gzip")
    if format == "parquet" and compression_of(uri) and not is_named_inside:
        raise SpecError(
            f"{shown(uri)}: Parquet is compressed inside and is read from its end, so a compressed "
            "file cannot be read. Decompress it."
        )
    return format


def known_suffixes() -> str:
    """The suffixes by which a format is recognised, for messages."""
    compressions = " ".join(COMPRESSION_SUFFIXES)
    return f"known suffixes are {' '.join(EXTENSIONS)} (and {compressions} after them)"


def read_span(reader: Reader, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
    """The records of `span`, with the kept columns that the path of the shard holds; those of a
    damaged shard end with one row of reason `damaged_shard` at the position of the damage, whose
    length is that of the bytes that cannot be read."""
    columns = path_columns(span.shard.uri, spec)
    if not columns:
        return _read_span(reader, file, span, spec)
    reader_spec = without_path_columns(spec, columns)
    return with_path_columns(_read_span(reader, file, span, reader_spec), spec, columns)


def _read_span(reader: Reader, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
    try:
        yield from reader.records(file, span, spec)
    except ShardDamaged as error:
        lost_bytes = span.shard.size_bytes if error.lost_bytes is None else error.lost_bytes
        # the row has a column for the URI, and its detail has little room
        detail = str(error).removeprefix(f"{span.shard.uri}: ")
        yield damaged_table(error.position, detail, spec, lost_bytes)
