"""Two runs on one output that do not agree about the time: one is stopped across the other's commit, one lives days off.

Oracle: the documents written.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import commit
from pipeline.dataset import open_dataset
from pipeline.spec import JobSpec
from pipeline.storage import Store
from tests.outputs import write_shard
from tests.stand_in import make_spec

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parent.parent.parent
DOCS = [{"id": f"d{n}", "text": f"text {n} " * 15} for n in range(40)]
BODY = """
import json, sys, time
from pipeline.spec import spec_from
from tests import stand_in

class SlowEngine(stand_in.HashEngine):
    def embed(self, ids, offsets):
        time.sleep(0.05)
        return super().embed(ids, offsets)

print(time.time(), flush=True)
print(stand_in.run(spec_from(json.loads(sys.argv[1])), SlowEngine()).number, flush=True)
"""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    write_shard(tmp_path / "in/a.jsonl", DOCS)
    return make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})


def start(spec: JobSpec, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", BODY, spec.model_dump_json()]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "NO_FAKE_STAT": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> int:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out.splitlines()[-1])


def check_rows(spec: JobSpec) -> None:
    assert sorted(open_dataset(spec.output.uri).to_table()["doc_id"].to_pylist()) == sorted(d["id"] for d in DOCS)
    assert commit.snapshot_numbers(Store(spec.output.uri)) == [1]


def test_a_run_stopped_across_the_commit_of_another_one_neither_loses_nor_doubles(spec: JobSpec) -> None:
    first = start(spec)
    manifests = Path(spec.output.uri) / "_meta/manifests"
    deadline = time.monotonic() + 60
    while not list(manifests.rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    assert commit.load_snapshot(Store(spec.output.uri)) is None  # it had not come to its commit
    assert finish(start(spec)) == 1
    before = {path: path.read_bytes() for path in manifests.rglob("*.json")}
    first.send_signal(signal.SIGCONT)
    assert finish(first) == 1
    assert {path: path.read_bytes() for path in manifests.rglob("*.json")} == before
    check_rows(spec)


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the program faketime (Debian package of this name)")
def test_runs_whose_clocks_are_days_apart_end_in_one_output(spec: JobSpec) -> None:
    late, early = start(spec, "faketime", "-f", "-2d"), start(spec, "faketime", "-f", "+2d")
    times = [float(process.stdout.readline()) for process in (late, early)]  # type: ignore[union-attr]
    assert times[1] - times[0] > 3.9 * 86_400
    assert [finish(late), finish(early)] == [1, 1]
    check_rows(spec)
