"""Is an output what its records say, and do its vectors still follow from their sources?

In: an output on storage, nothing else. Out: a `Verification`, one `Check` a promise. Files and
rejects are fetched one by one, each whole, and looked at in bulk (`pipeline/tools/verify/rows.py`);
a random sample of rows is read again from its shards, chunked, embedded on this machine and
compared (`pipeline/tools/verify/sample.py`). Writes nothing. Cost: one read of everything, SHA-256
twice over it (files, texts), 16 bytes a row of memory, one model for the sample.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.job.spec import JobSpec
from pipeline.output.run_folder import read_planned_split_ids
from pipeline.storage import layout
from pipeline.storage.lineage import Span, by_split, is_complete, totals_of
from pipeline.storage.store import Store
from pipeline.tools.loaded_snapshot import Recorded, read_recorded
from pipeline.tools.verify.records import records, rejects
from pipeline.tools.verify.rows import Rows

SHOWN = 5
"""Findings that a check's detail names; `figures` has the number of all."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise: whether it holds, what was found (for people), and the figures behind it."""

    name: str
    ok: bool
    detail: str
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Verification:
    """All checks of one snapshot."""

    snapshot: int
    fingerprint: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def verify(
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    spec: JobSpec | None = None,
    snapshot: int | None = None,
    sample: int = 32,
    seed: int = 0,
    model_path: str | None = None,
) -> Verification:
    """Check a snapshot (the newest by default) against its manifests and, for `sample` rows,
    against its sources.

    spec: instead of the one stored with the run. model_path: where the model is now. Sources that
    are gone or changed are reported and are no failure. Raises OutputError when there is no
    snapshot or its records cannot be read, ModelError when the sample's model is not the one that
    made the vectors, StorageError when the store fails.
    """
    recorded = read_recorded(
        Store(store_uri, storage_options), snapshot, spec=spec, model_path=model_path
    )
    if sample:
        _ = recorded.model  # before hours of reading: without the model there is no sample
    rows = Rows(recorded, sample=sample, seed=seed)
    rows.read()
    head = recorded.snapshot
    checks = [
        check(
            "files",
            rows.findings["files"],
            f"{rows.n_files} data files have the size and SHA-256 of their manifests",
        ),
        check(
            "pages", rows.findings["pages"], f"{rows.n_rows} rows decode, every page checksum holds"
        ),
        check(
            "schema",
            rows.findings["schema"],
            f"vectors of dimension {recorded.generation.dimension} in every file",
        ),
        check(
            "lineage",
            rows.findings["lineage"],
            "every row names its part, and a shard that the part read",
        ),
        check(
            "counts",
            [*_counts(recorded), *rows.findings["counts"]],
            f"{head.n_records} records = {head.n_documents} documents + {head.n_rejects} rejects",
        ),
        check(
            "manifests",
            records(recorded),
            f"{len(recorded.parts)} manifests are as the snapshot lists them",
        ),
        check(
            "rejects",
            rejects(recorded),
            f"{head.n_rejects} dead letters, as many as the manifests say",
        ),
        check("splits", _splits(recorded), _split(recorded)),
        check("records", *rows.doubled_records(), n_documents=rows.n_documents),
        check("ids", *rows.shared_ids()),
        check("finite", rows.findings["finite"], "no NaN, no infinity"),
        check("nonzero", rows.findings["nonzero"], "no vector of zeros"),
        check("tokens", rows.findings["tokens"], "every row has at least one token"),
    ]
    if "text" in rows.schema.names:
        checks.append(
            check(
                "text_hashes",
                rows.findings["text_hashes"],
                "text_sha256 is the SHA-256 of every text",
            )
        )
    if sample:
        from pipeline.tools.verify.sample import compare

        findings, detail, figures = compare(recorded, rows.sample)
        checks.append(check("sample", findings, detail, **figures))
    return Verification(head.number, head.fingerprint, tuple(checks))


def check(name: str, findings: Iterable[str], fine: str, **figures: Any) -> Check:
    """A check that holds when there are no findings."""
    found = list(findings)
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    detail = "; ".join([*found[:SHOWN], *more]) or fine
    return Check(name, not found, detail, {"findings": len(found), **figures})


def _counts(recorded: Recorded) -> Iterator[str]:
    """Records = documents + rejects in every part, its sources add up to it, the parts to the
    snapshot."""
    snapshot, parts = recorded.snapshot, recorded.parts
    for part in parts:
        records = sum(source.n_records for source in part.sources)
        rejects = sum(source.n_rejects for source in part.sources)
        if (
            not part.n_records == part.n_documents + part.n_rejects == records
            or part.n_rejects != rejects
        ):
            yield (
                f"part {part.part_id}: {part.n_records} records, {part.n_documents} documents, {part.n_rejects} rejects; "
                f"its sources have {records} records and {rejects} rejects"
            )
        if part.n_rows != sum(file.n_rows for file in part.data_files):
            yield f"part {part.part_id}: {part.n_rows} rows, {sum(file.n_rows for file in part.data_files)} in its files"
    for name, total in totals_of(parts).items():
        if total != getattr(snapshot, name):
            yield f"snapshot {snapshot.number} says {name} = {getattr(snapshot, name)}, its parts have {total}"


def _split(recorded: Recorded) -> str:
    shards = {span.shard.uri for part in recorded.parts for span in part.split.spans}
    if recorded.snapshot.complete:
        return f"{len(shards)} shards are covered from their first to their last record, without gap or overlap"
    return f"{len(shards)} shards, no overlap (a partial snapshot: the run has not ended)"


def _splits(recorded: Recorded) -> Iterator[str]:
    """Parts of a split run from first to last; spans of a shard tile it; what the run planned is
    there."""
    splits, complete = by_split(recorded.parts), recorded.snapshot.complete
    for split_id, parts in splits.items():
        found = [part.index for part in parts]
        gap = complete and not is_complete(parts)
        if len(set(found)) < len(found) or any(part.last for part in parts[:-1]) or gap:
            last = "which is the last" if parts[-1].last else "none of which is the last"
            yield f"split {split_id}: has the parts {found}, {last}"
    spans: dict[str, list[Span]] = defaultdict(list)
    for parts in splits.values():
        for span in parts[0].split.spans:
            spans[span.shard.uri].append(span)
    for uri, of_shard in spans.items():
        yield from _tiled(uri, sorted(of_shard, key=lambda span: span.start), complete)
    if complete:
        yield from _missing_of_plan(recorded, set(splits))


def _tiled(uri: str, spans: list[Span], complete: bool) -> Iterator[str]:
    if len({span.shard for span in spans}) > 1:
        yield f"{uri}: read in {len({span.shard for span in spans})} versions: {sorted({s.shard.etag for s in spans})}"
        return
    reached: float = 0
    for span in spans:
        if span.start < reached or (complete and span.start > reached):
            what = "read twice" if span.start < reached else "never read"
            yield f"{uri}: {what} between {min(span.start, reached):.0f} and {max(span.start, reached):.0f}"
        reached = float("inf") if span.stop is None else span.stop
    if complete and reached != float("inf"):
        yield f"{uri}: never read from {reached:.0f} on"


def _missing_of_plan(recorded: Recorded, found: set[str]) -> Iterator[str]:
    run_id = recorded.snapshot.run_id
    path = layout.run_plan(run_id)
    try:
        planned = read_planned_split_ids(recorded.store, run_id)
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: cannot be read: {error}"
        return
    if planned is None:
        yield f"{path}: gone, so what the run planned cannot be compared"
        return
    for split_id in sorted(planned - found):
        yield f"split {split_id}: planned by run {run_id}, but no part of it is in the snapshot"
