"""Small refreshes for minutes or hours, with kills: does anything grow that should not?

    python -m benchmarks.soak [--minutes 60] [--seed 0] [--documents 200]       a stand-in model: this package alone
    python -m benchmarks.soak --ray [--minutes 60] [--seed 0] [--documents 40]  `corpus-embed` on a Ray cluster that stays up

Local disk. Each round one shard of eight is rewritten; a process begins the work and is killed
(SIGKILL) at a seeded random moment, so that there always is something half-done to find; then
another one has to end it. Every few rounds a vacuum keeps two snapshots, and figures are taken.
Without Ray the refreshes that end are those of one long-lived process. Out: a JSON line a sample;
then each figure at the start, the end, and its growth an hour by a straight line through all
samples but the first fifth (warm-up); rows are checked after every round. Exit code 1 if rows are
wrong.
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

from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.support import stand_in
from tests.support.chaos import FORKS, Order, run_alone
from tests.support.outputs import write_shard
from tests.support.processes import status_of

SHARDS = 8
AT_ONCE = datetime.timedelta(seconds=-60)


class Work(Protocol):
    """What is done again and again."""

    spec: JobSpec
    rounds_per_vacuum: int

    def disturb(self) -> list[str]:
        """Begin the work and kill; says what was killed."""

    def refresh(self) -> list[str]:
        """End the work; says what was killed meanwhile."""

    def figures(self) -> dict[str, float]: ...


class Corpus:
    """Eight shards of small documents, and what they hold now."""

    def __init__(self, folder: Path, draw: random.Random, documents: int) -> None:
        self.folder, self.draw, self.n_documents = folder, draw, documents
        self.documents: dict[int, list[dict[str, str]]] = {}
        for number in range(SHARDS):
            self.write(number)

    def write(self, number: int) -> None:
        texts = (f"{self.draw.random()} {i}" for i in range(self.n_documents))
        self.documents[number] = [
            {"id": f"{number}-{i}", "text": text} for i, text in enumerate(texts)
        ]
        write_shard(self.folder / f"{number}.jsonl", self.documents[number])

    def is_in(self, spec: JobSpec) -> bool:
        rows = open_dataset(spec.output.uri).to_table(columns=["doc_id", "text"]).to_pylist()
        wanted = sorted(
            (doc["id"], doc["text"]) for docs in self.documents.values() for doc in docs
        )
        return sorted((row["doc_id"], row["text"]) for row in rows) == wanted


class StandIn:
    """Refreshes in this process, killed ones in forks: planning, reading, publishing, committing
    and nothing else."""

    rounds_per_vacuum = 20

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root, self.draw = root, draw
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
        killed = ["process"] * (victim.exitcode is None)
        victim.kill()
        victim.join()
        victim.close()
        return killed

    def refresh(self) -> list[str]:
        stand_in.run(self.spec)
        return []

    def figures(self) -> dict[str, float]:
        return {**process_figures(os.getpid(), "process"), "threads": threading.active_count()}


def process_figures(pid: int, name: str) -> dict[str, float]:
    return {
        f"{name}: RSS MiB": int(status_of(pid)["VmRSS"].split()[0]) / 1024,
        f"{name}: open files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def n_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@contextlib.contextmanager
def work_of(root: Path, draw: random.Random, with_ray: bool) -> Iterator[Work]:
    if with_ray:
        from benchmarks.soak_ray import ray_work

        with ray_work(root, draw) as work:
            yield work
    else:
        yield StandIn(root, draw)


def report(seen: list[tuple[float, dict[str, float]]]) -> None:
    seen = seen[len(seen) // 5 :]
    hours = np.array([seconds / 3600 for seconds, _ in seen])
    for name in seen[0][1]:
        values = np.array([found[name] for _, found in seen])
        slope = np.polyfit(hours, values, 1)[0] if len(seen) > 1 else float("nan")
        print(
            f"{name}: {values[0]:.1f} at first, {values[-1]:.1f} at last, {values.max():.1f} at most, {slope:+.1f} an hour"
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
    draw, rounds = random.Random(options.seed), 0
    kills: Counter[str] = Counter()
    seen: list[tuple[float, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        corpus = Corpus(Path(folder) / "in", draw, options.documents)
        with work_of(Path(folder), draw, options.ray) as work:
            output, begun = work.spec.output.uri, time.monotonic()
            while time.monotonic() < begun + 60 * options.minutes:
                kills.update(work.disturb())
                kills.update(work.refresh())
                if not corpus.is_in(work.spec):
                    print(f"round {rounds}: the rows are not those of the input")
                    return 1
                rounds += 1
                if rounds % work.rounds_per_vacuum == 0:
                    vacuum(output, None, keep_snapshots=2, older_than=AT_ONCE, delete=True)
                    found = {
                        **work.figures(),
                        "objects under _meta": n_files(Path(output) / "_meta"),
                    }
                    seen.append((time.monotonic() - begun, found))
                    print(
                        json.dumps(
                            {"seconds": round(seen[-1][0]), "rounds": rounds, **kills, **found}
                        ),
                        flush=True,
                    )
                corpus.write(draw.randrange(SHARDS))
            ok = verify(output, None, sample=0).ok
    print(
        json.dumps(
            {
                "minutes": options.minutes,
                "seed": options.seed,
                "rounds": rounds,
                "kills": kills,
                "verify": ok,
            }
        )
    )
    report(seen)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
