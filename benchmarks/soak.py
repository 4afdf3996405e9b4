"""Small refreshes for minutes or hours, with kills: does anything grow that should not?

    python -m benchmarks.soak [--minutes 60] [--seed 0] [--documents 200]
        with a stand-in model: this package alone
    python -m benchmarks.soak --ray [--minutes 60] [--seed 0] [--documents 40]
        `corpus-embed` on a Ray cluster that stays up

Everything is on the local disk. Each round rewrites one shard of eight; a process starts the work
and is killed (SIGKILL) at a seeded random moment, so that there is always something unfinished;
then another process has to finish it. Every few rounds a vacuum keeps two snapshots, and figures
are taken. Without Ray, one long-lived process does all refreshes that finish. Out: one JSON line
per sample; then each figure at the start and at the end, and its growth per hour by a straight line
through all samples but the first fifth (warm-up). Rows are checked after every round. Exit code 1
if they are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.process_figures import count_files, process_figures
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.support import stand_in
from tests.support.chaos import FORKS, Order, run_alone
from tests.support.outputs import write_shard

N_SHARDS = 8
NO_GRACE = datetime.timedelta(seconds=-60)
"""An age of which everything is, whatever the resolution of the store's clock."""

Samples = list[tuple[float, dict[str, float]]]
"""(seconds since the start, figures by name)."""


class Work(Protocol):
    """The refresh that is repeated, in one of its two forms."""

    spec: JobSpec
    rounds_per_vacuum: int

    def disturb(self) -> list[str]:
        """Start a refresh and kill it; returns the names of the killed processes."""

    def refresh(self) -> list[str]:
        """Finish the refresh; returns the names of processes that were killed meanwhile."""

    def figures(self) -> dict[str, float]: ...


class Corpus:
    """Eight shards of small documents, and their current content."""

    def __init__(self, folder: Path, draw: random.Random, n_documents: int) -> None:
        self.folder = folder
        self.draw = draw
        self.n_documents = n_documents
        self.documents: dict[int, list[dict[str, str]]] = {}
        for shard in range(N_SHARDS):
            self.rewrite(shard)

    def rewrite(self, shard: int) -> None:
        texts = (f"{self.draw.random()} {i}" for i in range(self.n_documents))
        self.documents[shard] = [
            {"id": f"{shard}-{i}", "text": text} for i, text in enumerate(texts)
        ]
        write_shard(self.folder / f"{shard}.jsonl", self.documents[shard])

    def is_in(self, output_uri: str) -> bool:
        rows = open_dataset(output_uri).to_table(columns=["doc_id", "text"]).to_pylist()
        documents = (doc for shard in self.documents.values() for doc in shard)
        expected = sorted((doc["id"], doc["text"]) for doc in documents)
        return sorted((row["doc_id"], row["text"]) for row in rows) == expected


class StandIn:
    """Refreshes in this process, killed ones in forks: planning, reading, writing and committing,
    and nothing else."""

    rounds_per_vacuum = 20

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root = root
        self.draw = draw
        self.spec = stand_in.make_spec(root / "in", root / "out", runtime={"part_bytes": 4096})

    def disturb(self) -> list[str]:
        order = Order(
            self.spec.model_dump_json(),
            str(self.root / "history.jsonl"),
            self.draw.getrandbits(32),
            {},
            0.01,
        )
        victim = FORKS.Process(target=run_alone, args=(order,))
        victim.start()
        victim.join(self.draw.uniform(0.02, 0.5))
        was_alive = victim.exitcode is None
        victim.kill()
        victim.join()
        victim.close()
        return ["process"] if was_alive else []

    def refresh(self) -> list[str]:
        stand_in.run(self.spec)
        return []

    def figures(self) -> dict[str, float]:
        return {**process_figures(os.getpid(), "process"), "threads": threading.active_count()}


@contextlib.contextmanager
def work_of(root: Path, draw: random.Random, with_ray: bool) -> Iterator[Work]:
    if with_ray:
        from benchmarks.soak_ray import ray_work

        with ray_work(root, draw) as work:
            yield work
    else:
        yield StandIn(root, draw)


def soak(work: Work, corpus: Corpus, minutes: float) -> tuple[Samples, dict[str, int]]:
    """Repeat the work; returns samples of its figures and counts of rounds and kills."""
    output_uri = work.spec.output.uri
    kills: Counter[str] = Counter()
    n_rounds = 0
    samples: Samples = []
    start = time.monotonic()
    while time.monotonic() < start + 60 * minutes:
        kills.update(work.disturb())
        kills.update(work.refresh())
        if not corpus.is_in(output_uri):
            raise SystemExit(f"round {n_rounds}: the rows are not those of the input")
        n_rounds += 1
        if n_rounds % work.rounds_per_vacuum == 0:
            vacuum(output_uri, keep_snapshots=2, older_than=NO_GRACE, delete=True)
            n_objects = count_files(Path(output_uri) / "_meta")
            figures = {**work.figures(), "objects under _meta": n_objects}
            seconds = time.monotonic() - start
            samples.append((seconds, figures))
            line = {"seconds": round(seconds), "rounds": n_rounds, **kills, **figures}
            print(json.dumps(line), flush=True)
        corpus.rewrite(corpus.draw.randrange(N_SHARDS))
    return samples, {"rounds": n_rounds, **kills}


def report(samples: Samples) -> None:
    samples = samples[len(samples) // 5 :]
    hours = np.array([seconds / 3600 for seconds, _ in samples])
    for name in samples[0][1] if samples else ():
        values = np.array([figures[name] for _, figures in samples])
        slope = np.polyfit(hours, values, 1)[0] if len(samples) > 1 else float("nan")
        print(
            f"{name}: first {values[0]:.1f}, last {values[-1]:.1f}, highest {values.max():.1f}, "
            f"growth {slope:+.1f} an hour"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=200, help="in each of the eight shards")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        corpus = Corpus(Path(folder) / "in", draw, options.documents)
        with work_of(Path(folder), draw, options.ray) as work:
            samples, counts = soak(work, corpus, options.minutes)
            is_intact = verify(work.spec.output.uri, sample=0).ok
    summary = {"minutes": options.minutes, "seed": options.seed, **counts, "verify": is_intact}
    print(json.dumps(summary))
    report(samples)
    return 0 if is_intact else 1


if __name__ == "__main__":
    raise SystemExit(main())
