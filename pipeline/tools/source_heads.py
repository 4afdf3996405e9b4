"""The beginnings of source records, of those that have no text, too: what people look at to see why
a record was rejected.

In: rows with the position of a record, good or rejected. Out: the first characters of its text as
the reader gives it now; of a line that the reader rejects, those of the line. Cost: as
`pipeline/tools/source_records.py`, and the line once more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import InputError, ShardChanged
from pipeline.read import format_of
from pipeline.read.byte_stream import ByteStream
from pipeline.read.compression import compression_of, decompressed_blocks
from pipeline.read.input.shards import open_shard
from pipeline.storage.lineage import Manifest, Shard
from pipeline.storage.versions import without_change_time
from pipeline.tools.source_places import options_to_read
from pipeline.tools.source_records import (
    BYTE_POSITIONS,
    Reading,
    SourceRecord,
    read_source_records,
    record_key,
)

HEAD_CHARS = 500
"""The most characters of a text or line that are shown."""


def source_heads(
    reading: Reading, rows: Iterable[tuple[Manifest | None, Mapping[str, Any]]]
) -> list[tuple[str | None, str | None]]:
    """For each row (the beginning of its record, why there is none); both None where the record
    has neither text nor line, as that of a Parquet file whose text is null.

    rows: as in `read_source_records`. A row of reason `damaged_shard` stands for no record.
    """
    pairs = list(rows)
    asked = [pair for pair in pairs if pair[1].get("reason") != "damaged_shard"]
    records = read_source_records(reading, asked)
    positions: dict[Shard, set[int]] = defaultdict(set)
    for manifest, row in asked:
        record = records[record_key(row)]
        if manifest is not None and isinstance(record, SourceRecord) and _text(record) is None:
            uri, etag, position = record_key(row)
            shards = {(s.shard.uri, s.shard.etag): s.shard for s in manifest.split.spans}
            if format_of(uri, reading.spec.input.format) in BYTE_POSITIONS:
                positions[shards[uri, etag]].add(position)
    lines: dict[tuple[str, str, int], str] = {}
    for shard, starts in positions.items():
        for position, line in _line_heads(reading, shard, starts).items():
            lines[shard.uri, shard.etag, position] = line
    heads: list[tuple[str | None, str | None]] = []
    for _, row in pairs:
        record = records.get(record_key(row), "")
        if isinstance(record, SourceRecord):
            text = _text(record)
            heads.append((lines.get(record_key(row)) if text is None else text, None))
        else:
            heads.append((None, record or None))
    return heads


def _text(record: SourceRecord) -> str | None:
    text: str | None = record.raw["text"][0].as_py()
    return None if text is None else text[:HEAD_CHARS]


def _line_heads(reading: Reading, shard: Shard, positions: set[int]) -> dict[int, str]:
    """The beginnings of the lines at some byte offsets; nothing of a shard that cannot be read."""
    stored = reading.spec.input.storage_options
    options = options_to_read(shard.uri, stored, reading.store, reading.source_options)
    if options is None:
        return {}
    copy = shard.model_copy(update={"etag": without_change_time(shard.uri, shard.etag)})
    heads: dict[int, str] = {}
    try:
        with open_shard(copy, options) as file:
            stream = ByteStream(decompressed_blocks(file, shard.uri))
            for position in sorted(positions):
                if not compression_of(shard.uri):
                    file.seek(position)
                    data = file.read(4 * HEAD_CHARS)
                else:
                    stream.skip(position - stream.position)
                    data = stream.peek(4 * HEAD_CHARS)
                line = data.partition(b"\n")[0].decode("utf-8", "replace")
                heads[position] = line[:HEAD_CHARS]
    except (ShardChanged, InputError):  # it was read a moment ago: then without the line
        return heads
    return heads
