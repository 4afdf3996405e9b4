"""Is peak memory flat in corpus size, and does Ray's object store never spill? The whole pipeline
with a tiny real model.

    python -m benchmarks.memory [--sizes 1,4,16] [--mb 40] [--part-bytes 2MiB] [--store-mib 100]
        [--embedders 2]

In: nothing. Each size is a job in a process of its own, with a Ray of its own whose object store
holds `--store-mib`: size times `--mb` of text in documents of 20,000 characters, of which the model
sees 64 tokens, so that blocks are large and computing is cheap. Twice a second the memory of all
its processes is read. Out: one JSON line per job: peaks in MiB of the private memory of the driver,
of the largest worker and of all workers together (RssAnon, which leaves out the object store), the
bytes of all blocks (rows and tokens, rows and vectors), and the bytes that the raylet spilled. Exit
code 1 if it spilled any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.process_figures import private_mib
from pipeline.driver.cluster.on_ray import run
from tests.support.model_dirs import bert_mean, sample_texts
from tests.support.outputs import make_spec
from tests.support.processes import below

CHARACTERS = 20_000
N_SHARDS = 4
STAGES = {"prepare": "PrepareParts", "embed": "EmbedParts", "write": "ray::Write"}


class Peaks(threading.Thread):
    """The peak memory of this process and its descendants, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib: dict[str, float] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            titles = below(os.getpid())
            workers = {pid: title for pid, title in titles.items() if title.startswith("ray::")}
            sizes = {pid: private_mib(pid) for pid in workers}
            self._note("driver", private_mib(os.getpid()))
            self._note("all workers", sum(sizes.values()))
            for stage, name in STAGES.items():
                self._note(
                    f"largest of {stage}",
                    max((sizes[p] for p in workers if name in workers[p]), default=0),
                )

    def _note(self, name: str, mib: float) -> None:
        self.mib[name] = max(self.mib.get(name, 0), round(mib))


def write_corpus(folder: Path, megabytes: int) -> int:
    text = " ".join(sample_texts("en"))
    text = (text * (1 + CHARACTERS // len(text)))[:CHARACTERS]
    n_documents = megabytes * 1_000_000 // CHARACTERS
    folder.mkdir()
    for shard in range(N_SHARDS):
        with (folder / f"{shard}.jsonl").open("w") as file:
            for number in range(shard, n_documents, N_SHARDS):
                document = {"id": str(number), "text": f"{number} {text}"}
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
    return n_documents


def measure(options: argparse.Namespace, size: int) -> bool:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        n_documents = write_corpus(root / "in", size * options.mb)
        spec = make_spec(
            str(root / "in"),
            str(root / "out"),
            bert_mean(root / "model"),
            input={"keep_columns": []},
            model={"max_tokens": 64},
            runtime={"part_bytes": options.part_bytes, "embedders": options.embedders},
        )
        address = ray.init(
            "local",  # a Ray of its own, even if another one runs on this machine
            num_cpus=options.cpus,
            object_store_memory=options.store_mib << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        ).address_info["gcs_address"]
        peaks = Peaks()
        peaks.start()
        result = run(spec)
        peaks.ended.set()
        peaks.join()
        store: Any = get_memory_info_reply(get_state_from_address(address)).store_stats
    assert result.snapshot.n_rows == n_documents
    print(
        json.dumps(
            {
                "size": size,
                "MB of text": size * options.mb,
                "parts": result.snapshot.n_parts,
                **peaks.mib,
                "MB of blocks": round(store.cumulative_created_bytes / 1e6),
                "spilled bytes": store.spilled_bytes_total,
                "bytes beside the store": store.object_store_bytes_fallback,
            }
        ),
        flush=True,
    )
    return not store.spilled_bytes_total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1,4,16")
    parser.add_argument("--mb", type=int, default=40, help="of text, at size 1")
    parser.add_argument("--part-bytes", default="2MiB")
    parser.add_argument("--store-mib", type=int, default=100)
    parser.add_argument("--embedders", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if len(sizes) == 1:
        return 0 if measure(options, sizes[0]) else 1
    # one process each, so that nothing that one job leaves in a driver counts for the next
    return max(
        subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--sizes", str(size)]
        ).returncode
        for size in sizes
    )


if __name__ == "__main__":
    raise SystemExit(main())
