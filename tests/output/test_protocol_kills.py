"""Processes that die at any point of the protocol, and processes that race: the rows are those of
one undisturbed run.

Each victim is a fresh process round a stand-in model (no torch, no Ray), killed with SIGKILL at a
named failpoint or at a random moment, then run again. Oracle: the documents written, and the ids
and vectors of a run that nothing disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.storage.failpoints import NAMES
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from tests import ROOT
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, make_spec, run, vector_of_text

pytestmark = pytest.mark.faults

DOCS = [
    {"id": f"d{n}", "text": f"text {n} " * 15 if n % 9 else None, "lang": "en" if n % 2 else "ja"}
    for n in range(60)
]
GOOD = {doc["id"]: doc["text"] for doc in DOCS if doc["text"]}
VICTIM = """
import json, sys, time
from pipeline.job.spec import spec_from
from tests.support import stand_in

class SlowEngine(stand_in.HashEngine):
    def embed(self, ids, offsets, stats):
        time.sleep(float(sys.argv[2]))
        return super().embed(ids, offsets, stats)

print("ready", flush=True)
print(stand_in.run(spec_from(json.loads(sys.argv[1])), SlowEngine()).number, flush=True)
"""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    write_shard(tmp_path / "in/a.jsonl", DOCS[:20])
    write_shard(tmp_path / "in/b.jsonl.gz", DOCS[20:50])
    write_shard(tmp_path / "in/c.parquet", DOCS[50:])
    return make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"], "card": {}},
        runtime={"part_bytes": 1024},
    )


def start(spec: JobSpec, pause_s: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    """A process that runs the job; `pause_s` before each part's vectors."""
    command = [sys.executable, "-c", VICTIM, spec.model_dump_json(), str(pause_s)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def number(process: subprocess.Popen[str]) -> int:
    """The number of its snapshot."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out.splitlines()[-1])


def manifests(spec: JobSpec) -> dict[str, Manifest]:
    folder = Path(spec.output.uri) / "_meta/manifests"
    manifests = [
        Manifest.from_json(path.read_bytes(), str(path)) for path in folder.rglob("*.json")
    ]
    return {part.part_id: part for part in manifests}


def check_rows(spec: JobSpec) -> None:
    """Every good document once, with its own text and vector; nothing else under data/."""
    table = open_dataset(spec.output.uri).to_table()
    assert sorted(table["doc_id"].to_pylist()) == sorted(GOOD)
    for row in table.to_pylist():
        assert row["text"] == GOOD[row["doc_id"]]
        np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of_text(row["text"]))
    snapshot = load_snapshot(Store(spec.output.uri))
    assert snapshot is not None
    assert (snapshot.complete, snapshot.n_records, snapshot.n_rejects) == (
        True,
        len(DOCS),
        len(DOCS) - len(GOOD),
    )
    data = Path(spec.output.uri) / "data"
    live = {
        file.path
        for part in live_parts(Store(spec.output.uri), snapshot)
        for file in part.data_files
    }
    assert {
        str(path.relative_to(spec.output.uri)) for path in data.rglob("*") if path.is_file()
    } == live


@pytest.mark.parametrize("name", NAMES)
def test_a_process_killed_at_a_failpoint_costs_nothing_that_was_finished(
    spec: JobSpec, tmp_path: Path, name: str
) -> None:
    (tmp_path / "points").mkdir()
    setting = {
        "CORPUS_EMBED_FAILPOINT": f"{name}:kill",
        "CORPUS_EMBED_FAILPOINT_DIR": str(tmp_path / "points"),
    }
    victim = start(spec, **setting)
    victim.communicate(timeout=120)
    assert victim.returncode == -signal.SIGKILL
    before = manifests(spec)
    if name != "after_snapshot_put":
        assert load_snapshot(Store(spec.output.uri)) is None
    check_survivor(spec, before)


def check_survivor(spec: JobSpec, before: dict[str, Manifest]) -> None:
    """This process ends the job, and embeds nothing of the parts that were finished before."""
    engine = HashEngine()
    snapshot = run(spec, engine)
    assert snapshot is not None
    after = manifests(spec)
    assert {part_id: after[part_id] for part_id in before} == before
    assert len(engine.seen) == len(GOOD) - sum(part.n_documents for part in before.values())
    assert snapshot.number == 1
    check_rows(spec)


@pytest.mark.slow  # tests/driver/test_chaos.py does more of it
def test_a_process_killed_at_random_moments_ends_in_the_same_rows(spec: JobSpec) -> None:
    clock = random.Random(20)
    n_kills = 0
    for _ in range(10):
        victim = start(spec, pause_s=0.02)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        time.sleep(clock.uniform(0, 0.25))
        victim.kill()
        victim.communicate(timeout=120)
        n_kills += victim.returncode == -signal.SIGKILL
    assert n_kills >= 3  # the others had nothing left to do
    check_survivor(spec, manifests(spec))


def test_three_racing_runs_end_in_one_snapshot_with_every_row_once(spec: JobSpec) -> None:
    racers = [start(spec, pause_s=0.01) for _ in range(3)]
    assert {number(racer) for racer in racers} == {1}
    assert snapshot_numbers(Store(spec.output.uri)) == [1]
    check_rows(spec)


def test_a_run_that_stood_still_while_another_one_finished_changes_nothing(
    spec: JobSpec, tmp_path: Path
) -> None:
    """Like a holder of a lease that wakes up after it was taken over."""
    (tmp_path / "points").mkdir()
    setting = {
        "CORPUS_EMBED_FAILPOINT": "before_data_put:pause",
        "CORPUS_EMBED_FAILPOINT_DIR": str(tmp_path / "points"),
    }
    sleeper = start(spec, **setting)
    deadline = time.monotonic() + 120
    while not (tmp_path / "points/before_data_put.hit").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run(spec) is not None
    before = manifests(spec)
    (tmp_path / "points/before_data_put.go").touch()
    assert number(sleeper) == 1
    assert manifests(spec) == before
    check_rows(spec)
