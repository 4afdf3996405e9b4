"""An output of the first release stays readable, checkable and resumable; one of a later format is
refused clearly.

Oracle: `fixtures/format-1.tar.gz`, made once by `fixtures/make_format_1.py`, and the documents that
went into it.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import ModelError, OutputError
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.output.snapshots import load_manifests, load_snapshot, snapshot_numbers
from pipeline.output.text_index import IndexSegment
from pipeline.storage import schema
from pipeline.storage.layout import manifest as manifest_path
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.storage.stored_record import FORMAT_VERSION
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.trace import trace
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.fixtures.make_format_1 import BUCKET, TARGET, upload

LIVE_IDS = ["doc-0", "doc-1", "doc-2", "doc-3", "doc-4", "doc-5", "n", "文"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(TARGET) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def test_rows_and_vectors_of_every_snapshot_are_read(root: Path) -> None:
    out = str(root / "out")
    assert snapshot_numbers(Store(out)) == [1, 2, 3]
    rows = open_dataset(out).to_table().sort_by("doc_id").to_pylist()
    assert [row["doc_id"] for row in rows] == LIVE_IDS
    assert [row["lang"] for row in rows] == ["en"] * 6 + [None, "ja"]
    assert {row["source_uri"] for row in rows} == {
        f"s3://{BUCKET}/in/{name}" for name in ("a.jsonl", "b.jsonl.gz", "d.jsonl")
    }
    _, vectors = read_vectors(out)
    assert vectors.shape == (8, 8)
    assert np.linalg.norm(vectors, axis=1).min() > 0
    # the first run wanted two characters, so "b" was a reject of that generation
    assert sorted(open_dataset(out, 1).to_table()["doc_id"].to_pylist()) == [
        "doc-0",
        "doc-1",
        "doc-2",
        "n",
    ]
    assert sorted(open_dataset(out, 2).to_table()["doc_id"].to_pylist()) == [
        *LIVE_IDS[:3],
        "n",
        "文",
    ]


def test_it_verifies_and_says_that_the_model_is_not_there(root: Path) -> None:
    for number in (1, 2, 3):
        verification = verify(str(root / "out"), snapshot=number, sample=0)
        assert verification.ok, [check for check in verification.checks if not check.ok]
    with pytest.raises(ModelError, match="model"):
        verify(str(root / "out"))
    verification = verify(str(root / "out"), need_model=False)
    (sampled,) = (check for check in verification.checks if check.name == "sample")
    assert not sampled.ok or sampled.mark != "ok"
    assert "model" in sampled.detail


def test_vacuum_knows_every_name_in_it(root: Path) -> None:
    assert vacuum(str(root / "out"), keep_snapshots=3).paths == {}
    kept = vacuum(str(root / "out"), keep_snapshots=1, delete=True)
    assert {path for path in kept.paths if path.startswith("_meta/snapshots/")} == {
        f"_meta/snapshots/{number:020d}.json" for number in (1, 2)
    }
    assert verify(str(root / "out"), sample=0).ok


def test_a_run_goes_on_where_the_first_release_stopped(root: Path, s3_session: Any) -> None:
    upload(s3_session, root / "in")
    store = Store(str(root / "out"))
    job = load_snapshot_with_lineage(str(root / "out")).job
    plan = make_plan(job, store)
    assert plan.nothing_to_do
    (lost, *_) = plan.done
    shutil.rmtree(root / "out/_meta/snapshots")
    Path(store.path(manifest_path(lost.fingerprint, lost.part_id))).unlink()
    resumed = make_plan(job, store)
    assert [todo.split for todo in resumed.todo] == [lost.split]
    assert resumed.run_id == plan.run_id


def test_a_row_is_traced_to_its_source(root: Path, s3_session: Any) -> None:
    upload(s3_session, root / "in")
    traced = trace(str(root / "out"), "文")
    assert (traced.ok, traced.rows[0].source_text) == (True, "b")


def test_every_kind_of_record_says_which_format_it_has(root: Path) -> None:
    records = list((root / "out/_meta").rglob("*.json"))
    kinds = {path.relative_to(root / "out/_meta").parts[0] for path in records}
    assert kinds == {"snapshots", "manifests", "generations", "runs", "index"}
    assert {json.loads(path.read_text())["format_version"] for path in records} == {1}
    attempts = (root / "out/_meta/runs").glob("*/attempt-*.json")
    assert {json.loads(path.read_text())["model"]["license"] for path in attempts} == {"apache-2.0"}
    for path in [
        *(root / "out/data").rglob("*.parquet"),
        *(root / "out/_meta/rejects").rglob("*.parquet"),
    ]:
        assert json.loads(pq.read_metadata(path).metadata[schema.FOOTER_KEY])["format_version"] == 1
    for path in (root / "out/_meta/files").glob("*.parquet"):
        manifests = pq.read_table(path)["manifest"].to_pylist()
        assert {json.loads(text)["format_version"] for text in manifests} == {1}


@pytest.mark.parametrize("kind", ["snapshots", "manifests", "generations"])
def test_a_newer_record_of_any_kind_is_refused_before_its_fields_are_looked_at(
    root: Path, kind: str
) -> None:
    for path in (root / "out/_meta" / kind).rglob("*.json"):
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "other": fields}))
    store = Store(str(root / "out"))
    head = load_snapshot(store, 3) if kind != "snapshots" else None
    uses = {
        "snapshots": lambda: open_dataset(store.uri),
        "manifests": lambda: load_manifests(store, head.fingerprint if head else ""),
        "generations": lambda: open_dataset(store.uri),
    }
    with pytest.raises(
        OutputError, match=rf"{kind}/.*format version 2 is newer than 1.*Use a newer release"
    ):
        uses[kind]()


def test_a_change_of_a_record_is_a_change_of_the_format(root: Path) -> None:
    """Records are closed: an earlier release refuses an unknown field. See "Versions" in
    docs/output-format.md."""
    kinds = {
        "manifests": Manifest,
        "snapshots": Snapshot,
        "generations": Generation,
        "index": IndexSegment,
    }
    for folder, record in kinds.items():
        written = json.loads(next((root / "out/_meta" / folder).rglob("*.json")).read_text())
        assert set(written) == set(record.model_fields), (
            "records have other fields than format-1.tar.gz: before the first release run "
            "`python -m tests.fixtures.make_format_1`; after it raise FORMAT_VERSION and add a "
            "fixture of its own"
        )
