"""The records that rows came from, read again: positions in a shard in, cleaned records out.

The shard is opened as the very object that was planned, entered as near to the record as its format
allows, read by the same reader and cleaned the same way as in the run. trace and verify stand on
it. Cost: the line itself for uncompressed line formats, a row group for Parquet, else the shard up
to the record.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError, ShardChanged
from pipeline.job.spec import JobSpec
from pipeline.prepare.clean import clean
from pipeline.read import READERS, format_of, is_compressed, read_span
from pipeline.read.shards import open_shard
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Shard, Span
from pipeline.tools.loaded_snapshot import Recorded

SOURCE_GONE = "source no longer there"
"""How the reason begins where the shard is gone or another object: no fault of the output."""

BYTE_POSITIONS = {"jsonl", "text"}
"""Formats whose source_record is the byte offset of a line, so that an uncompressed shard is
entered right there."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A record as it was read again: one row of schema.records_schema, before and after cleaning."""

    raw: pa.Table
    text: str | None
    reason: str | None

    @property
    def record_bytes(self) -> int:
        return int(self.raw["record_bytes"][0].as_py())


Key = tuple[str, str, int]
"""Identity of a source record: URI and ETag of its shard, source_record."""


def key_of(fields: Mapping[str, Any]) -> Key:
    """The source record of a row."""
    return fields["source_uri"], fields["source_etag"], fields["source_record"]


def read_sources(
    recorded: Recorded, rows: Iterable[tuple[Manifest | None, Mapping[str, Any]]]
) -> dict[Key, Record | str]:
    """The records that rows came from, read and cleaned as the run did. rows: each with the part
    that it belongs to.

    A record that cannot be had maps to the reason instead: "source no longer there: …" when the
    shard is gone or is another object now (that is no fault of the output), "unreadable: …", "no
    record there", or what is wrong with the row.
    """
    found: dict[Key, Record | str] = {}
    wanted: dict[Shard, set[int]] = defaultdict(set)
    for part, fields in rows:
        uri, etag, position = key_of(fields)
        shards = [span.shard for span in part.split.spans] if part else []
        shard = next((shard for shard in shards if (shard.uri, shard.etag) == (uri, etag)), None)
        if shard:
            wanted[shard].add(position)
        elif part:
            found[uri, etag, position] = (
                f"part {part.part_id} did not read {shown(uri)} with ETag {etag}, which its row names. The output is "
                "damaged: run `corpus-embed verify`"
            )
        else:
            found[uri, etag, position] = "names a part that is not live"
    for shard, positions in wanted.items():
        for position, record in _read_records(recorded, shard, positions).items():
            found[shard.uri, shard.etag, position] = record
    return found


def problem_of(record: Record | str, fields: Mapping[str, Any]) -> str | None:
    """Why a row does not follow from its record; None when the text at its place has the row's
    hash."""
    if isinstance(record, str):
        return record
    if record.text is None:
        return f"the record would be rejected now: {record.reason}"
    start, end = fields["char_start"], fields["char_end"]
    inside = 0 <= start <= end <= len(record.text)
    if (
        inside
        and hashlib.sha256(record.text[start:end].encode()).hexdigest() == fields["text_sha256"]
    ):
        return None
    return "the source text has another hash"


def _read_records(
    recorded: Recorded, shard: Shard, positions: Collection[int]
) -> dict[int, Record | str]:
    """The records of one shard at some positions (values of source_record), or why they cannot be
    had."""
    found: dict[int, Record | str] = dict.fromkeys(positions, "no record there")
    try:
        for table in _tables(recorded, shard, sorted(positions)):
            hits = table.filter(
                pc.is_in(table["source_record"], pa.array(list(positions), pa.int64()))
            )
            for number in range(hits.num_rows):
                raw = hits.slice(number, 1)
                # it stands at the position of the next record
                if raw["reason"][0].as_py() != "damaged_shard":
                    found[raw["source_record"][0].as_py()] = _cleaned(raw, recorded.spec)
    except ShardChanged as error:
        return dict.fromkeys(positions, f"{SOURCE_GONE}: {error}")
    except InputError as error:
        return {p: f"unreadable: {error}" if isinstance(r, str) else r for p, r in found.items()}
    return found


def _cleaned(raw: pa.Table, spec: JobSpec) -> Record:
    cleaned = clean(raw, unicode=spec.prepare.unicode, min_chars=spec.prepare.min_chars)
    return Record(raw, cleaned["text"][0].as_py(), cleaned["reason"][0].as_py())


def _tables(recorded: Recorded, shard: Shard, positions: Sequence[int]) -> Iterator[pa.Table]:
    """Tables of records of a shard in which the positions are, and as little else as the format
    allows."""
    spec = recorded.spec.input
    name = format_of(shard.uri, spec.format)
    left = set(positions)
    with open_shard(shard, spec.storage_options) as file:
        for span in _spans(recorded, shard, name, positions, file):
            for table in read_span(READERS[name], file, span, spec):
                left -= set(table["source_record"].to_pylist())
                yield table
                if not left:
                    return


def _spans(
    recorded: Recorded, shard: Shard, name: str, positions: Sequence[int], file: Any
) -> list[Span]:
    """Where to read: the very lines, the row groups, or (formats that must be read in order) the
    planned spans."""
    if name in BYTE_POSITIONS and not is_compressed(shard.uri):
        return [Span(shard=shard, start=position, stop=position + 1) for position in positions]
    if name == "parquet":
        try:
            metadata = pq.read_metadata(pa.PythonFile(file, mode="r"))
        except pa.ArrowException:
            return [Span(shard=shard)]  # the reader says what is wrong with it
        ends = pc.cumulative_sum(
            pa.array([metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)])
        )
        groups = {sum(end <= position for end in ends.to_pylist()) for position in positions}
        return [Span(shard=shard, start=group, stop=group + 1) for group in sorted(groups)]
    planned = {span for part in recorded.parts for span in part.split.spans if span.shard == shard}
    return sorted(planned, key=lambda span: span.start)
