"""What must be true of the parts of a snapshot: before a commit may name them, and for as long as
it does.

Comes in: manifests. Goes out: a sentence for each thing that is wrong. A commit stops at the first
one, `verify` lists them all. Cost: a pass over the manifests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from pipeline.errors import CommitConflict
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Span, by_split, is_complete
from pipeline.storage.store import Store


def problems(parts: Collection[Manifest], fingerprint: str, complete: bool) -> Iterator[str]:
    """Everything that keeps `parts` from being the content of a snapshot.

    complete: whether the snapshot claims to hold all of its input.
    """
    yield from count_problems(parts, fingerprint)
    yield from split_problems(parts, complete)


def lost_objects(store: Store, parts: Iterable[Manifest]) -> dict[str, list[str]]:
    """The data files and files of rejects of each part that are gone, or have another size than its
    manifest says, by part_id; parts that are whole are left out.

    Cost: a listing of all data files, and one of all rejects where a part has any.
    """
    listed_parts = list(parts)
    sizes = store.list(layout.DATA) if any(part.data_files for part in listed_parts) else {}
    if any(part.rejects_path for part in listed_parts):
        sizes = {**sizes, **store.list(layout.REJECTS)}
    lost: dict[str, list[str]] = {}
    for part in listed_parts:
        paths = [file.path for file in part.data_files if sizes.get(file.path) != file.size_bytes]
        if part.rejects_path and part.rejects_path not in sizes:
            paths.append(part.rejects_path)
        if paths:
            lost[part.part_id] = paths
    return lost


def check_presence(store: Store, parts: Sequence[Manifest]) -> None:
    """Raises CommitConflict when an object of a part is gone: the head must not name it."""
    if lost := lost_objects(store, parts):
        first = next(iter(lost.values()))[0]
        raise CommitConflict(
            f"{store.shown_uri}: {len(lost)} of {len(parts)} finished parts have lost files while "
            f"this command was under way; the first one is {first}. Something deleted them: a "
            "vacuum of an older release, another program, or a vacuum while this process was "
            "suspended. No snapshot was made. Run the same command again: it makes these parts "
            "again and keeps all others."
        )


def count_problems(parts: Collection[Manifest], fingerprint: str) -> Iterator[str]:
    """Parts that belong to another generation, are listed twice, or do not add up: their records
    are documents and rejects, as many as their sources say, and their rows are those of their
    files."""
    times_listed = Counter(part.part_id for part in parts)
    for part_id, n_times in times_listed.items():
        if n_times > 1:
            yield f"part {part_id}: listed {n_times} times"
    for part in parts:
        if part.fingerprint != fingerprint:
            yield f"part {part.part_id}: has fingerprint {part.fingerprint}, not {fingerprint}"
        n_records = sum(source.n_records for source in part.sources)
        n_rejects = sum(source.n_rejects for source in part.sources)
        counted = (part.n_documents + part.n_rejects, n_records)
        if counted != (part.n_records, part.n_records) or part.n_rejects != n_rejects:
            yield (
                f"part {part.part_id}: {part.n_records} records, {part.n_documents} documents, "
                f"{part.n_rejects} rejects; its sources have {n_records} records and {n_rejects} "
                "rejects"
            )
        n_rows = sum(file.n_rows for file in part.data_files)
        if part.n_rows != n_rows:
            yield f"part {part.part_id}: {part.n_rows} rows, {n_rows} in its files"


def split_problems(parts: Collection[Manifest], complete: bool) -> Iterator[str]:
    """Splits whose parts do not follow each other from the first on, and shards that their spans
    do not tile."""
    spans_of_shard: dict[str, list[Span]] = defaultdict(list)
    for split_id, of_split in by_split(parts).items():
        indices = [part.index for part in of_split]
        is_doubled = len(set(indices)) < len(indices)
        has_parts_after_last = any(part.last for part in of_split[:-1])
        if is_doubled or has_parts_after_last or (complete and not is_complete(of_split)):
            last = "which is the last" if of_split[-1].last else "none of which is the last"
            yield f"split {split_id}: has the parts {indices}, {last}"
        for span in of_split[0].split.spans:
            spans_of_shard[span.shard.uri].append(span)
    for uri, spans in spans_of_shard.items():
        spans.sort(key=lambda span: span.interval)
        for problem in _tiling_problems(spans, complete):
            yield f"{shown(uri)}: {problem}"


def _tiling_problems(spans: Sequence[Span], complete: bool) -> Iterator[str]:
    """Overlaps of the spans of a shard, in their order, and for a complete snapshot gaps."""
    if len(versions := {span.shard for span in spans}) > 1:
        etags = sorted(shard.etag for shard in versions)
        yield f"read in {len(versions)} versions: {etags}"
        return
    reached: float = 0
    for span in spans:
        start, stop = span.interval
        if start < reached:
            yield f"read twice between {start} and {min(reached, stop):.0f}"
        elif complete and start > reached:
            yield f"never read between {reached:.0f} and {start}"
        reached = max(reached, stop)
    if complete and reached != float("inf"):
        yield f"never read from {reached:.0f} on"
