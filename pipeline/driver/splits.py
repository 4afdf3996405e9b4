"""Splits: which runs of shards finished work covers, and how the rest is cut.

In: shards as they are listed now, and manifests. Out: the splits to keep exactly as they were cut,
and fresh ones for what they leave uncovered, so that every record belongs to one split whatever
`runtime.part_bytes` was before. Positions are those of a Span: bytes, or row groups. Cost:
arithmetic, and a footer per Parquet shard larger than a part.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pipeline.job.spec import JobSpec
from pipeline.read import READERS, format_of, is_compressed
from pipeline.read.shards import open_shard
from pipeline.storage.lineage import Manifest, Shard, Span, Split, by_split, is_complete

COMPRESSION_RATIO = 4
"""Guess of decompressed over compressed bytes of text: only sizes of groups and the display depend
on it."""
GROUPED_BELOW = 4
"""A shard smaller than part_bytes / GROUPED_BELOW shares its split with others."""

PARTS_OF_AN_INPUT, SMALLEST_PART, LARGEST_PART = 256, 256 << 10, 32 << 20
"""What `runtime.part_bytes: auto` aims at, and its bounds in bytes."""

Claims = Mapping[str, Sequence[tuple[int, float]]]
"""Covered intervals of each shard, by URI."""


def claim(
    shards: Sequence[Shard], manifests: Sequence[Manifest], live_ids: set[str]
) -> tuple[list[list[Manifest]], Claims]:
    """Splits to keep as they are (the manifests of each, in order), and the intervals of shards
    that they cover.

    Where two splits overlap (two runs with different settings cut the same shard), the one that is
    live wins, then the complete one.
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


def part_bytes_of(spec: JobSpec, shards: Sequence[Shard]) -> int:
    """Bytes of records in a part. Auto: a small input still gives work to many embedders, which end
    together."""
    if spec.runtime.part_bytes != "auto":
        return int(spec.runtime.part_bytes)
    return min(max(sum(map(whole_bytes, shards)) // PARTS_OF_AN_INPUT, SMALLEST_PART), LARGEST_PART)


def cut_rest(spec: JobSpec, shards: Sequence[Shard], claims: Claims) -> Iterator[Split]:
    """Cut what is not claimed into splits; small shards share one."""
    part_bytes = part_bytes_of(spec, shards)
    group: list[Span] = []
    group_bytes = 0
    for shard in shards:
        taken = sorted(claims.get(shard.uri, ()))
        # covered from end to end: not even its footer is read
        if not any(_free(Span(shard=shard), taken)):
            continue
        reader = READERS[format_of(shard.uri, spec.input.format)]
        opener = functools.partial(open_shard, storage_options=spec.input.storage_options)
        for span in reader.spans(shard, opener, part_bytes):
            for free in _free(span, taken):
                if not free.is_whole or whole_bytes(shard) * GROUPED_BELOW > part_bytes:
                    yield Split(spans=(free,), part_bytes=part_bytes)
                    continue
                group.append(free)
                group_bytes += whole_bytes(shard)
                if group_bytes >= part_bytes:
                    yield Split(spans=tuple(group), part_bytes=part_bytes)
                    group, group_bytes = [], 0
    if group:
        yield Split(spans=tuple(group), part_bytes=part_bytes)


def estimated_bytes(split: Split, format: str) -> int:
    """Bytes that reading a split will give, decompressed: a guess for the display. `format` is
    input.format."""
    return sum(_span_bytes(span, split.part_bytes, format) for span in split.spans)


def _overlaps(span: Span, claims: Claims) -> bool:
    start, stop = span.interval
    return any(
        start < other_stop and other_start < stop
        for other_start, other_stop in claims.get(span.shard.uri, ())
    )


def _free(span: Span, taken: Sequence[tuple[int, float]]) -> Iterator[Span]:
    """The pieces of a span outside the sorted, disjoint intervals `taken`."""
    start, stop = span.interval
    for other_start, other_stop in taken:
        if other_stop <= start or other_start >= stop:
            continue
        if start < other_start:
            yield Span(shard=span.shard, start=start, stop=other_start)
        if other_stop >= stop:
            return
        start = int(other_stop)
    yield Span(shard=span.shard, start=start, stop=span.stop)


def whole_bytes(shard: Shard) -> int:
    """Bytes that reading a whole shard will give, decompressed: a guess."""
    return shard.size_bytes * (COMPRESSION_RATIO if is_compressed(shard.uri) else 1)


def _span_bytes(span: Span, part_bytes: int, format: str) -> int:
    if span.is_whole:
        return whole_bytes(span.shard)
    if format_of(span.shard.uri, format) == "parquet":
        return part_bytes  # row groups: the reader gathers them to about that
    stop = span.shard.size_bytes if span.stop is None else min(span.stop, span.shard.size_bytes)
    return max(stop - span.start, 0)
