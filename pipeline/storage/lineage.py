"""The stored records of what was read, what was written and what is live.

Everything here is plain data that travels: planned on the driver, carried in Ray rows, written as
JSON under `_meta/`. Identity comes from content: an id is a hash of the thing it names, never a
counter or a random number.

    Shard ─► Span ─► Split        an input object, a range of it, the ranges that one reader reads
    Split ─► part ─► Manifest     parts are cut from a split; the manifest of one lists its files
    Manifest ─► Snapshot          a version of the output: the parts that are live
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import pydantic

from pipeline.storage import layout
from pipeline.storage.stored_record import FORMAT_VERSION, Count, StoredRecord, is_name

RECORDS_PER_PART = 1 << 15
"""The most records in a part. It bounds the memory of its vectors (1,024 dimensions: 128 MiB)."""


def content_hash(value: Any, hex_digits: int = 32) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces), cut to `hex_digits`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:hex_digits]


class Shard(StoredRecord):
    """One input object. `etag` is its version: the store's ETag or generation, otherwise what the
    store tells of it (`storage.versions`)."""

    uri: str
    etag: str
    size_bytes: Count


class Span(StoredRecord):
    """A contiguous range [start, stop) of one shard; `stop=None` means to its end.

    The unit of `start` and `stop` depends on the format: bytes (line formats) or row groups
    (Parquet). The span of a compressed shard is always the whole, (0, None).
    """

    shard: Shard
    start: Count = 0
    stop: Count | None = None

    @property
    def interval(self) -> tuple[int, float]:
        """(start, stop), with infinity for the end of the shard."""
        return self.start, float("inf") if self.stop is None else self.stop

    @property
    def is_whole(self) -> bool:
        return (self.start, self.stop) == (0, None)


class Split(StoredRecord):
    """The spans that one reader reads in order: a range of a large shard, or several small shards.

    Parts are cut from it while reading, at bounds that depend on the split alone, so the same split
    gives the same parts, also under a later release with other defaults.
    """

    spans: tuple[Span, ...]
    part_bytes: Count
    part_records: Count = RECORDS_PER_PART

    @functools.cached_property
    def split_id(self) -> str:
        """The hash of all fields, computed once: every loop over manifests asks for it."""
        spans = [
            (s.shard.uri, s.shard.etag, s.shard.size_bytes, s.start, s.stop) for s in self.spans
        ]
        return content_hash([spans, self.part_bytes, self.part_records])

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, which alone would give a changed copy the id of its original."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("split_id", None)
        return copy


def part_id(fingerprint: str, split_id: str, index: int) -> str:
    """The identity of the `index`-th part of a split; the names of its files contain it."""
    return content_hash([fingerprint, split_id, index])


class Source(StoredRecord):
    """The records of one shard that are in one part. `first_record` is a position as in the column
    `source_record`; `damaged`: the shard breaks off, or cannot be decoded, behind or between them;
    `lost_bytes`: how many of its stored bytes cannot be read because of that (0 in manifests of
    releases that did not count them; the whole shard where nobody can say, as behind a cut);
    `n_replaced`: how many of its documents hold U+FFFD, which stands for bytes that are no
    character."""

    uri: str
    etag: str
    first_record: Count
    n_records: Count
    n_rejects: Count
    damaged: bool = False
    lost_bytes: Count = 0
    n_replaced: Count = 0


class DataFile(StoredRecord):
    """One Parquet file. `path` is relative to the output; `partition`: Hive values by column."""

    path: str
    partition: dict[str, str | None]
    n_rows: Count
    size_bytes: Count
    sha256: str

    def mistakes(self) -> Iterator[str]:
        if not layout.is_at(self.path, "data"):
            yield f"{self.path!r} is no path of a data file"


class PartFacts(StoredRecord):
    """The facts about a part that are known before its files are written. They travel with the part
    from stage to stage, and each stage adds its own.

    `n_embedded` distinct texts go through the model with `n_embedded_tokens` tokens, for which it
    computes `n_padded_tokens`; `n_oom_halvings` buckets did not fit into memory and were halved;
    `record_bytes`: length in the source. seconds: by stage. engine: its name, device and dtype.
    """

    part_id: str
    fingerprint: str
    run_id: str
    split: Split
    index: Count
    last: bool
    sources: tuple[Source, ...]
    record_bytes: Count
    n_embedded: Count
    n_embedded_tokens: Count = 0
    n_padded_tokens: Count = 0
    n_oom_halvings: Count = 0
    seconds: dict[str, float] = pydantic.Field(default={})
    engine: dict[str, str] = pydantic.Field(default={})

    def timed(self, **seconds: float) -> Self:
        """The same facts with the seconds of further stages."""
        return self.model_copy(update={"seconds": {**self.seconds, **seconds}})


class Manifest(PartFacts):
    """The receipt of one finished part. Invariant: n_records = n_documents + n_rejects.

    `n_rows` are chunks (documents where nothing is chunked), of which `n_reused` have a vector that
    an earlier run computed.
    """

    format_version: Count = FORMAT_VERSION
    data_files: tuple[DataFile, ...]
    rejects_path: str | None
    rejects_sha256: str | None = None
    n_records: Count
    n_documents: Count
    n_rejects: Count
    n_rows: Count
    n_tokens: Count
    n_truncated: Count
    n_reused: Count = 0
    reject_reasons: dict[str, Count]

    def mistakes(self) -> Iterator[str]:
        names = (self.part_id, self.fingerprint, self.run_id)
        yield from (f"{name!r} is no id" for name in names if not is_name(name))
        for file in self.data_files:
            yield from file.mistakes()
        if self.rejects_path is not None and not layout.is_at(self.rejects_path, "rejects"):
            yield f"{self.rejects_path!r} is no path of a file of rejects"


def by_split(parts: Iterable[Manifest]) -> dict[str, list[Manifest]]:
    """Manifests by the id of their split, each list in the order of the parts."""
    manifests: dict[str, list[Manifest]] = {}
    for part in sorted(parts, key=lambda part: part.index):
        manifests.setdefault(part.split.split_id, []).append(part)
    return manifests


def is_complete(parts: Sequence[Manifest]) -> bool:
    """Whether the parts of one split, in order, cover it from its first record to its last."""
    has_all = [part.index for part in parts] == list(range(len(parts)))
    return has_all and bool(parts) and parts[-1].last


class Generation(StoredRecord):
    """The facts that all data files of a fingerprint share. `arrow_schema`: Arrow IPC in hex."""

    format_version: Count = FORMAT_VERSION
    fingerprint: str
    identity: dict[str, Any]
    dimension: Count
    vector_precision: Literal["float32", "float16", "bfloat16", "int8", "ubinary"]
    partition_by: tuple[str, ...]
    arrow_schema: str
    model_name: str
    model_license: str | None

    def mistakes(self) -> Iterator[str]:
        if not is_name(self.fingerprint):
            yield f"{self.fingerprint!r} is no fingerprint"


class Snapshot(StoredRecord):
    """One atomic, numbered version of the output. `file_list`: the path of its list of live parts.

    complete: whether every part of the plan is in it. n_duplicate_ids: the number of document ids
    that several records have, None where it was not counted. nominal_time: the time that the run
    was scheduled for.
    """

    format_version: Count = FORMAT_VERSION
    number: Count
    parent: Count | None
    run_id: str
    complete: bool
    fingerprint: str
    file_list: str
    n_parts: Count
    n_files: Count
    n_records: Count
    n_documents: Count
    n_rejects: Count
    n_rows: Count
    n_tokens: Count
    size_bytes: Count
    n_duplicate_ids: Count | None
    nominal_time: datetime.datetime | None = None
    reject_reasons: dict[str, Count]

    def mistakes(self) -> Iterator[str]:
        names = (self.run_id, self.fingerprint)
        yield from (f"{name!r} is no id" for name in names if not is_name(name))
        if not layout.is_at(self.file_list, "file list"):
            yield f"{self.file_list!r} is no path of a file list"
