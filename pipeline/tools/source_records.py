"""The source records of rows, read again from the input.

In: rows of a snapshot. Out: the record of each, as the reader gives it now and cleaned as the run
cleaned it. A shard is opened as the very object that was planned, entered as near to the record as
its format allows, and read by the same reader. `trace` and `verify` stand on this. Cost: the line
itself for uncompressed line formats, a row group for Parquet, otherwise the shard up to the record.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError, ShardChanged
from pipeline.job.spec import JobSpec
from pipeline.prepare.clean import clean
from pipeline.read import READERS, format_of, read_span
from pipeline.read.compression import compression_of
from pipeline.read.input.shards import open_shard
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Shard, Span
from pipeline.storage.options import server_of
from pipeline.storage.store import Store
from pipeline.storage.versions import without_change_time
from pipeline.tools.source_places import options_to_read

SOURCE_GONE = "source no longer there"
"""How the reason begins when a shard was deleted or replaced, which is no fault of the output."""
SOURCE_NOT_ASKED = "source not asked"
"""How the reason begins when only the output names the server of a shard, so that it got no
request."""

BYTE_POSITIONS = {"jsonl", "text"}
"""Formats whose source_record is the byte offset of a line: an uncompressed shard is entered
exactly there."""


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """A record read again. raw: one row of schema.records_schema, before cleaning. text, reason:
    the cleaned text, or why it would be rejected now."""

    raw: pa.Table
    text: str | None
    reason: str | None


class Reading(Protocol):
    """What is needed to read records again; a `LoadedSnapshot` has it."""

    @property
    def store(self) -> Store: ...
    @property
    def spec(self) -> JobSpec: ...
    @property
    def manifests(self) -> Sequence[Manifest]: ...
    @property
    def source_options(self) -> Mapping[str, Any] | None: ...


RecordKey = tuple[str, str, int]
"""The identity of a source record: URI and ETag of its shard, source_record."""


def record_key(row: Mapping[str, Any]) -> RecordKey:
    """The key of the source record of a row."""
    return row["source_uri"], row["source_etag"], row["source_record"]


def read_source_records(
    loaded: Reading, rows: Iterable[tuple[Manifest | None, Mapping[str, Any]]]
) -> dict[RecordKey, SourceRecord | str]:
    """Read the source record of each row again, and clean it as the run did.

    rows: (the manifest of the part that the row names, the row). A record that cannot be read maps
    to the reason instead: "source no longer there: …" (see SOURCE_GONE), "source not asked: …"
    (see SOURCE_NOT_ASKED), "unreadable: …", "no record there", or what is wrong with the row.
    """
    records: dict[RecordKey, SourceRecord | str] = {}
    positions_by_shard: dict[Shard, set[int]] = defaultdict(set)
    for manifest, row in rows:
        uri, etag, position = key = record_key(row)
        if manifest is None:
            records[key] = "names a part that is not live"
            continue
        shards = (span.shard for span in manifest.split.spans)
        shard = next((shard for shard in shards if (shard.uri, shard.etag) == (uri, etag)), None)
        if shard:
            positions_by_shard[shard].add(position)
        else:
            records[key] = (
                f"part {manifest.part_id} did not read {shown(uri)} with ETag {etag}, which its "
                "row names. The output is damaged: run `corpus-embed verify`"
            )
    stored_options = loaded.spec.input.storage_options
    for shard, positions in positions_by_shard.items():
        options = options_to_read(shard.uri, stored_options, loaded.store, loaded.source_options)
        if options is None:
            server = shown(server_of(shard.uri, stored_options))
            reason = (
                f"{SOURCE_NOT_ASKED}: it is on {server}, which only the output names; "
                "give --source-options to read it"
            )
            records |= {(shard.uri, shard.etag, position): reason for position in positions}
            continue
        for position, record in _read_shard(loaded, shard, options, positions).items():
            records[shard.uri, shard.etag, position] = record
    return records


def row_problem(record: SourceRecord | str, row: Mapping[str, Any]) -> str | None:
    """Why a row does not follow from its record, or None when the record's text at the row's
    character range has the row's hash."""
    if isinstance(record, str):
        return record
    if record.text is None:
        return f"the record would be rejected now: {record.reason}"
    start, end = row["char_start"], row["char_end"]
    text = record.text[start:end] if 0 <= start <= end <= len(record.text) else None
    if text is not None and hashlib.sha256(text.encode()).hexdigest() == row["text_sha256"]:
        return None
    return "the source text has another hash"


def _read_shard(
    loaded: Reading, shard: Shard, options: Mapping[str, Any], positions: Collection[int]
) -> dict[int, SourceRecord | str]:
    """The records of one shard by source_record, or why each could not be read."""
    records: dict[int, SourceRecord | str] = dict.fromkeys(positions, "no record there")
    position_array = pa.array(list(positions), pa.int64())
    try:
        for table in _tables(loaded, shard, options, sorted(positions)):
            matches = table.filter(pc.is_in(table["source_record"], position_array))
            for row_index in range(matches.num_rows):
                raw = matches.slice(row_index, 1)
                # the marker of a damaged shard has the position of the record after it
                if raw["reason"][0].as_py() != "damaged_shard":
                    records[raw["source_record"][0].as_py()] = _cleaned(raw, loaded.spec)
    except ShardChanged as error:
        return dict.fromkeys(positions, f"{SOURCE_GONE}: {error}")
    except InputError as error:
        unreadable = f"unreadable: {error}"
        return {p: unreadable if isinstance(r, str) else r for p, r in records.items()}
    return records


def _cleaned(raw: pa.Table, spec: JobSpec) -> SourceRecord:
    cleaned = clean(raw, unicode=spec.prepare.unicode, min_chars=spec.prepare.min_chars)
    return SourceRecord(raw, cleaned["text"][0].as_py(), cleaned["reason"][0].as_py())


def _tables(
    loaded: Reading, shard: Shard, options: Mapping[str, Any], positions: Sequence[int]
) -> Iterator[pa.Table]:
    """Records tables of a shard that hold all positions, and as little else as the format
    allows."""
    spec = loaded.spec.input
    format_name = format_of(shard.uri, spec.format)
    missing = set(positions)
    # what is read is compared by its hash, so a copy on another disk does as well
    version = without_change_time(shard.uri, shard.etag)
    copy = shard.model_copy(update={"etag": version})
    with open_shard(copy, options) as file:
        for span in _spans(loaded, shard, format_name, positions, file):
            for table in read_span(READERS[format_name], file, span, spec):
                missing -= set(table["source_record"].to_pylist())
                yield table
                if not missing:
                    return


def _spans(
    loaded: Reading, shard: Shard, format_name: str, positions: Sequence[int], file: Any
) -> list[Span]:
    """What to read: the lines themselves, the row groups, or the planned spans for formats that can
    only be read in order."""
    if format_name in BYTE_POSITIONS and not compression_of(shard.uri):
        return [Span(shard=shard, start=position, stop=position + 1) for position in positions]
    if format_name == "parquet":
        try:
            footer = pq.read_metadata(pa.PythonFile(file, mode="r"))
        except pa.ArrowException:
            return [Span(shard=shard)]  # the reader reports what is wrong with it
        row_counts = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        groups = set(np.searchsorted(np.cumsum(row_counts), positions, side="right").tolist())
        return [Span(shard=shard, start=group, stop=group + 1) for group in sorted(groups)]
    spans = (span for manifest in loaded.manifests for span in manifest.split.spans)
    return sorted({span for span in spans if span.shard == shard}, key=lambda span: span.start)
