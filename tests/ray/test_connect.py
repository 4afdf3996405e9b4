"""Starting a Ray of one's own where another one has left its traces."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CONNECT = """
import ray
from pipeline.cluster import connect, disconnect
connect(None)
print(ray.get_runtime_context().gcs_address)
disconnect()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_dead_cluster_that_rays_own_file_names_is_not_waited_for(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: Ray's sockets live below it
        trace = Path(folder) / "ray" / "ray_current_cluster"
        trace.parent.mkdir()
        trace.write_text("127.0.0.1:1")
        settings = {"RAY_TMPDIR": folder, "CORPUS_EMBED_LOG_DIR": str(tmp_path)}
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | settings
        done = subprocess.run(
            [sys.executable, "-c", CONNECT], env=environment, capture_output=True, text=True, timeout=120
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() not in ("", "127.0.0.1:1")
