"""An output that commit ae349d3 wrote is read, verified with its model, traced, refreshed,
compacted and vacuumed by the code of today.

Oracle: `fixtures/output-of-ae349d3.tar.gz`, made once by `fixtures/make_output_of_ae349d3.py` in a
tree of that commit, and the documents that went into it.
"""

from __future__ import annotations

import datetime
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.driver.planning.tally import row_counts
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.output.run_folder import read_spec
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.trace import trace
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.fixtures.make_output_of_ae349d3 import BUCKET, DOCUMENTS, TARGET
from tests.support.outputs import run_without_ray, write_shard
from tests.support.s3_server import S3Server

torch = pytest.importorskip("torch", reason="the model of the output is loaded")

pytestmark = pytest.mark.model  # `verify` loads it, which no name here shows

IDS = sorted([document["id"] for document in DOCUMENTS] + ["n"])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked fixture, as the current folder: records name the model relatively."""
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / TARGET) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket(root: Path, s3_session: S3Server) -> S3Server:
    """The shards, where they lay when the output was made."""
    s3_session.make_bucket(BUCKET)
    for path in (root / "in").iterdir():
        put(s3_session, path)
    return s3_session


def put(server: S3Server, path: Path) -> None:
    server.client().put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())


def head_spec() -> JobSpec:
    store = Store("out")
    head = load_snapshot(store)
    assert head is not None
    return read_spec(store, head.run_id)


def ids(number: int | None = None) -> list[str]:
    return sorted(open_dataset("out", number).to_table()["doc_id"].to_pylist())


def test_its_snapshots_are_read(root: Path) -> None:
    assert ids() == IDS
    assert ids(1) == sorted([document["id"] for document in DOCUMENTS[:30]] + ["n"])
    _, vectors = read_vectors("out")
    assert vectors.shape == (41, 8)
    assert np.isfinite(vectors).all()


def test_it_verifies_with_a_sample_and_a_row_is_traced(bucket: S3Server) -> None:
    for number in (1, 2):
        verification = verify("out", snapshot=number, sample=41)
        assert verification.ok, [check for check in verification.checks if not check.ok]
        (sample,) = [check for check in verification.checks if check.name == "sample"]
        assert sample.figures["embedded_again"] == {1: 31, 2: 41}[number]
    traced = trace("out", "doc-35")
    assert traced.ok
    assert traced.rows[0].source_text == "text 35 of a small corpus"


def test_the_same_input_needs_nothing_done(bucket: S3Server) -> None:
    plan = make_plan(load_snapshot_with_lineage("out").job, Store("out"))
    assert plan.nothing_to_do


def test_a_refresh_carries_reuses_and_embeds_what_it_should(root: Path, bucket: S3Server) -> None:
    store = Store("out")
    before = live_parts(store, load_snapshot(store))
    rewritten = [{**document, "text": f"{document['text']}!"} for document in DOCUMENTS[30:33]]
    added = {"id": "new", "text": "a text that no run has seen", "lang": "en"}
    write_shard(root / "in/d.jsonl", [*rewritten, *DOCUMENTS[33:], added])
    put(bucket, root / "in/d.jsonl")
    snapshot = run_without_ray(head_spec())
    assert snapshot is not None
    assert (snapshot.number, snapshot.n_duplicate_ids) == (3, 0)
    assert row_counts(store, before, live_parts(store, snapshot)) == {
        "carried": 31,
        "reused": 7,
        "embedded": 4,
        "removed": 3,
        "rejected": 0,
    }
    assert ids() == sorted([*IDS, "new"])
    verification = verify("out", sample=42)
    assert verification.ok, [check for check in verification.checks if not check.ok]


def test_it_is_compacted_and_vacuumed(bucket: S3Server) -> None:
    rows = open_dataset("out").to_table().sort_by("doc_id").drop(["part_id", "run_id"])
    compaction = compact("out", target_bytes=1 << 20)
    assert compaction.snapshot == 3
    compacted = open_dataset("out").to_table().sort_by("doc_id").drop(["part_id", "run_id"])
    assert compacted.to_pylist() == rows.to_pylist()
    assert verify("out", sample=41).ok
    assert make_plan(load_snapshot_with_lineage("out").job, Store("out")).nothing_to_do
    grace = datetime.timedelta(0)
    assert vacuum("out", keep_snapshots=1, older_than=grace, delete=True).paths
    assert verify("out", sample=41).ok
