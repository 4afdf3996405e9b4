"""A whole job from a real S3 server to S3, its driver killed and started again until it is done;
then checked.

    python -m benchmarks.killed_job --corpus DIR [--kills 3] [--seed 0]

In: jsonl.gz shards with `id`, `lang`, `text`. The job runs with a Japanese BERT directory (6
layers, hidden 384, random weights) over HTTP with signed requests. The driver is killed (SIGKILL)
at seeded random moments after its first parts are out; then it may end. Out: the kills, what each
start found done, and what verify, trace and search say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.support.model_dirs import bert_japanese
from tests.support.s3_server import s3_server


def pipeline(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def asked(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(pipeline(*arguments, "--json"), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{arguments[0]} failed with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return dict(json.loads(done.stdout))


def killed_run(spec: Path, filesystem: Any, manifests: str, more_parts: int, log: Any) -> int:
    """Start the job, kill its driver when `more_parts` more manifests lie in the store; returns how
    many lie there."""
    before = len(filesystem.find(manifests))
    driver = subprocess.Popen(pipeline("run", str(spec), "--json"), stdout=log, stderr=log)
    while driver.poll() is None and len(filesystem.find(manifests)) < before + more_parts:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # workers of a dead driver live on for a moment and may still publish: that must not matter
    time.sleep(3)
    return len(filesystem.find(manifests))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path(__file__).parent.parent / "jobs" / "sample"
    )
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part-bytes", default="512KiB")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with (
        s3_server() as server,
        tempfile.TemporaryDirectory() as name,
        open(Path(name) / "log", "w") as log,
    ):
        os.environ.update(server.env)
        filesystem, root = server.filesystem(), Path(name)
        server.make_bucket("lake")
        for shard in sorted(options.corpus.glob("*.jsonl.gz")):
            filesystem.put_file(str(shard), f"lake/in/{shard.name}")
        model = bert_japanese(
            root / "model", hidden=384, layers=6, heads=12, intermediate=1536, vocab_size=8000
        )
        endpoint = {"endpoint_url": server.endpoint_url}
        spec = root / "job.yaml"
        spec.write_text(
            yaml.safe_dump(
                {
                    "name": "killed",
                    "input": {
                        "uri": "s3://lake/in/*.jsonl.gz",
                        "id_column": "id",
                        "keep_columns": ["lang"],
                        "storage_options": endpoint,
                    },
                    "model": {"path": str(model), "dtype": "float32"},
                    "output": {
                        "uri": "s3://lake/out",
                        "partition_by": ["lang"],
                        "storage_options": endpoint,
                    },
                    "runtime": {"device": "cpu", "part_bytes": options.part_bytes},
                }
            )
        )
        started = time.perf_counter()
        for number in range(options.kills):
            done = killed_run(
                spec, filesystem, "lake/out/_meta/manifests", chance.randint(1, 6), log
            )
            planned = asked("plan", str(spec))
            print(
                f"kill {number + 1}: {done} parts done; plan: {planned['parts_done']} done, about {planned['parts_todo']} to do"
            )
        last = asked("run", str(spec))
        wall = time.perf_counter() - started
        snapshot = last["snapshot"]
        print(
            f"finished: snapshot {snapshot['number']}, {snapshot['n_parts']} parts, {snapshot['n_rows']} rows of "
            f"{snapshot['n_records']} records, {snapshot['n_rejects']} rejects, {snapshot['n_tokens']} tokens"
        )
        print(
            f"the last start embedded {last['run'].get('parts', 0)} parts; {wall:.0f} s with {options.kills} kills"
        )
        print(f"run again: embedded={asked('run', str(spec))['embedded']}")
        reach = ["--storage-options", json.dumps(endpoint)]
        checks = asked("verify", "s3://lake/out", *reach)["checks"]
        print(
            "verify: "
            + ", ".join(f"{check['name']} {'ok' if check['ok'] else 'FAILED'}" for check in checks)
        )
        hits = asked("search", "s3://lake/out", "表計算の関数", "-k", "3", *reach)["hits"]
        print("search: " + "; ".join(f"{hit['score']:.3f} {hit['doc_id']}" for hit in hits))
        print("trace: ok=" + str(asked("trace", "s3://lake/out", hits[0]["doc_id"], *reach)["ok"]))


if __name__ == "__main__":
    main()
