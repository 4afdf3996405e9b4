"""Reading a split and cutting it into parts: shards ─► records ─► parts, in the order of the split.

Every record of a split is in exactly one part; `pipeline/workers/steps.py` takes over from there.
Memory is bounded by one part: `part_bytes` of records and one record more, and `part_records`
records.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.input_spec import InputSpec
from pipeline.job.resolve import Job
from pipeline.read import READERS, format_of, read_span
from pipeline.read.input.shards import open_shard
from pipeline.storage import schema
from pipeline.storage.lineage import Shard, Source, Span, Split


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one part, as they were read.

    records: (N rows) schema.records_schema with `source_uri` and `source_etag` (strings); `doc_id`
    is filled in where no column of the input names ids. index: the position of the part in its
    split. last: whether the split ends with it. sources: what the part took from each shard, in
    order; their rejects are counted when the part is written.
    """

    split: Split
    index: int
    last: bool
    records: pa.Table
    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Todo:
    """A split to read, the indices of its parts that already have a manifest, and for a run with a
    limit the number of records after which the reading ends."""

    split: Split
    finished: frozenset[int]
    max_records: int | None = None

    def to_json(self) -> str:
        split = self.split.model_dump(mode="json")
        return json.dumps([split, sorted(self.finished), self.max_records])

    @classmethod
    def from_json(cls, data: str) -> Todo:
        split, finished, max_records = json.loads(data)
        return cls(Split.model_validate(split), frozenset(finished), max_records)


def read_tables(span: Span, job: Job) -> Iterator[pa.Table]:
    """The records of one span in order. Raises ShardChanged when its shard is no longer the object
    that was planned."""
    spec = job.spec.input
    reader = READERS[format_of(span.shard.uri, spec.format)]
    with open_shard(span.shard, spec.storage_options) as file:
        yield from read_span(reader, file, span, spec)
        file.verify()


def read(split: Split, job: Job) -> Iterator[tuple[Shard, pa.Table]]:
    """The records of a split in order, each table with its shard."""
    for span in split.spans:
        for table in read_tables(span, job):
            yield span.shard, table


def first_records(
    tables: Iterable[tuple[Shard, pa.Table]], max_records: int
) -> Iterator[tuple[Shard, pa.Table]]:
    """The first records of what `read` gives. Nothing behind them is read."""
    for shard, table in tables:
        yield shard, table.slice(0, max_records)
        max_records -= table.num_rows
        if max_records <= 0:
            return


def cut(
    split: Split, job: Job, tables: Iterable[tuple[Shard, pa.Table]] | None = None
) -> Iterator[Part]:
    """Cut what `read` (or `tables`) gives into parts, at bounds that depend on nothing but the
    split.

    Raises ShardChanged when a shard is no longer the object that was planned. The parts yielded
    before belong to the old object, and no snapshot will refer to them.
    """
    pieces: list[pa.Table] = []
    index = 0
    n_bytes = 0
    n_records = 0
    for shard, rest in tables or read(split, job):
        while rest.num_rows:
            if n_bytes >= split.part_bytes or n_records >= split.part_records:
                yield _part(split, index, False, pieces, job.spec.input)
                index = index + 1
                n_bytes = 0
                n_records = 0
                pieces = []
            sizes = np.cumsum(_weights(rest))
            # up to the record that fills the part, which still belongs to it
            fits = int(np.searchsorted(sizes, split.part_bytes - n_bytes)) + 1
            taken = rest.slice(0, min(fits, split.part_records - n_records))
            pieces.append(with_source(taken, shard, job.spec.input))
            n_bytes += int(sizes[taken.num_rows - 1])
            n_records += taken.num_rows
            rest = rest.slice(taken.num_rows)
    yield _part(split, index, True, pieces, job.spec.input)


def with_source(records: pa.Table, shard: Shard, spec: InputSpec) -> pa.Table:
    """Records of one shard with its URI and ETag, and with the default `doc_id` `<uri>#<record>`
    where no column of the input names ids."""
    if spec.id_column is None:
        number = pc.cast(records["source_record"], pa.string())
        default = pc.binary_join_element_wise(shard.uri, number, "#")
        doc_id = pc.coalesce(records["doc_id"], default)
        records = records.set_column(records.column_names.index("doc_id"), "doc_id", doc_id)
    for name, value in (("source_uri", shard.uri), ("source_etag", shard.etag)):
        records = records.append_column(name, pa.repeat(value, records.num_rows))
    return records


def _sources(records: pa.Table) -> tuple[Source, ...]:
    is_damage = _is_damage(records)
    lost_bytes = pc.if_else(is_damage, records["record_bytes"], 0)
    grouped = (
        records.append_column("damaged", is_damage)
        .append_column("lost_bytes", lost_bytes)
        .group_by(["source_uri", "source_etag"], use_threads=False)
        .aggregate(
            [
                ("source_record", "min"),
                ("source_record", "count"),
                ("damaged", "any"),
                ("lost_bytes", "sum"),
            ]
        )
    )
    return tuple(
        Source(
            uri=row["source_uri"],
            etag=row["source_etag"],
            first_record=row["source_record_min"],
            n_records=row["source_record_count"],
            n_rejects=0,
            damaged=row["damaged_any"],
            lost_bytes=row["lost_bytes_sum"],
        )
        for row in grouped.to_pylist()
    )


def _part(
    split: Split, index: int, last: bool, pieces: Sequence[pa.Table], spec: InputSpec
) -> Part:
    """A part of the records of `pieces`, which has all columns even without a piece."""
    empty = schema.records_schema(spec.keep).empty_table()
    no_shard = Shard(uri="", etag="", size_bytes=0)
    records = pa.concat_tables([with_source(empty, no_shard, spec), *pieces])
    return Part(split, index, last, records, _sources(records))


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
    # what a damaged shard lacks takes no memory
    read_bytes = pc.if_else(_is_damage(records), 0, records["record_bytes"])
    return np.maximum(read_bytes.to_numpy(), held)


def _is_damage(records: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(records["reason"], "damaged_shard"), False)
