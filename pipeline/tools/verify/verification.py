"""Is an output what its records say, and do its vectors still follow from their sources?

In: an output in storage, nothing else. Out: a `Verification` with one `Check` per promise. Data
files and rejects are fetched one by one, each whole (`verify/file_scan.py`); the records are
compared with each other (`verify/stored_records.py`); a random sample of rows is read again from
its shards, chunked, embedded on this machine and compared (`verify/sample.py`). Writes nothing.
Cost: one read of everything, SHA-256 twice over it (files, texts), 16 bytes of memory a row, one
model for the sample.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.output.run_folder import read_planned_split_ids
from pipeline.storage import layout
from pipeline.storage.lineage import Span, by_split, is_complete, totals_of
from pipeline.tools.loaded_snapshot import LoadedSnapshot, load_snapshot_with_lineage
from pipeline.tools.verify.file_scan import FileScan
from pipeline.tools.verify.stored_records import record_findings, reject_findings

MAX_SHOWN = 5
"""The most findings that the detail of a check names; its `figures` count all of them."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise: whether it holds, a sentence for people, and the figures behind it."""

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
    snapshot: int | None = None,
    sample: int = 32,
    seed: int = 0,
    model_path: str | None = None,
) -> Verification:
    """Check a snapshot (the newest by default) against its manifests and, for `sample` random rows,
    against its sources.

    model_path: where the model is now, if not where the run found it. Sources that are gone or
    changed are reported and are no failure. Raises OutputError when there is no such snapshot or
    its records cannot be read, ModelError when the sample's model is not the one that made the
    vectors, StorageError when the store fails.
    """
    loaded = load_snapshot_with_lineage(store_uri, storage_options, snapshot, model_path=model_path)
    if sample:
        _ = loaded.model  # raises before hours of reading: without the model there is no sample
    scan = FileScan(loaded, n_sample=sample, seed=seed)
    scan.run()
    head = loaded.snapshot
    findings = scan.findings
    id_findings, id_detail = scan.shared_ids()
    checks = [
        _check(
            "files",
            findings["files"],
            f"{scan.n_files} data files have the size and SHA-256 of their manifests",
        ),
        _check("pages", findings["pages"], f"{scan.n_rows} rows decode, every page checksum holds"),
        _check(
            "schema",
            findings["schema"],
            f"vectors of dimension {loaded.generation.dimension} in every file",
        ),
        _check(
            "lineage",
            findings["lineage"],
            "every row names its part, and a shard that the part read",
        ),
        _check(
            "counts",
            [*_counts(loaded), *findings["counts"]],
            f"{head.n_records} records = {head.n_documents} documents + {head.n_rejects} rejects",
        ),
        _check(
            "manifests",
            record_findings(loaded),
            f"{len(loaded.manifests)} manifests are as the snapshot lists them",
        ),
        _check(
            "rejects",
            reject_findings(loaded),
            f"{head.n_rejects} rejects in files, as many as the manifests count",
        ),
        _check("splits", _splits(loaded), _split(loaded)),
        _check(
            "records",
            scan.repeated_records(),
            f"{scan.n_documents} documents, no two of them from the same record",
            n_documents=scan.n_documents,
        ),
        _check("ids", id_findings, id_detail),
        _check("finite", findings["finite"], "no NaN, no infinity"),
        _check("nonzero", findings["nonzero"], "no vector of zeros"),
        _check("tokens", findings["tokens"], "every row has at least one token"),
    ]
    if "text" in scan.schema.names:
        checks.append(
            _check(
                "text_hashes",
                findings["text_hashes"],
                "text_sha256 is the SHA-256 of every text",
            )
        )
    if sample:
        # imported late: it brings the tokenizer and the stages with it
        from pipeline.tools.verify.sample import compare

        sample_findings, detail, figures = compare(loaded, scan.sample)
        checks.append(_check("sample", sample_findings, detail, **figures))
    return Verification(head.number, head.fingerprint, tuple(checks))


def _check(name: str, findings: Iterable[str], success: str, **figures: Any) -> Check:
    """A check that holds when there are no findings. success: its detail when it holds."""
    findings = list(findings)
    n_hidden = len(findings) - MAX_SHOWN
    shown = [*findings[:MAX_SHOWN], *([f"and {n_hidden} more"] if n_hidden > 0 else [])]
    detail = "; ".join(shown) or success
    return Check(name, not findings, detail, {"findings": len(findings), **figures})


def _counts(loaded: LoadedSnapshot) -> Iterator[str]:
    """Records = documents + rejects in every part, its sources add up to it, the parts to the
    snapshot."""
    snapshot, parts = loaded.snapshot, loaded.manifests
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


def _split(loaded: LoadedSnapshot) -> str:
    shards = {span.shard.uri for part in loaded.manifests for span in part.split.spans}
    if loaded.snapshot.complete:
        return f"{len(shards)} shards are covered from their first to their last record, without gap or overlap"
    return f"{len(shards)} shards, no overlap (a partial snapshot: the run has not ended)"


def _splits(loaded: LoadedSnapshot) -> Iterator[str]:
    """Parts of a split run from first to last; spans of a shard tile it; what the run planned is
    there."""
    splits, complete = by_split(loaded.manifests), loaded.snapshot.complete
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
        yield from _missing_of_plan(loaded, set(splits))


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


def _missing_of_plan(loaded: LoadedSnapshot, found: set[str]) -> Iterator[str]:
    run_id = loaded.snapshot.run_id
    path = layout.run_plan(run_id)
    try:
        planned = read_planned_split_ids(loaded.store, run_id)
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: cannot be read: {error}"
        return
    if planned is None:
        yield f"{path}: gone, so what the run planned cannot be compared"
        return
    for split_id in sorted(planned - found):
        yield f"split {split_id}: planned by run {run_id}, but no part of it is in the snapshot"
