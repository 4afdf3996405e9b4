"""A real Ray cluster of several nodes on this machine: each node is a `ray start --block` in a
process group of its own.

It has a job server with a token, and nodes can be added and killed, each with its number of CPUs
and of GPUs, which exist in name only. A job of device cuda runs on it through
`tests/support/fake_gpu`, which computes on the CPU and records every call of an embedder. Cost: 10
to 20 seconds and 300 MB for each node on two cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests import ROOT
from tests.support.s3_server import _free_ports

START_TIMEOUT_S = 300.0


@dataclass
class RayCluster:
    """A head node without CPUs, and the nodes that were added.

    groups: process groups of the living nodes, by name.
    """

    folder: Path
    port: int
    dashboard_port: int
    env: dict[str, str]
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add_node(self, name: str, *, cpus: int, gpus: int = 0) -> None:
        """Start a node and wait until the cluster has it; its custom resource is its name."""
        self.start_node(
            name, f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"
        )
        self.wait_until(lambda: name in self.nodes().values(), f"node {name}")

    def start_node(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "ray",
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    f"--resources={json.dumps({name: 1})}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    f"--dashboard-agent-listen-port={_free_ports(1)[0]}",
                    "--object-store-memory=150000000",
                    *options,
                ],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
            )
        self.groups[name] = process.pid

    def kill_node(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.groups.pop(name), signal.SIGKILL)

    def ask(self, path: str) -> list[dict[str, Any]]:
        """The answer of Ray's state API, for instance about `actors`."""
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        answer = requests.get(f"{self.dashboard}/api/v0/{path}", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()["data"]["result"]["result"]

    def nodes(self) -> dict[str, str]:
        """Names of the living nodes by Ray's node id."""
        try:
            alive = [node for node in self.ask("nodes?detail=1") if node["state"] == "ALIVE"]
        except (requests.RequestException, KeyError, TypeError, ValueError):  # not up yet
            return {}
        return {
            node["node_id"]: name
            for node in alive
            for name in node["resources_total"]
            if name in self.groups
        }

    def workers(self, stage: str) -> dict[str, str]:
        """The node of every actor of a stage class, dead ones included, by process id."""
        nodes = self.nodes()
        return {
            str(actor["pid"]): nodes.get(actor["node_id"], "gone")
            for actor in self.ask("actors?detail=1")
            if stage in actor["class_name"] and actor["pid"]
        }

    def calls(self) -> list[dict[str, Any]]:
        """Every finished call of an embedder: node (its name, if it has one), process, begin and
        end in seconds."""
        lines = [
            line for path in self.folder.glob("calls-*") for line in path.read_text().splitlines()
        ]
        nodes = self.nodes()
        calls = [
            {**call, "node": nodes.get(call["node"], call["node"])}
            for call in map(json.loads, lines)
        ]
        return sorted(calls, key=lambda call: call["begin"])

    def submit(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """`corpus-embed submit …` from outside, with this cluster's token unless `env` has one."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "submit", *arguments, "--address", self.dashboard],
            env={**self.env, "PYTHONPATH": str(ROOT), **env},
            cwd=self.folder,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_until(self, condition: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log")
                )
                raise TimeoutError(f"{what}: not after {timeout_s} s\n{logs}")
            time.sleep(0.5)


@contextlib.contextmanager
def ray_cluster(*head_options: str, port: int | None = None, **env: str) -> Iterator[RayCluster]:
    """A cluster of one head node, with token authentication. env: for every process of it."""
    # A short path: Ray's sockets are below it, and the length of their paths is limited.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    free_port, dashboard_port = _free_ports(2)
    port = port or free_port
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests/support/fake_gpu'}{os.pathsep}{ROOT}",
        "FAKE_GPU_CALLS": str(folder),
    }
    cluster = RayCluster(folder, port, dashboard_port, {**os.environ, **own, **env})
    try:
        cluster.start_node(
            "head",
            "--head",
            "--num-cpus=0",
            f"--port={port}",
            f"--dashboard-port={dashboard_port}",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={folder}",
            *head_options,
        )
        cluster.wait_until(lambda: "head" in cluster.nodes().values(), "the head node")
        yield cluster
    finally:
        for name in list(cluster.groups):
            cluster.kill_node(name)
        shutil.rmtree(folder, ignore_errors=True)
