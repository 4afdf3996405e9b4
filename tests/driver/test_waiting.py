"""A run reports what it is waiting for: what `Totals` knows of unfinished work, and an address at
which nothing listens.

A worker that hangs in a real run: tests/workers/test_worker_kills.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.driver.cluster.totals import Totals


def test_the_longest_work_of_each_kind_is_named_with_its_place() -> None:
    totals = Totals()
    for work, where in (("part a", "process 1"), ("split s", "process 2"), ("part b", "process 3")):
        totals.begin(work, where)
    assert [re.sub(r"\d+ s", "0 s", text) for text in totals.under_way()] == [
        "part a for 0 s in process 1",
        "split s for 0 s in process 2",
    ]
    # Its worker died, and another one started it again, after part b.
    assert totals.begin("part a", "process 4") == 1
    totals.end("split s")
    assert [text.split(" for ")[0] for text in totals.under_way()] == ["part b"]
    totals.end("part b")
    assert totals.under_way()[0].endswith("in process 4")
    totals.end("part a")
    assert (totals.under_way(), totals.begin("part a", "")) == ([], 0)


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    """Ray alone keeps trying for minutes, without a message."""
    code = "from pipeline.driver.cluster.connection import connect; connect('127.0.0.1:1')"
    clock = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert time.monotonic() - clock < 60
    assert (
        "ClusterError: the Ray cluster at 127.0.0.1:1 cannot be joined: ConnectionRefusedError"
        in done.stderr
    )
    assert "--address" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_an_address_a_run_has_a_ray_of_its_own_and_joins_no_cluster_that_it_finds(
    tmp_path: Path,
) -> None:
    """Ray alone joins the cluster that was started last on this machine, by any user."""
    # Paths of sockets have to be short.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray/ray_current_cluster").write_text("127.0.0.1:1")
        code = """if True:
            import ray
            from pipeline.driver.cluster.connection import connect, disconnect
            connect(None)
            print(ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"])
            disconnect()
        """
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "RAY_TMPDIR": folder, "CORPUS_EMBED_LOG_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    address, cpus = done.stdout.split()
    assert address != "127.0.0.1:1"
    assert float(cpus) >= 1
