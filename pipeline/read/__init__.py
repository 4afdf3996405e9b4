"""Readers: a raw shard in, tables of `schema.records_schema` out, every record good or rejected
with its reason.

One file a format. A new format is one file with a class that has `spans` and `records`, and one
line in READERS (and its suffixes in EXTENSIONS). Compression (.gz .zst .bz2 .xz) is looked at here
and in `compression`, not by the spec. Nothing is dropped silently: only blank lines of line formats
are no records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.errors import ShardDamaged, SpecError
from pipeline.job.spec import InputSpec
from pipeline.read.compression import compression_of, without_compression_suffix
from pipeline.read.csv import CsvReader
from pipeline.read.jsonl import JsonlReader
from pipeline.read.parquet import ParquetReader
from pipeline.read.records import damaged_table
from pipeline.read.text import TextReader
from pipeline.read.warc import WarcReader
from pipeline.storage.lineage import Shard, Span

__all__ = ["EXTENSIONS", "READERS", "Reader", "format_of", "is_compressed", "read_span"]


class Reader(Protocol):
    """What a format has to do."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        """Cut a shard into runs that can be read independently, of about `part_bytes` each; the
        whole shard where it cannot be entered in the middle. Cheap: called on the driver while
        planning. Never raises for damage."""
        ...

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        """The records of `span` in order, as non-empty tables of `records_schema(spec.keep)` of
        bounded size.

        `file` is raw (compressed if the URI says so) and seekable. Raises ShardDamaged at the
        position from which on nothing can be read, after everything before it; InputError for a
        column that the shard does not have. Errors of the file itself pass through.
        """
        ...


READERS: dict[str, Reader] = {
    "jsonl": JsonlReader(),
    "parquet": ParquetReader(),
    "text": TextReader(),
    "csv": CsvReader(),
    "warc": WarcReader(),
}

EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".warc": "warc",
    ".wet": "warc",
}


def format_of(uri: str, format: str = "auto") -> str:
    """Name of the reader for `uri`: `format` itself, or by the suffix under the compression suffix.

    Raises SpecError for an unknown format or suffix, and for compressed Parquet.
    """
    inner = without_compression_suffix(uri)
    if format == "auto":
        found = next(
            (EXTENSIONS[suffix] for suffix in EXTENSIONS if inner.lower().endswith(suffix)), None
        )
        if found is None:
            raise SpecError(
                f"{uri}: the format cannot be told from the name; known suffixes are {' '.join(EXTENSIONS)} "
                f"(and .gz .zst .bz2 .xz after them). Set input.format to one of {', '.join(READERS)}."
            )
        format = found
    if format not in READERS:
        raise SpecError(f"input.format: {format!r} is not one of auto, {', '.join(READERS)}.")
    if format == "parquet" and compression_of(uri):
        raise SpecError(
            f"{uri}: Parquet is compressed inside and has to be entered from its end. Decompress the file."
        )
    return format


def is_compressed(uri: str) -> bool:
    """Whether the shard's suffix says that it is compressed as a whole (and cannot be entered in
    the middle)."""
    return compression_of(uri) is not None


def read_span(reader: Reader, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
    """The records of `span`; a damaged shard ends with one row of reason `damaged_shard` at the
    position of the damage."""
    try:
        yield from reader.records(file, span, spec)
    except ShardDamaged as error:
        yield damaged_table(error.position, str(error), spec)
