"""Where does the pipeline end when the input is large? The model is a timed stand-in; everything
else is the real code.

    python -m benchmarks.scale plan --shards 1000000        listing, cutting and pinning a plan: time and memory of the driver
    python -m benchmarks.scale commit --parts 100000        commit, resume and the next plan over that many manifests
    python -m benchmarks.scale parts --parts 10000          parts through Ray on this machine: time and driver memory a part
    python -m benchmarks.scale nodes --nodes 8 --embedders 64 --busy-s 2   share of the throughput that the stand-ins allow
    python -m benchmarks.scale embedder --tokens-per-s 1000000   how long a GPU of that speed would wait for its own process

In: nothing. Out: one line a measurement. Shards of `plan` are entries of an in-memory listing (a
real store adds its requests: one a thousand names); manifests of `commit` are real objects on the
local disk, copies of one real manifest under new ids. The stand-in engine sleeps, so that many of
them fit on few cores; rows, hashes, Parquet files and manifests are written as ever. `nodes` starts
raylets as nodes on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import torch

from pipeline.driver import on_ray
from pipeline.driver.cluster import connect
from pipeline.driver.plan import Plan, make_plan
from pipeline.driver.watch import log_notes
from pipeline.embed.attention import pack
from pipeline.embed.buckets import packed_buckets
from pipeline.embed.engine import Engine, EngineStats
from pipeline.job.engine_options import EngineOptions
from pipeline.output.run_folder import plan_table
from pipeline.output.snapshots import commit_snapshot, live_parts, load_manifests, load_snapshot
from pipeline.storage.layout import manifest as manifest_path
from pipeline.storage.lineage import Manifest, content_hash
from pipeline.workers import cells, guarded_steps, stages, steps
from pipeline.workers.metrics import Progress
from pipeline.write.create import create_generation
from pipeline.write.part import generation_of
from tests.support import stand_in

DOCUMENT = "A document of the scale benchmark, number {}."


def rss_mib() -> float:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@contextlib.contextmanager
def measured(what: str, n: int) -> Iterator[None]:
    before, started, cpu = rss_mib(), time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{what}: {seconds:.1f} s, {cpu:.1f} s of CPU ({cpu / n * 1e6:.0f} µs each), "
        f"memory {before:.0f} → {rss_mib():.0f} MiB, peak {peak:.0f}",
        flush=True,
    )


def measure_plan(folder: Path, options: argparse.Namespace) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(options.shards):
        # without bytes: a million MemoryFiles hold a million buffers, and no byte of them is read
        # while planning
        memory.store[f"/in/{number % 1000:03d}/{number:07d}.jsonl.zst"] = _Entry(memory, number)
    spec = stand_in.make_spec(
        "memory://in", folder / "out", runtime={"part_bytes": options.part_bytes}
    )
    job, store = stand_in.job_of(spec), stand_in.store_of(spec)
    print(f"{options.shards} shards of 64 MiB, listing held by this process as well")
    with measured("list, cut and name splits", options.shards):
        plan = make_plan(job, store)
    with measured(f"plan.parquet of {len(plan.todo)} splits", len(plan.todo)):
        data = plan_table([todo.split for todo in plan.todo])
    print(f"plan.parquet {len(data) / 2**20:.1f} MiB, {len(plan.shards)} shards")
    with measured("rows of the dataset", len(plan.todo)):
        rows = [todo.to_json() for todo in plan.todo]
    print(f"{sum(map(len, rows)) / len(rows):.0f} bytes a row")


class _Entry:
    """What the listing of fsspec's memory file system asks of a file."""

    def __init__(self, fs: Any, number: int) -> None:
        self.size, self.modified = 64 << 20, datetime.datetime(2026, 11, 23)
        self.created, self.fs, self.number = self.modified, fs, number

    def getbuffer(self) -> memoryview:
        return memoryview(b"")


