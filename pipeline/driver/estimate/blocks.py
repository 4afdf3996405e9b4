"""The records of a cell of a sample, read by the format's own reader.

A cell comes in, a `Block` of records comes out. An uncompressed line format is read from the first
byte of the cell; of a shard that cannot be read from its middle the start is read, and stands for
the shard. Memory and cost: MAX_BLOCK_BYTES of records, of `start_bytes` as stored.
"""

from __future__ import annotations

import dataclasses
import io
import random
import time
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.driver.estimate.cells import Cell
from pipeline.errors import ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read import READERS, read_span
from pipeline.read.input.shards import ShardFile, open_shard
from pipeline.read.row_groups import ParquetShard
from pipeline.storage import schema
from pipeline.storage.lineage import Shard, Span

__all__ = ["Block", "Blocks", "record_bytes"]

MAX_BLOCK_BYTES = 32 << 20
"""After so many bytes of records a block ends, however little of its cell it is."""

_OPEN_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Block:
    """The records of a cell, or of its start.

    n_bytes: stored bytes that the records of the whole cell take; of a stretch of lines, from the
    first line that starts in it to the end of the last one. share_read: of the cell; below 1 the
    records stand for more.
    """

    shard: Shard
    records: pa.Table
    n_bytes: float
    share_read: float


class Blocks:
    """Reads blocks until `deadline_s`; keeps a few shards open. start_bytes: how many stored bytes
    of a shard that has to be read from its start are read."""

    def __init__(
        self, spec: InputSpec, chance: random.Random, start_bytes: int, deadline_s: float
    ) -> None:
        self._start_bytes = start_bytes
        self._spec = spec
        self._chance = chance
        self._deadline_s = deadline_s
        self._empty = schema.records_schema(spec.keep).empty_table()
        self._open: dict[Shard, ShardFile] = {}

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open = {}

    def read(self, cell: Cell) -> Block:
        """The block of a cell. Raises InputError where it cannot be read."""
        if cell.is_lines:
            return self._stretch(cell)
        if cell.format == "parquet":
            return self._row_group(cell)
        return self._start(cell)

    def _stretch(self, cell: Cell) -> Block:
        shard = cell.span.shard
        records, _ = self._joined(
            read_span(READERS[cell.format], self._file(shard), cell.span, self._spec)
        )
        n_bytes = 0
        if records.num_rows:
            starts = records["source_record"]
            last_bytes = records["record_bytes"][-1].as_py() + 1
            n_bytes = starts[-1].as_py() + last_bytes - starts[0].as_py()
        return Block(shard, records, n_bytes, 1.0)

    def _row_group(self, cell: Cell) -> Block:
        shard = cell.span.shard
        span = cell.span
        n_rows = 0
        try:
            metadata = ParquetShard(self._file(shard), shard.uri).metadata
            counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            if cell.is_any and sum(counts):
                # one in proportion to its rows stands for all of them
                group = self._chance.choices(range(len(counts)), counts)[0]
                span = Span(shard=shard, start=group, stop=group + 1)
            n_rows = sum(counts) if cell.is_any else sum(counts[span.start : span.stop])
        except ShardDamaged:  # reading it gives one reject
            pass
        records, _ = self._joined(
            read_span(READERS["parquet"], self._file(shard), span, self._spec)
        )
        share = min(1.0, records.num_rows / n_rows) if n_rows else 1.0
        return Block(shard, records, cell.n_bytes, share)

    def _start(self, cell: Cell) -> Block:
        """The start of a shard: all of it, where it is short."""
        shard = cell.span.shard
        limit = shard.size_bytes if cell.format == "document" else self._start_bytes
        file = self._file(shard)
        file.seek(0)
        start = cast(BinaryIO, _Start(file, limit))
        records, is_whole = self._joined(
            read_span(READERS[cell.format], start, cell.span, self._spec)
        )
        n_bytes = min(limit, shard.size_bytes) if is_whole else max(1, file.tell())
        if is_whole and n_bytes < shard.size_bytes:
            # what reads as damage is the end of what was read; the last row of a CSV is cut off
            is_cut = pc.fill_null(pc.equal(records["reason"], "damaged_shard"), False)
            records = records.filter(pc.invert(is_cut))
            if cell.format == "csv":
                records = records.slice(0, max(0, records.num_rows - 1))
        return Block(shard, records, cell.n_bytes, min(1.0, n_bytes / max(1, shard.size_bytes)))

    def _joined(self, tables: Iterator[pa.Table]) -> tuple[pa.Table, bool]:
        """The records of some tables up to MAX_BLOCK_BYTES and the deadline, and whether these are
        all."""
        read = [self._empty]
        n_bytes = 0
        for table in tables:
            read.append(table)
            n_bytes += table.nbytes
            if n_bytes > MAX_BLOCK_BYTES or time.monotonic() > self._deadline_s:
                return pa.concat_tables(read), False
        return pa.concat_tables(read), True

    def _file(self, shard: Shard) -> ShardFile:
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = open_shard(shard, self._spec.storage_options)
        return self._open[shard]


def record_bytes(records: pa.Table) -> pa.ChunkedArray:
    """(N,) int64 bytes of each record in the source; 0 for what a damaged shard lacks."""
    is_damage = pc.fill_null(pc.equal(records["reason"], "damaged_shard"), False)
    return pc.if_else(is_damage, 0, records["record_bytes"])


class _Start(io.RawIOBase):
    """The first bytes of a file, as if it ended there."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__()
        self._file = file
        self._limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        rest = max(0, self._limit - self._file.tell())
        return self._file.read(rest if size < 0 else min(size, rest))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
