"""Parts through the stages with stand-in models: `parts`, `nodes` and `embedder` of
`benchmarks.scale`, which describes them."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.process_figures import measured
from pipeline.driver.cluster import execution
from pipeline.driver.cluster.connection import connect
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.driver.showing import log_notes
from pipeline.embed.attention import pack
from pipeline.embed.engine import Engine
from pipeline.embed.stats import EngineStats
from pipeline.job.engine_options import EngineOptions
from pipeline.observe.progress import Progress
from pipeline.output.snapshots import load_manifests
from pipeline.workers import cells, guarded_steps, stages, steps
from pipeline.workers.clock import Clock
from pipeline.workers.shared_engine import SharedEngine
from pipeline.write.create import create_generation
from pipeline.write.part import generation_of
from tests.support import stand_in

DOCUMENT = "A document of the scale benchmark, number {}."


class SleepingEngine(stand_in.HashEngine):
    """An engine that takes `SCALE_BUSY_S` seconds and no CPU for a part."""

    def __init__(self) -> None:
        super().__init__()
        self.busy_s = float(os.environ.get("SCALE_BUSY_S", "0"))

    def embed(self, ids: Any, offsets: Any, stats: EngineStats) -> Any:
        time.sleep(self.busy_s)
        self.seen.clear()
        return super().embed(ids, offsets, stats)


class Prepare(stages.PrepareParts):
    has_budget = False

    def __init__(self, job: Any, run_id: str, totals: Any, *_: Any) -> None:
        self.job = job
        self.totals = totals
        self.loading = ()
        tokenizer = stand_in.ByteTokenizer()
        self.prepare = lambda part: steps.prepare_part(part, job, tokenizer, run_id)


class Embed(stages.EmbedParts):
    has_budget = False

    def __init__(self, job: Any, store: Any, *others: Any) -> None:
        self.job = job
        self.totals = others[2]
        self.engine = SharedEngine(lambda **_: SleepingEngine())
        create_generation(store, generation_of(job, self.engine.dim))
        self.clock = Clock()


def write_shards(folder: Path, n_shards: int, n_documents: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(n_shards):
        lines = (
            json.dumps({"id": f"{shard}-{n}", "text": DOCUMENT.format(n)})
            for n in range(n_documents)
        )
        (folder / f"{shard:06d}.jsonl").write_text("\n".join(lines) + "\n")


def planned(folder: Path, n_parts: int, **runtime: Any) -> tuple[Plan, Any]:
    """A plan of `n_parts` parts of a few small documents each, and its store."""
    write_shards(folder / "in", n_parts, 4)
    spec = stand_in.make_spec(
        folder / "in", folder / "out", runtime={"part_bytes": 1024, **runtime}
    )
    plan = make_plan(stand_in.job_of(spec), stand_in.store_of(spec))
    assert len(plan.todo) == n_parts
    return plan, stand_in.store_of(spec)


def execute(plan: Plan, store: Any, label: str) -> float:
    """Do a plan with the stand-in stages; returns seconds."""
    execution.PrepareParts = Prepare
    execution.EmbedParts = Embed
    started = time.perf_counter()
    with measured(label, len(plan.todo)):
        execution.execute(plan, store, Progress(), log_notes)
    assert len(load_manifests(store, plan.job.fingerprint)) == len(plan.todo)
    return time.perf_counter() - started


def measure_parts(folder: Path, options: argparse.Namespace) -> None:
    for n_parts in options.parts:
        # several tokenizers, because Ray Data takes about six parts a second from each; real parts
        # take seconds
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
        label = f"{n_parts} parts, {options.embedders} embedders on {options.nodes} nodes"
        seconds = execute(plan, store, label)
        ideal = options.embedders / options.busy_s
        print(f"ideal {ideal:.2f} parts/s, whole run {n_parts / seconds / ideal:.0%} of it")
        # by the stages' own clocks: manifests come in bursts when write tasks start late
        manifests = load_manifests(store, plan.job.fingerprint)
        idle_s = sum(manifest.seconds["embedders_starved"] for manifest in manifests)
        embed_s = sum(manifest.seconds["embed"] for manifest in manifests)
        sleep_s = n_parts * options.busy_s
        print(
            f"embedders waited {idle_s:.0f} s for parts and embedded for {embed_s:.0f} s, of which "
            f"they were to sleep {sleep_s:.0f} s: {sleep_s / (idle_s + embed_s):.0%} of their time "
            f"is sleep, {embed_s / (idle_s + embed_s):.0%} is embedding"
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


class FreeEngine(Engine):
    """The loop of the real engines around a forward pass that costs nothing, which leaves the work
    of the host."""

    name = "free"
    dim = 1024

    def __init__(self) -> None:
        super().__init__(EngineOptions("cls", normalize=True), 32_768)
        self._result = torch.rand(self.budget_tokens, self.dim)

    def _forward(self, ids: Any, offsets: Any, rows: Any) -> tuple[torch.Tensor, int]:
        return self._result[: rows.size], pack(ids, offsets, rows, "cpu").ids.shape[0]


def measure_embedder(folder: Path, options: argparse.Namespace) -> None:
    """Parts of texts of 100 tokens through the embedding stage, without Ray's own copy into its
    object store."""
    lines = (json.dumps({"id": str(n), "text": f"{n:099d}."}) + "\n" for n in range(options.texts))
    (folder / "in.jsonl").write_text("".join(lines))
    spec = stand_in.make_spec(folder / "in.jsonl", folder / "out", runtime={"part_bytes": "64MiB"})
    job = stand_in.job_of(spec)
    engine = FreeEngine()
    figures: list[EngineStats] = []

    def counted(*arguments: Any) -> Any:
        figures[:] = arguments[-1:]
        return guarded_steps.embed_texts(*arguments)

    plan = make_plan(job, stand_in.store_of(spec))
    for prepared in stand_in.prepared_parts(spec, plan):
        sent = cells.pack(prepared)
        for _ in range(options.rounds):
            started = time.perf_counter()
            part = cells.unpack(steps.PreparedPart, sent)
            embedded = steps.embed_part(part, engine, job, counted)
            cells.pack(embedded)
            seconds = time.perf_counter() - started
            (stats,) = figures
            idle_s = seconds - stats.seconds
            device_s = stats.n_tokens / options.tokens_per_s
            print(
                f"{len(embedded.vectors)} texts, {stats.n_tokens} tokens: device "
                f"{device_s:.2f} s; host meanwhile {stats.seconds:.2f} s, before and after "
                f"{idle_s:.3f} s: device busy at most {device_s / (device_s + idle_s):.1%}",
                flush=True,
            )