def measure_commit(folder: Path, options: argparse.Namespace) -> None:
    n_parts = options.parts[-1]
    template, store, spec = one_manifest(folder)
    job = stand_in.job_of(spec)
    for number in range(n_parts):
        span = template.split.spans[0]
        split = template.split.model_copy(
            update={"spans": (span.model_copy(update={"start": number, "stop": number + 1}),)}
        )
        part_id = content_hash([split.split_id, 0])
        file = template.data_files[0].model_copy(
            update={"path": f"data/part-{part_id}.parquet", "sha256": f"{number:064x}"}
        )
        manifest = template.model_copy(
            update={"part_id": part_id, "split": split, "data_files": (file,), "last": True}
        )
        path = Path(store.path(manifest_path(job.fingerprint, part_id)))
        path.write_bytes(manifest.to_json())  # not put_if_absent: its fsync is not what is measured
    with measured(f"resume: read {n_parts} manifests one by one", n_parts):
        found = load_manifests(store, job.fingerprint)
    with measured("commit of a snapshot over them", n_parts):
        snapshot = commit_snapshot(
            store, found, run_id="scale", fingerprint=job.fingerprint, parent=None, complete=True
        )
    del found
    size = Path(store.path(snapshot.file_list)).stat().st_size
    with measured(f"next plan: file list of {size / 2**20:.1f} MiB, no manifest read", n_parts):
        live = live_parts(store, load_snapshot(store))
        load_manifests(store, job.fingerprint, live)


def one_manifest(folder: Path) -> tuple[Manifest, Any, Any]:
    """A real part, published; its manifest is taken away so that only copies are left."""
    write_shards(folder / "in", 1, 3)
    spec = stand_in.make_spec(folder / "in", folder / "out")
    stand_in.run(spec)
    store = stand_in.store_of(spec)
    (path,) = store.list("_meta/manifests")
    manifest = Manifest.from_json(store.read(path), path)
    for name in (path, *store.list("_meta/snapshots")):
        store.delete(name)
    return manifest, store, spec


