"""The work of `benchmarks.soak --ray`: `corpus-embed` processes on one Ray cluster that stays up,
with a tiny real model.

In each round `corpus-embed run` starts and its driver is killed (SIGKILL) at a seeded random
moment; then `corpus-embed refresh` has to finish, while in every second round one or two of its
workers are killed. (The killed driver is not a `refresh`: its lease would rightly keep the next one
out for five minutes.) Figures are taken when the cluster is at rest.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.process_figures import process_figures
from tests.support.model_dirs import bert_mean
from tests.support.outputs import make_spec
from tests.support.processes import Killer, below, named
from tests.support.ray_cluster import ROOT, RayCluster, ray_cluster

WORKERS = [
    "ray::MapWorker(MapBatches(PrepareParts))",
    "ray::MapWorker(MapBatches(EmbedParts))",
    "ray::Write",
]
WORKER_TITLES = ["ray::MapWorker", "ray::Write", "ray::Totals"]
DAEMONS = {
    "gcs_server": "gcs_server",
    "raylet": "raylet/raylet",
    "dashboard": "dashboard/dashboard.py",
}
REFRESH_TIMEOUT_S = 900.0
"""A refresh that takes longer has failed: an undisturbed one takes ten seconds."""


class OnRay:
    """Refreshes by drivers in processes of their own; this process only starts and kills them."""

    rounds_per_vacuum = 3

    def __init__(self, root: Path, draw: random.Random, cluster: RayCluster) -> None:
        self.root = root
        self.draw = draw
        self.cluster = cluster
        self.log = root / "drivers.log"
        self.n_rounds = 0
        self.spec = make_spec(
            str(root / "in"),
            str(root / "out"),
            bert_mean(root / "model"),
            input={"keep_columns": []},  # the documents have no other columns
            runtime={"part_bytes": 1024, "embedders": 1, "tokenizers": 1},
        )
        (root / "job.yaml").write_text(
            yaml.safe_dump(self.spec.model_dump(mode="json", exclude_defaults=True))
        )
        self.head = cluster.groups["head"]

    def disturb(self) -> list[str]:
        driver = self._start("run")
        try:
            # a driver imports and connects for about 6 s; most of the kills should hit the work
            driver.wait(self.draw.choice([self.draw.uniform(0.5, 6), self.draw.uniform(6, 25)]))
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
            return ["driver"]
        return []

    def refresh(self) -> list[str]:
        self.n_rounds += 1
        victims = self.draw.sample(WORKERS, self.draw.randint(1, 2)) if self.n_rounds % 2 else []
        driver = self._start("refresh")
        killer = Killer(self.head, victims, len(victims), self.draw.getrandbits(32), pause_s=3)
        killer.start()
        code = driver.wait(REFRESH_TIMEOUT_S)
        killer.stopped.set()
        killer.join()
        if code:
            raise SystemExit(
                f"round {self.n_rounds}: refresh ended with {code}:\n{self.log.read_text()[-3000:]}"
            )
        return killer.killed

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline",
                    command,
                    str(self.root / "job.yaml"),
                    "--json",
                    "--address",
                    f"127.0.0.1:{self.cluster.port}",
                ],
                env=self.cluster.env,
                cwd=self.root,
                stdout=log,
                stderr=log,
            )

    def figures(self) -> dict[str, float]:
        # workers that are still alive after 30 s show in the figures; Ray Data's own actors stay
        with contextlib.suppress(TimeoutError):
            self.cluster.wait_until(
                lambda: not any(named(self.head, name) for name in WORKER_TITLES),
                "end of the workers",
                30,
            )
        figures: dict[str, float] = {}
        for name, title in DAEMONS.items():
            figures |= process_figures(named(self.head, title)[0], name)
        session_files = [path for path in self.cluster.folder.rglob("*") if path.is_file()]
        return {
            **figures,
            "actors alive": self._alive(),
            "worker processes": len(named(self.head, "ray::")),
            "processes of the node": len(below(self.head)),
            "files of the Ray session": len(session_files),
            "their MiB": sum(path.stat().st_size for path in session_files) / 2**20,
        }

    def _alive(self) -> int:
        return len(
            self.cluster.ask(
                "actors?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE&limit=1000"
            )
        )


@contextlib.contextmanager
def ray_work(root: Path, draw: random.Random) -> Iterator[OnRay]:
    # PYTHONPATH without tests/fake_gpu, so that the engine is the real one
    with ray_cluster(
        "--num-cpus=2", PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"
    ) as cluster:
        yield OnRay(root, draw, cluster)
