"""Splits: which spans of shards are covered by finished work, and how the rest is cut.

From the shards that are listed now and the manifests come the splits to keep exactly as they were
cut, and new ones for what they leave uncovered, so that every record belongs to exactly one split
even when `runtime.part_bytes` has changed. Positions are those of a Span: bytes, or row groups.
Cost: arithmetic, and a footer per Parquet shard larger than a part.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.job.spec import JobSpec
from pipeline.read import READERS, format_of
from pipeline.read.compression import compression_of
from pipeline.read.input.shards import open_shard
from pipeline.read.parts import Todo
from pipeline.storage.lineage import Manifest, Shard, Span, Split, by_split, is_complete
from pipeline.storage.versions import without_change_time

COMPRESSION_RATIO = 4
"""Estimate of decompressed over compressed bytes of text. Only the sizes of groups and the display
depend on it."""

GROUPED_BELOW = 4
"""A shard smaller than part_bytes / GROUPED_BELOW shares its split with others."""

AUTO_PARTS = 256
"""How many parts `runtime.part_bytes: auto` aims at."""

MIN_AUTO_BYTES = 256 << 10
"""The smallest part, in bytes, that `runtime.part_bytes: auto` chooses."""

MIN_AUTO_GPU_BYTES = 4 << 20
"""The same for a GPU, which does 256 KiB in 50 ms and waits between two parts."""

MAX_AUTO_BYTES = 32 << 20
"""The largest part, in bytes, that `runtime.part_bytes: auto` chooses."""

MIN_FIRST_SHARDS = 1000
"""How many shards the first records are looked for in at least."""

RECORD_BYTES = 4096
"""Estimate of the bytes of a record that nobody has read, for the display."""

Claims = Mapping[str, Sequence[tuple[int, float]]]
"""Covered intervals of each shard, by URI."""


def with_stored_versions(shards: Sequence[Shard], manifests: Sequence[Manifest]) -> list[Shard]:
    """The listed shards. One that the manifests know only under the version which an earlier
    release gave to the same file has that version, so that nothing of it is done again."""
    stored = {(span.shard.uri, span.shard.etag) for part in manifests for span in part.split.spans}

    def with_stored_version(shard: Shard) -> Shard:
        earlier = without_change_time(shard.uri, shard.etag)
        if (shard.uri, shard.etag) in stored or (shard.uri, earlier) not in stored:
            return shard
        return shard.model_copy(update={"etag": earlier})

    return list(map(with_stored_version, shards))


def claim(
    shards: Sequence[Shard], manifests: Sequence[Manifest], live_ids: set[str]
) -> tuple[list[list[Manifest]], Claims]:
    """The splits to keep as they are, each as its manifests in order, and the intervals of shards
    that they cover.

    Where two splits overlap, because two runs with different settings cut the same shard, a live
    one is kept before others, then a complete one.
    """
    current = {shard.uri: shard for shard in shards}
    claims: dict[str, list[tuple[int, float]]] = defaultdict(list)
    kept = []

    def rank(parts: list[Manifest]) -> tuple[bool, bool, str]:
        return parts[0].part_id not in live_ids, not is_complete(parts), parts[0].split.split_id

    for parts in sorted(by_split(manifests).values(), key=rank):
        spans = parts[0].split.spans
        if any(
            current.get(span.shard.uri) != span.shard or _overlaps(span, claims) for span in spans
        ):
            continue
        kept.append(parts)
        for span in spans:
            claims[span.shard.uri].append(span.interval)
    return kept, claims


def part_bytes_of(spec: JobSpec, shards: Sequence[Shard], device: str = "cpu") -> int:
    """Bytes of records in a part for embedders on a device. Auto gives work to many embedders even
    for a small input, and lets them finish at about the same time."""
    if spec.runtime.part_bytes != "auto":
        return int(spec.runtime.part_bytes)
    part_bytes = sum(map(decompressed_bytes, shards)) // AUTO_PARTS
    least = MIN_AUTO_BYTES if device == "cpu" else MIN_AUTO_GPU_BYTES
    return min(max(part_bytes, least), MAX_AUTO_BYTES)


def cut_rest(
    spec: JobSpec, shards: Sequence[Shard], claims: Claims, device: str = "cpu"
) -> Iterator[Split]:
    """Cut what is not claimed into splits; small shards share one."""
    part_bytes = part_bytes_of(spec, shards, device)
    group: list[Span] = []
    group_bytes = 0
    for shard in shards:
        claimed = sorted(claims.get(shard.uri, ()))
        if not any(_free(Span(shard=shard), claimed)):
            continue  # covered from end to end: not even its footer is read
        reader = READERS[format_of(shard.uri, spec.input.format)]
        opener = functools.partial(open_shard, storage_options=spec.input.storage_options)
        for span in reader.spans(shard, opener, part_bytes):
            for free in _free(span, claimed):
                if not free.is_whole or decompressed_bytes(shard) * GROUPED_BELOW > part_bytes:
                    yield Split(spans=(free,), part_bytes=part_bytes)
                    continue
                group.append(free)
                group_bytes += decompressed_bytes(shard)
                if group_bytes >= part_bytes:
                    yield Split(spans=tuple(group), part_bytes=part_bytes)
                    group = []
                    group_bytes = 0
    if group:
        yield Split(spans=tuple(group), part_bytes=part_bytes)


def first_split(shards: Sequence[Shard], n_records: int) -> Split:
    """One split from which the first records of an input are read: of the shards in their order, as
    many as are sure to have them unless most are empty. No footer is read."""
    first = shards[: max(n_records, MIN_FIRST_SHARDS)]
    spans = tuple(Span(shard=shard) for shard in first)
    return Split(spans=spans, part_bytes=MIN_AUTO_BYTES)


def missing(todo: Iterable[Todo], parts: Sequence[Manifest]) -> list[Split]:
    """The splits of a plan that `parts` do not complete."""
    parts_of = by_split(parts)
    return [
        entry.split for entry in todo if not is_complete(parts_of.get(entry.split.split_id, []))
    ]


def estimated_bytes(split: Split, format: str, max_records: int | None = None) -> int:
    """Estimate, for the display, of the decompressed bytes of a split. format: `input.format`.
    max_records: how many of its records are read."""
    n_bytes = sum(_span_bytes(span, split.part_bytes, format) for span in split.spans)
    return n_bytes if max_records is None else min(n_bytes, max_records * RECORD_BYTES)


def _overlaps(span: Span, claims: Claims) -> bool:
    start, stop = span.interval
    return any(
        start < other_stop and other_start < stop
        for other_start, other_stop in claims.get(span.shard.uri, ())
    )


def _free(span: Span, claimed: Sequence[tuple[int, float]]) -> Iterator[Span]:
    """The pieces of a span outside the sorted, disjoint intervals `claimed`."""
    start, stop = span.interval
    for other_start, other_stop in claimed:
        if other_stop <= start or other_start >= stop:
            continue
        if start < other_start:
            yield Span(shard=span.shard, start=start, stop=other_start)
        if other_stop >= stop:
            return
        start = int(other_stop)
    yield Span(shard=span.shard, start=start, stop=span.stop)


def decompressed_bytes(shard: Shard) -> int:
    """Estimate of the decompressed bytes of a whole shard."""
    return shard.size_bytes * (COMPRESSION_RATIO if compression_of(shard.uri) else 1)


def _span_bytes(span: Span, part_bytes: int, format: str) -> int:
    if span.is_whole:
        return decompressed_bytes(span.shard)
    if format_of(span.shard.uri, format) == "parquet":
        return part_bytes  # the reader collects row groups up to about that
    stop = span.shard.size_bytes if span.stop is None else min(span.stop, span.shard.size_bytes)
    return max(stop - span.start, 0)
