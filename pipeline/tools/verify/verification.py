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
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pipeline.errors import ModelError, SpecError, StorageError
from pipeline.output.checks import count_problems, split_problems
from pipeline.storage.words import counted
from pipeline.tools.loaded_snapshot import LoadedSnapshot, load_snapshot_with_lineage
from pipeline.tools.verify import stored_records
from pipeline.tools.verify.file_scan import FileScan
from pipeline.tools.verify.surroundings import (
    deletion_findings,
    extra_findings,
    list_findings,
    table_findings,
)

MAX_SHOWN = 5
"""The most findings that the detail of a check names; its `figures` count all of them."""


_RESTORE = (
    "Restore the objects that are named from a backup, or name an older snapshot (--snapshot); "
    "without a backup, embed into another output.uri"
)
_AGAIN = (
    "Restore the files that are named from a backup, or delete them and run the job again, which "
    "embeds their parts again and no others"
)
_ADVICE = {
    **dict.fromkeys(("files", "pages", "schema", "finite", "nonzero", "tokens"), _AGAIN),
    **dict.fromkeys(("text_hashes", "lineage", "records", "ids"), _AGAIN),
    "damage": "Fix these shards or copy them again from where they come from, then run the job",
    "sample": "Give the model that made the vectors (--model), or embed the sources again",
}
"""What to do about the findings of a check."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One promise: whether it holds, a sentence for people, and the figures behind it.

    mark: "ok" or "FAIL"; "warn" for what is no damage of the snapshot, and "skip" for what was not
    asked for, which both leave the verification as it is.
    """

    name: str
    ok: bool
    detail: str
    figures: dict[str, Any]
    mark: Literal["ok", "FAIL", "warn", "skip"] = "ok"


_NOT_SAMPLED = Check("sample", True, "not asked for (--sample 0)", {}, "skip")


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
    uri: str,
    *,
    snapshot: int | None = None,
    sample: int = 32,
    seed: int = 0,
    model_path: str | None = None,
    need_model: bool = True,
    source_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Check a snapshot (the newest by default) against its manifests and, for `sample` random rows,
    against its sources.

    model_path: where the model is now, if not where the run found it. need_model: whether a model
    that cannot be used is an error before anything is read; otherwise the sample fails, and all
    other checks are made. source_options: storage options to read the sources with; without them,
    sources on a server that only the output names are not asked. Those, and sources that are gone
    or changed, are reported and are no failure. Raises SpecError for a negative sample, OutputError
    when there is no such snapshot or its records cannot be read, ModelError when the sample's model
    is not the one that made the vectors, StorageError when the store fails.
    """
    if sample < 0:
        raise SpecError(f"--sample {sample}: a number of rows is 0 or more; 0 skips the check")
    loaded = load_snapshot_with_lineage(
        uri,
        storage_options,
        snapshot,
        model_path=model_path,
        source_options=source_options,
    )
    model_problem = None
    try:
        _ = loaded.model if sample else None  # before hours of reading
    except (ModelError, StorageError) as error:
        if need_model:
            raise
        model_problem = f"the model that made the vectors cannot be used: {error}"
    scan = FileScan(loaded, n_sample=0 if model_problem else sample, seed=seed)
    scan.run()
    head = loaded.snapshot
    findings = scan.findings
    findings["counts"] = [
        *count_problems(loaded.manifests, head.fingerprint),
        *stored_records.total_findings(loaded),
        *findings["counts"],
    ]
    findings["manifests"] += stored_records.record_findings(loaded)
    findings["rejects"] += stored_records.reject_findings(loaded)
    findings["splits"] += split_problems(loaded.manifests, head.complete)
    findings["splits"] += stored_records.plan_findings(loaded)
    findings["damage"] += stored_records.damage_findings(loaded)
    findings["records"] += scan.repeated_records()
    findings["ids"], id_success = scan.shared_ids()
    totals = f"{head.n_records} records = {head.n_documents} documents + {head.n_rejects} rejects"
    successes = {
        "files": f"{counted(scan.n_files, 'data file')} as the manifests say, by size and SHA-256",
        "pages": f"{counted(scan.n_rows, 'row')} decoded, every page checksum holds",
        "schema": f"vectors of dimension {loaded.generation.dimension} in every file",
        "lineage": "every row names its part, and a shard that the part read",
        "counts": totals,
        "manifests": f"{counted(len(loaded.manifests), 'manifest')} as the snapshot lists them",
        "rejects": f"{counted(head.n_rejects, 'reject')} in files, as many as the manifests count",
        "splits": _coverage(loaded),
        "damage": stored_records.damage_summary(loaded),
        "records": f"{counted(scan.n_documents, 'document')}, no two of them from the same record",
        "ids": id_success,
        "finite": "no NaN, no infinity",
        "nonzero": "no vector of zeros",
        "tokens": "every row has at least one token",
    }
    if "text" in scan.schema.names:
        successes["text_hashes"] = "text_sha256 is the SHA-256 of every text"
    figures: dict[str, dict[str, Any]] = {"records": {"n_documents": scan.n_documents}}
    checks = [
        _check(name, findings[name], success, figures.get(name, {}))
        for name, success in successes.items()
    ]
    checks += [
        _warning("extra", extra_findings(loaded), "nothing but what this package wrote"),
        _warning("current", list_findings(loaded), "the list for other programs has its files"),
        _warning("tables", table_findings(loaded), "none that showed another snapshot"),
        _warning("deletions", deletion_findings(loaded), "as few as the spec of the run allows"),
        _sample_check(loaded, scan, model_problem) if sample else _NOT_SAMPLED,
    ]
    return Verification(head.number, head.fingerprint, tuple(checks))


def _sample_check(loaded: LoadedSnapshot, scan: FileScan, model_problem: str | None) -> Check:
    """Whether the sampled rows follow from their sources. model_problem: why there is no model."""
    if model_problem:
        return _check("sample", [model_problem], "", {})
    # imported late: it brings the tokenizer and the stages with it
    from pipeline.tools.verify.sample import compare

    return _check("sample", *compare(loaded, scan.sample))


def _check(name: str, findings: list[str], success: str, figures: dict[str, Any]) -> Check:
    """A check that holds when there are no findings. success: its detail when it holds."""
    n_hidden = len(findings) - MAX_SHOWN
    shown = [*findings[:MAX_SHOWN], *([f"and {n_hidden} more"] if n_hidden > 0 else [])]
    figures = {"findings": len(findings), **figures}
    if not findings:
        return Check(name, True, success, figures)
    detail = f"{'; '.join(shown).rstrip('.')}. {_ADVICE.get(name, _RESTORE)}"
    return Check(name, False, detail, figures, "FAIL")


def _warning(name: str, findings: Iterator[str], success: str) -> Check:
    """A check that never fails the verification."""
    sentences = list(findings)
    figures = {"findings": len(sentences)}
    return Check(
        name, True, "; ".join(sentences) or success, figures, "warn" if sentences else "ok"
    )


def _coverage(loaded: LoadedSnapshot) -> str:
    shards = {span.shard.uri for part in loaded.manifests for span in part.split.spans}
    if loaded.snapshot.complete:
        covered = f"{counted(len(shards), 'shard')} covered from first to last record"
        return f"{covered}, without gap or overlap"
    n_shards = counted(len(shards), "shard")
    return f"{n_shards}, no overlap (a partial snapshot: its run has not finished)"
