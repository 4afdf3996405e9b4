"""Small refreshes for minutes or hours, with kills: does anything grow that should not?

    python -m benchmarks.soak [--minutes 60] [--seed 0] [--documents 200]

Local disk and a stand-in model (no torch, no Ray), so that what is measured is this package: planning, reading, publishing,
committing, vacuum. One long-lived process does refresh after refresh; before each of them another process begins the same
one and is killed (SIGKILL) at a seeded random moment, so that there always is something half-done to find. Each round
rewrites one shard of eight; every 20 rounds a vacuum keeps two snapshots.
Out: memory (RSS), open files, threads and objects under `_meta` at the start, the end, and their growth an hour by a
straight line through all rounds but the first fifth (warm-up); rows are checked after every round. Exit code 1 if rows are wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from pipeline.dataset import open_dataset
from pipeline.vacuum import vacuum
from pipeline.verify import verify
from tests import stand_in
from tests.chaos import FORKS, Order, run_alone
from tests.outputs import write_shard

SHARDS = 8
ROUNDS_PER_VACUUM = 20
AT_ONCE = datetime.timedelta(seconds=-60)


def figures(output: Path) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "RSS MiB": int(status["VmRSS"].split()[0]) / 1024,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects under _meta": sum(path.is_file() for path in (output / "_meta").rglob("*")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=200, help="in each of the eight shards")
    options = parser.parse_args()
    draw, kills, rounds, seen = random.Random(options.seed), 0, 0, []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root, documents = Path(folder), {}

        def write(number: int) -> None:
            name = f"{number}.jsonl"
            documents[name] = [
                {"id": f"{number}-{i}", "text": f"{draw.random()} {i}"} for i in range(options.documents)
            ]
            write_shard(root / "in" / name, documents[name])

        for number in range(SHARDS):
            write(number)
        spec = stand_in.make_spec(root / "in", root / "out", runtime={"part_bytes": 4096})
        begun = time.monotonic()
        while time.monotonic() < begun + 60 * options.minutes:
            order = Order(spec.model_dump_json(), str(root / "history.jsonl"), draw.getrandbits(32), {}, 0.01)
            victim = FORKS.Process(target=run_alone, args=(order,))
            victim.start()
            victim.join(draw.uniform(0.02, 0.5))
            kills += victim.exitcode is None
            victim.kill()
            victim.join()
            victim.close()
            stand_in.run(spec)
            rows = open_dataset(spec.output.uri).to_table(columns=["doc_id", "text"]).to_pylist()
            wanted = sorted((doc["id"], doc["text"]) for docs in documents.values() for doc in docs)
            if sorted((row["doc_id"], row["text"]) for row in rows) != wanted:
                print(f"round {rounds}: the rows are not those of the input")
                return 1
            rounds += 1
            if rounds % ROUNDS_PER_VACUUM == 0:
                vacuum(spec.output.uri, None, keep_snapshots=2, older_than=AT_ONCE, delete=True)
                seen.append((time.monotonic() - begun, figures(root / "out")))
            write(draw.randrange(SHARDS))
        ok = verify(spec.output.uri, None, sample=0).ok
    seen = seen[len(seen) // 5 :]
    hours = np.array([seconds / 3600 for seconds, _ in seen])
    print(
        json.dumps({"minutes": options.minutes, "seed": options.seed, "rounds": rounds, "kills": kills, "verify": ok})
    )
    for name in seen[0][1]:
        values = np.array([found[name] for _, found in seen])
        slope = np.polyfit(hours, values, 1)[0] if len(seen) > 1 else float("nan")
        print(
            f"{name}: {values[0]:.1f} at first, {values[-1]:.1f} at last, {values.max():.1f} at most, {slope:+.1f} an hour"
        )
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
