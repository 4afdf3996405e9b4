"""Reading a split and cutting it into parts: shards ─► records ─► parts, in the order of the split.

Every record of a split is in one part, as it was read; `pipeline/workers/steps.py` takes over from
there. Memory is bounded by one part: `part_bytes` of records and one record more, `part_records`
documents.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.resolve import Job
from pipeline.read import READERS, format_of, read_span
from pipeline.read.shards import open_shard
from pipeline.storage import schema
from pipeline.storage.lineage import Span, Split


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of one part as they were read: pairs of (index of the span in the split, records
    table)."""

    split: Split
    index: int
    last: bool
    pieces: tuple[tuple[int, pa.Table], ...]


@dataclasses.dataclass(frozen=True)
class Todo:
    """A split to read, and the indices of its parts that already have a manifest."""

    split: Split
    finished: frozenset[int]

    def to_json(self) -> str:
        return json.dumps([self.split.model_dump(mode="json"), sorted(self.finished)])

    @classmethod
    def from_json(cls, data: str) -> Todo:
        split, finished = json.loads(data)
        return cls(Split.model_validate(split), frozenset(finished))


def read_tables(span: Span, job: Job) -> Iterator[pa.Table]:
    """The records of one span in order. Raises ShardChanged when its shard is not the planned
    object any more."""
    spec = job.spec.input
    reader = READERS[format_of(span.shard.uri, spec.format)]
    with open_shard(span.shard, spec.storage_options) as file:
        yield from read_span(reader, file, span, spec)
        file.verify()


def read(split: Split, job: Job) -> Iterator[tuple[int, pa.Table]]:
    """The records of a split in order, each table with the index of its span."""
    for number, span in enumerate(split.spans):
        for table in read_tables(span, job):
            yield number, table


def cut(
    split: Split, job: Job, tables: Iterable[tuple[int, pa.Table]] | None = None
) -> Iterator[Part]:
    """Cut what `read` (or `tables`) gives into parts, at bounds that depend on nothing but the
    split.

    Raises ShardChanged when a shard is not the planned object any more; parts yielded before belong
    to the old object, which nothing refers to from then on.
    """
    pieces: list[tuple[int, pa.Table]] = []
    index, n_bytes, n_records = 0, 0, 0
    for number, rest in tables or read(split, job):
        while rest.num_rows:
            if n_bytes >= split.part_bytes or n_records >= split.part_records:
                yield Part(split, index, False, tuple(pieces))
                index, n_bytes, n_records, pieces = index + 1, 0, 0, []
            sizes = np.cumsum(_weights(rest))
            # up to the record that fills the part, which still belongs to it
            fits = int(np.searchsorted(sizes, split.part_bytes - n_bytes)) + 1
            taken = rest.slice(0, min(fits, split.part_records - n_records))
            pieces.append((number, taken))
            n_bytes += int(sizes[taken.num_rows - 1])
            n_records += taken.num_rows
            rest = rest.slice(taken.num_rows)
    yield Part(split, index, True, tuple(pieces))


def _weights(records: pa.Table) -> npt.NDArray[np.int64]:
    """(N,) bytes that each record counts with: its length in the source, or that of text and kept
    strings where it is more (HTTP bodies that were compressed, other columns of Parquet): a part
    is bounded in memory and not only in the source."""
    names = [
        name for name in records.column_names if name not in schema.RECORD_COLUMNS or name == "text"
    ]
    strings = [records[name] for name in names if pa.types.is_string(records[name].type)]
    held = sum(
        pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64) for column in strings
    )
    return np.maximum(records["record_bytes"].to_numpy(), held)
