"""The folder of a run, `_meta/runs/<run_id>/`: its spec, its pinned plan, and a record of each
attempt.

Spec and plan are created once, before any work; an attempt is recorded after its snapshot. Attempts
are for people and auditors: nothing is ever decided from them, so they alone can hold times and
facts about hosts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError, SpecError
from pipeline.job.spec import JobSpec, spec_from
from pipeline.storage import data_files, layout
from pipeline.storage.closed_yaml import YamlMistake, load_yaml
from pipeline.storage.lineage import Split
from pipeline.storage.store import Store
from pipeline.storage.stored_record import FORMAT_VERSION

PACKAGES = (
    "corpus-embed",
    "ray",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "fugashi",
    "unidic-lite",
    "numpy",
    "pyarrow",
    "fsspec",
    "s3fs",
)
"""Packages whose versions an attempt records."""

_PLAN_SCHEMA = pa.schema(
    [
        ("split_id", pa.string()),
        ("part_bytes", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)


def create_run(store: Store, run_id: str, spec: bytes, splits: Sequence[Split]) -> None:
    """Create the spec (YAML) and the plan of a run, unless an earlier attempt at the same run
    has."""
    store.put_if_absent(layout.run_spec(run_id), spec)
    store.put_if_absent(layout.run_plan(run_id), plan_table(splits))


def read_spec(store: Store, run_id: str) -> JobSpec:
    """The resolved spec of a run. Raises OutputError when it is missing."""
    path = layout.run_spec(run_id)
    data = store.read_or_none(path)
    if data is None:
        raise OutputError(
            f"{store.shown_uri}/{path}: the spec of run {run_id} is missing. Restore it from a "
            "backup, or use another snapshot."
        )
    try:
        return spec_from(load_yaml(data), path)
    except (YamlMistake, SpecError) as error:
        raise OutputError(
            f"{store.shown_uri}/{path}: the spec of run {run_id} is damaged: {error}. Restore it "
            "from a backup, or use another snapshot."
        ) from error


def read_planned_split_ids(store: Store, run_id: str) -> set[str] | None:
    """The ids of the splits that a run planned to do, or None when its plan is missing.

    Raises pa.ArrowException or OSError when the plan is damaged.
    """
    data = store.read_or_none(layout.run_plan(run_id))
    return None if data is None else set(data_files.read_text(data, "split_id")["split_id"])


def record_attempt(store: Store, run_id: str, facts: Mapping[str, Any]) -> str:
    """Write the record of one successful attempt under the next free number; returns its path.

    facts: plain data, to which the format version, the run and the versions of PACKAGES are added.
    """
    record = {"format_version": FORMAT_VERSION, "run_id": run_id, **facts}
    record["versions"] = {**facts.get("versions", {}), **package_versions()}
    data = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False).encode()
    number = 1
    while not store.put_if_absent(layout.run_attempt(run_id, number), data):
        number += 1
    return layout.run_attempt(run_id, number)


def read_attempts(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The records of the attempts at a run, oldest first. They are for people: one that is missing
    or damaged is left out."""
    records = []
    number = 1
    while (data := store.read_or_none(layout.run_attempt(run_id, number))) is not None:
        number += 1
        with contextlib.suppress(ValueError):
            record = json.loads(data)
            if isinstance(record, dict):
                records.append(record)
    return records


@functools.cache  # 20 ms: importlib parses the whole metadata of a package, its README included
def package_versions() -> Mapping[str, str | None]:
    """Installed versions of PACKAGES by name; None for a package that is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def plan_table(splits: Sequence[Split]) -> bytes:
    """Splits as Parquet, one row a span."""
    rows = [
        {
            "split_id": split.split_id,
            "part_bytes": split.part_bytes,
            **span.model_dump(exclude={"shard"}),
            **span.shard.model_dump(),
        }
        for split in splits
        for span in split.spans
    ]
    return data_files.encoded(pa.Table.from_pylist(rows, schema=_PLAN_SCHEMA))
