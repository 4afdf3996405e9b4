"""Where does the pipeline end when the input is large? The model is a timed stand-in; everything
else is the real code.

    python -m benchmarks.scale plan --shards 1000000
        listing, cutting and pinning a plan: time and memory of the driver
    python -m benchmarks.scale commit --parts 100000
        commit, resume and the next plan over that many manifests
    python -m benchmarks.scale parts --parts 10000
        parts through Ray on this machine: time and driver memory per part
    python -m benchmarks.scale nodes --nodes 8 --embedders 64 --busy-s 2
        share of the throughput that the stand-ins allow
    python -m benchmarks.scale embedder --tokens-per-s 1000000
        how long a GPU of that speed would wait for its own process

In: nothing. Out: one line per measurement. Shards of `plan` are entries of an in-memory listing (a
real store adds its requests: one per thousand names); manifests of `commit` are real objects on the
local disk, copies of one real manifest under new ids. The stand-in engine sleeps, so that many of
them fit on few cores; rows, hashes, Parquet files and manifests are written as in a real run.
`nodes` starts raylets as nodes on this machine.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from benchmarks.machine import cpu_name
from benchmarks.process_figures import measured
from benchmarks.scale_stages import measure_embedder, measure_nodes, measure_parts, write_shards
from pipeline.driver.planning.plan import make_plan
from pipeline.output.run_folder import plan_table
from pipeline.output.snapshots import commit_snapshot, live_parts, load_manifests, load_snapshot
from pipeline.storage.layout import manifest as manifest_path
from pipeline.storage.lineage import Manifest, content_hash
from tests.support import stand_in


def measure_plan(folder: Path, options: argparse.Namespace) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(options.shards):
        # entries without bytes: a million MemoryFiles would hold a million buffers, and planning
        # reads none of them
        path = f"/in/{number % 1000:03d}/{number:07d}.jsonl.zst"
        memory.store[path] = _Entry(memory, number)
    spec = stand_in.make_spec(
        "memory://in", folder / "out", runtime={"part_bytes": options.part_bytes}
    )
    job = stand_in.job_of(spec)
    store = stand_in.store_of(spec)
    print(f"{options.shards} shards of 64 MiB; this process also holds the listing")
    with measured("list, cut and name splits", options.shards):
        plan = make_plan(job, store)
    with measured(f"plan.parquet of {len(plan.todo)} splits", len(plan.todo)):
        data = plan_table([todo.split for todo in plan.todo])
    print(f"plan.parquet {len(data) / 2**20:.1f} MiB, {len(plan.shards)} shards")
    with measured("rows of the dataset", len(plan.todo)):
        rows = [todo.to_json() for todo in plan.todo]
    print(f"{sum(map(len, rows)) / len(rows):.0f} bytes per row")


class _Entry:
    """A file as far as the listing of fsspec's memory file system needs it."""

    def __init__(self, fs: Any, number: int) -> None:
        self.size = 64 << 20
        self.modified = datetime.datetime(2026, 11, 23)
        self.created = self.modified
        self.fs = fs
        self.number = number

    def getbuffer(self) -> memoryview:
        return memoryview(b"")


def measure_commit(folder: Path, options: argparse.Namespace) -> None:
    n_parts = options.parts[-1]
    template, store, spec = one_manifest(folder)
    job = stand_in.job_of(spec)
    for number in range(n_parts):
        # together the spans tile one shard, as a commit demands
        stop = number + 1 if number + 1 < n_parts else None
        span = template.split.spans[0]
        split = template.split.model_copy(
            update={"spans": (span.model_copy(update={"start": number, "stop": stop}),)}
        )
        part_id = content_hash([split.split_id, 0])
        file = template.data_files[0].model_copy(
            update={"path": f"data/part-{part_id}.parquet", "sha256": f"{number:064x}"}
        )
        manifest = template.model_copy(
            update={"part_id": part_id, "split": split, "data_files": (file,), "last": True}
        )
        path = Path(store.path(manifest_path(job.fingerprint, part_id)))
        path.write_bytes(manifest.to_json())  # not put_if_absent, whose fsync is not measured here
    with measured(f"resume: read {n_parts} manifests one by one", n_parts):
        manifests = load_manifests(store, job.fingerprint)
    with measured("commit of a snapshot over them", n_parts):
        snapshot = commit_snapshot(
            store,
            manifests,
            run_id="scale",
            fingerprint=job.fingerprint,
            parent=None,
            complete=True,
        )
    del manifests
    size_bytes = Path(store.path(snapshot.file_list)).stat().st_size
    with measured(
        f"next plan: file list of {size_bytes / 2**20:.1f} MiB, no manifest read", n_parts
    ):
        live = live_parts(store, load_snapshot(store))
        load_manifests(store, job.fingerprint, live)


def one_manifest(folder: Path) -> tuple[Manifest, Any, Any]:
    """The manifest of a real part, which is deleted from the store: only copies are left."""
    write_shards(folder / "in", 1, 3)
    spec = stand_in.make_spec(folder / "in", folder / "out")
    stand_in.run(spec)
    store = stand_in.store_of(spec)
    (path,) = store.list("_meta/manifests")
    manifest = Manifest.from_json(store.read(path), path)
    for name in (path, *store.list("_meta/snapshots")):
        store.delete(name)
    return manifest, store, spec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=["plan", "commit", "parts", "nodes", "embedder"])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument(
        "--parts", type=int, nargs="+", default=[2_500, 10_000], help="`commit` takes the last one"
    )
    parser.add_argument("--part-bytes", default="64MiB")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--embedders", type=int, default=64)
    parser.add_argument(
        "--rounds", type=int, default=10, help="parts per embedder; repeats of `embedder`"
    )
    parser.add_argument("--texts", type=int, default=65_536, help="texts of `embedder`")
    parser.add_argument(
        "--tokens-per-s", type=float, default=1e6, help="speed of the device of `embedder`"
    )
    parser.add_argument(
        "--busy-s", type=float, default=2.0, help="seconds that the stand-in takes for a part"
    )
    options = parser.parse_args()
    print(cpu_name())
    measurements = {
        "plan": measure_plan,
        "commit": measure_commit,
        "parts": measure_parts,
        "nodes": measure_nodes,
        "embedder": measure_embedder,
    }
    with tempfile.TemporaryDirectory() as name:
        measurements[options.measurement](Path(name), options)


if __name__ == "__main__":
    main()