class SleepingEngine(stand_in.HashEngine):
    """Takes `SCALE_BUSY_S` seconds for a part and no CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.busy_s = float(os.environ.get("SCALE_BUSY_S", "0"))

    def embed(self, ids: Any, offsets: Any) -> Any:
        time.sleep(self.busy_s)
        self.seen.clear()
        return super().embed(ids, offsets)


class Prepare(stages.PrepareParts):
    def __init__(self, job: Any, run_id: str, totals: Any, *_: Any) -> None:
        self.job, self.totals, self.loading = job, totals, ()
        tokenizer = stand_in.ByteTokenizer()
        self.prepare = lambda part: steps.prepare_part(part, job, tokenizer, run_id)


class Embed(stages.EmbedParts):
    def __init__(self, job: Any, store: Any, _: int, threads: int | None, totals: Any) -> None:
        self.job, self.totals, self.loading, self.engine = job, totals, (), SleepingEngine()
        create_generation(store, generation_of(job, self.engine.dim))
        self.idle_since = time.perf_counter()


def write_shards(folder: Path, n_shards: int, n_documents: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(n_shards):
        lines = (
            json.dumps({"id": f"{shard}-{n}", "text": DOCUMENT.format(n)})
            for n in range(n_documents)
        )
        (folder / f"{shard:06d}.jsonl").write_text("\n".join(lines) + "\n")


def planned(folder: Path, n_parts: int, **runtime: Any) -> tuple[Plan, Any]:
    """A plan of `n_parts` parts, a few small documents each."""
    write_shards(folder / "in", n_parts, 4)
    spec = stand_in.make_spec(
        folder / "in", folder / "out", runtime={"part_bytes": 1024, **runtime}
    )
    plan = make_plan(stand_in.job_of(spec), stand_in.store_of(spec))
    assert len(plan.todo) == n_parts
    return plan, stand_in.store_of(spec)


def execute(plan: Plan, store: Any, what: str) -> float:
    on_ray.PrepareParts = Prepare
    on_ray.EmbedParts = Embed
    progress, started = Progress(), time.perf_counter()
    with measured(what, len(plan.todo)):
        on_ray.execute(plan, store, progress, log_notes)
    assert len(load_manifests(store, plan.job.fingerprint)) == len(plan.todo)
    return time.perf_counter() - started


def measure_parts(folder: Path, options: argparse.Namespace) -> None:
    for n_parts in options.parts:
        # several tokenizers: Ray Data takes some six parts a second from each, and real parts take
        # seconds
        plan, store = planned(folder / str(n_parts), n_parts, tokenizers=8)
        connect(None)
        execute(plan, store, f"{n_parts} parts through Ray")


def measure_nodes(folder: Path, options: argparse.Namespace) -> None:
    import ray
    from ray.cluster_utils import Cluster

    os.environ["SCALE_BUSY_S"] = str(options.busy_s)
    n_parts = options.embedders * options.rounds
    plan, store = planned(folder, n_parts, embedders=options.embedders, tokenizers=options.nodes)
    cluster = Cluster()
    try:
        for _ in range(options.nodes):
            cluster.add_node(
                num_cpus=math.ceil(options.embedders / options.nodes), object_store_memory=100 << 20
            )
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        seconds = execute(
            plan, store, f"{n_parts} parts, {options.embedders} embedders on {options.nodes} nodes"
        )
        ideal = options.embedders / options.busy_s
        print(f"ideal {ideal:.2f} parts/s, whole run {n_parts / seconds / ideal:.0%} of it")
        # by the stages' own clocks: manifests come in bursts when write tasks start late
        done = load_manifests(store, plan.job.fingerprint)
        waited, worked = (
            sum(part.seconds[name] for part in done) for name in ("embedders_starved", "embed")
        )
        print(
            f"embedders waited {waited:.0f} s for parts and worked {worked:.0f} s (asked to sleep "
            f"{n_parts * options.busy_s:.0f}): {n_parts * options.busy_s / (waited + worked):.0%} of their time, "
            f"{worked / (waited + worked):.0%} where slow sleepers count as work"
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


class FreeEngine(Engine):
    """The loop of the real engines round a forward that costs nothing: what is left is the work of
    the host."""

    name, dim = "free", 1024

    def __init__(self) -> None:
        super().__init__(EngineOptions("cls", normalize=True), 32_768)
        self._result = torch.rand(self.budget_tokens, self.dim)

    def _buckets(self, n_tokens: Any, budget_tokens: Any) -> Iterator[Any]:
        return packed_buckets(n_tokens, budget_tokens)

    def _forward(self, ids: Any, offsets: Any, rows: Any) -> torch.Tensor:
        self.stats.n_padded_tokens += pack(ids, offsets, rows, "cpu").ids.shape[0]
        return self._result[: rows.size]


def measure_embedder(folder: Path, options: argparse.Namespace) -> None:
    """Parts of texts of 100 tokens through the embedding stage, without Ray's own copy into its
    object store."""
    lines = (json.dumps({"id": str(n), "text": f"{n:099d}."}) + "\n" for n in range(options.texts))
    (folder / "in.jsonl").write_text("".join(lines))
    spec = stand_in.make_spec(folder / "in.jsonl", folder / "out", runtime={"part_bytes": "64MiB"})
    job, engine = stand_in.job_of(spec), FreeEngine()
    for prepared in stand_in.prepared_parts(spec, make_plan(job, stand_in.store_of(spec))):
        sent = cells.pack(prepared)
        for _ in range(options.rounds):
            engine.stats, started = EngineStats(), time.perf_counter()
            part = cells.unpack(steps.PreparedPart, sent)
            embedded = steps.embed_part(part, engine, job, guarded_steps.embed_texts)
            cells.pack(embedded)
            seconds = time.perf_counter() - started
            around, device = (
                seconds - engine.stats.seconds,
                engine.stats.n_tokens / options.tokens_per_s,
            )
            print(
                f"{len(embedded.vectors)} texts, {engine.stats.n_tokens} tokens: device {device:.2f} s; host beside it "
                f"{engine.stats.seconds:.2f} s, before and after it {around:.3f} s: "
                f"busy at most {device / (device + around):.1%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["plan", "commit", "parts", "nodes", "embedder"])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument(
        "--parts", type=int, nargs="+", default=[2_500, 10_000], help="`commit` takes the last one"
    )
    parser.add_argument("--part-bytes", default="64MiB")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--embedders", type=int, default=64)
    parser.add_argument(
        "--rounds", type=int, default=10, help="parts an embedder; repeats of `embedder`"
    )
    parser.add_argument("--texts", type=int, default=65_536, help="texts of `embedder`")
    parser.add_argument(
        "--tokens-per-s", type=float, default=1e6, help="speed of the device of `embedder`"
    )
    parser.add_argument(
        "--busy-s", type=float, default=2.0, help="seconds the stand-in takes for a part"
    )
    options = parser.parse_args()
    work = {
        "plan": measure_plan,
        "commit": measure_commit,
        "parts": measure_parts,
        "nodes": measure_nodes,
        "embedder": measure_embedder,
    }
    with tempfile.TemporaryDirectory() as name:
        work[options.what](Path(name), options)


if __name__ == "__main__":
    main()
