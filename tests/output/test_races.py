"""Two runs on one output that do not agree about the time: one is stopped across the other's
commit, one lives days off.

Oracle: the documents written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_snapshot, snapshot_numbers
from pipeline.storage.store import Store
from tests import ROOT
from tests.conftest import S3Place
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec

pytestmark = pytest.mark.faults
needs_faketime = pytest.mark.skipif(
    shutil.which("faketime") is None,
    reason="needs the program faketime (Debian package of this name)",
)

DOCS = [{"id": f"d{n}", "text": f"text {n} " * 15} for n in range(40)]
BODY = """
import json, os, sys, time
from pipeline.job.spec import spec_from
from tests.support import stand_in

class SlowEngine(stand_in.HashEngine):
    # waits for a file before its second part, if one is named
    def embed(self, ids, offsets, stats):
        while self.seen and sys.argv[2] and not os.path.exists(sys.argv[2]):
            time.sleep(0.02)
        time.sleep(0.05)
        return super().embed(ids, offsets, stats)

print(time.time(), flush=True)
print(stand_in.run(spec_from(json.loads(sys.argv[1])), SlowEngine()).number, flush=True)
"""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    write_shard(tmp_path / "in/a.jsonl", DOCS)
    return make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})


def start(spec: JobSpec, *before: str, gate: str = "") -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", BODY, spec.model_dump_json(), gate]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_FAKE_STAT": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> int:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out.splitlines()[-1])


def check_rows(spec: JobSpec) -> None:
    output = spec.output
    rows = open_dataset(output.uri, storage_options=output.storage_options).to_table()
    assert sorted(rows["doc_id"].to_pylist()) == sorted(d["id"] for d in DOCS)
    assert snapshot_numbers(Store(output.uri, output.storage_options)) == [1]


def test_a_run_stopped_across_the_commit_of_another_one_neither_loses_nor_doubles(
    spec: JobSpec, tmp_path: Path
) -> None:
    first = start(spec, gate=str(tmp_path / "gate"))
    manifests = Path(spec.output.uri) / "_meta/manifests"
    deadline = time.monotonic() + 60
    while not list(manifests.rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    (tmp_path / "gate").touch()
    assert load_snapshot(Store(spec.output.uri)) is None  # it had not come to its commit
    assert finish(start(spec)) == 1
    before = {path: path.read_bytes() for path in manifests.rglob("*.json")}
    first.send_signal(signal.SIGCONT)
    assert finish(first) == 1
    assert {path: path.read_bytes() for path in manifests.rglob("*.json")} == before
    check_rows(spec)


@needs_faketime
def test_runs_whose_clocks_are_days_apart_end_in_one_output(spec: JobSpec) -> None:
    check_apart(spec, "2d", 3.9 * 86_400)


def check_apart(spec: JobSpec, off: str, least_apart_s: float) -> None:
    """Two runs at once, one early and one late, end in one output."""
    late, early = start(spec, "faketime", "-f", f"-{off}"), start(spec, "faketime", "-f", f"+{off}")
    times = [float(process.stdout.readline()) for process in (late, early)]  # type: ignore[union-attr]
    assert times[1] - times[0] > least_apart_s
    assert [finish(late), finish(early)] == [1, 1]
    check_rows(spec)


@needs_faketime
@pytest.mark.slow  # four processes
@pytest.mark.timeout(900)
def test_s3_refuses_a_clock_that_is_far_off_by_name_and_what_it_accepts_ends_in_one_output(
    s3: S3Place,
) -> None:
    """S3 and this server take requests whose time is up to a quarter of an hour off."""
    s3.filesystem.pipe_file(
        f"{s3.key}/in/a.jsonl", b"\n".join(json.dumps(doc).encode() for doc in DOCS)
    )
    spec = make_spec(f"{s3.uri}/in", f"{s3.uri}/out", runtime={"part_bytes": 1024})
    for off, seen in (("-2d", "-172[78]"), ("+30m", r"\+1[78]\d\d")):
        process = start(spec, "faketime", "-f", off)
        # at once, and not after the five minutes of a store that is only slow: a wrong clock does
        # not mend itself
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert re.search(
            rf"{re.escape(s3.uri)}/.*The clock of this machine is {seen}\d* s off"
            " the store's clock",
            err,
        )
    assert Store(f"{s3.uri}/out", s3.storage_options).list("_meta") == {}
    check_apart(spec, "10m", 19 * 60)
