"""A whole job from a real S3 server to S3, its driver killed and started again until it is done;
then checked.

    python -m benchmarks.killed_job --corpus DIR [--kills 3] [--seed 0]

In: jsonl.gz shards with `id`, `lang`, `text`. The job runs with a Japanese BERT directory (6
layers, hidden 384, random weights) over HTTP with signed requests. The driver is killed (SIGKILL)
at seeded random moments after its first parts are written; the last start is left to finish. Out:
the kills, how many parts each start could keep, and the results of verify, trace and search.
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

from benchmarks.machine import cpu_name
from tests.support.model_dirs import bert_japanese
from tests.support.s3_server import S3Server, s3_server


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def result_of(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints. Raises SystemExit when it fails."""
    process = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(
            f"{arguments[0]} failed with {process.returncode}:\n{process.stdout[-3000:]}\n"
            f"{process.stderr[-3000:]}"
        )
    return dict(json.loads(process.stdout))


def killed_run(spec: Path, filesystem: Any, manifests: str, more_parts: int, log: Any) -> int:
    """Start the job and kill its driver once the store has `more_parts` more manifests; returns how
    many it has then."""
    before = len(filesystem.find(manifests))
    driver = subprocess.Popen(command("run", str(spec), "--json"), stdout=log, stderr=log)
    while driver.poll() is None and len(filesystem.find(manifests)) < before + more_parts:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # workers outlive their driver for a moment and can still write parts: that must not matter
    time.sleep(3)
    return len(filesystem.find(manifests))


def write_spec(options: argparse.Namespace, endpoint: dict[str, str], root: Path) -> Path:
    model = bert_japanese(
        root / "model", hidden=384, layers=6, heads=12, intermediate=1536, vocab_size=8000
    )
    spec = {
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
    path = root / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def measure(options: argparse.Namespace, server: S3Server, root: Path) -> None:
    filesystem = server.filesystem()
    for shard in sorted(options.corpus.glob("*.jsonl.gz")):
        filesystem.put_file(str(shard), f"lake/in/{shard.name}")
    endpoint = {"endpoint_url": server.endpoint_url}
    spec = write_spec(options, endpoint, root)
    chance = random.Random(options.seed)
    started = time.perf_counter()
    with open(root / "log", "w") as log:
        for kill in range(options.kills):
            n_parts = killed_run(
                spec, filesystem, "lake/out/_meta/manifests", chance.randint(1, 6), log
            )
            plan = result_of("plan", str(spec))
            print(
                f"kill {kill + 1}: {n_parts} parts written; plan: {plan['parts_done']} done, about "
                f"{plan['parts_todo']} to do"
            )
    last = result_of("run", str(spec))
    seconds = time.perf_counter() - started
    snapshot = last["snapshot"]
    print(
        f"finished: snapshot {snapshot['number']}, {snapshot['n_parts']} parts, "
        f"{snapshot['n_rows']} rows of {snapshot['n_records']} records, "
        f"{snapshot['n_rejects']} rejects, {snapshot['n_tokens']} tokens"
    )
    print(
        f"the last start embedded {last['run'].get('parts', 0)} parts; "
        f"{seconds:.0f} s with {options.kills} kills"
    )
    print(f"run again: embedded={result_of('run', str(spec))['embedded']}")
    uri = "s3://lake/out"
    reach = ["--storage-options", json.dumps(endpoint)]
    checks = result_of("verify", uri, *reach)["checks"]
    print(
        "verify: "
        + ", ".join(f"{check['name']} {'ok' if check['ok'] else 'FAILED'}" for check in checks)
    )
    hits = result_of("search", uri, "表計算の関数", "-k", "3", *reach)["hits"]
    print("search: " + "; ".join(f"{hit['score']:.3f} {hit['doc_id']}" for hit in hits))
    print("trace: ok=" + str(result_of("trace", uri, hits[0]["doc_id"], *reach)["ok"]))


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
    print(cpu_name())
    with s3_server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.env)
        server.make_bucket("lake")
        measure(options, server, Path(folder))


if __name__ == "__main__":
    main()
