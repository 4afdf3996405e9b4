"""Twenty nights of a changing corpus: is every night's snapshot that of a full rebuild, and does it
embed only new texts?

    python -m benchmarks.refresh --corpus DIR [--nights 20] [--documents 1200] [--ray-nights 2]
        [--seed 0] [--shards 10000]

In: jsonl.gz shards with `id`, `lang`, `text`. Each night the corpus changes
(`benchmarks.changing_corpus`) and the output is refreshed with a tiny random BERT. After EVERY
night the snapshot is compared with a rebuild in an empty output (ids, chunks, hashes exactly,
vectors by cosine), and the number of texts that the model saw with the number of distinct texts
that no night before had: otherwise it stops with an error. The first `--ray-nights` go through the
public `pipeline.run`, the others through the functions behind it, without Ray.

Then `--shards` small shards on a real S3 server, embedded once: how long a refresh takes to see
that there is nothing to do, and how many requests of which kind it makes. Out: two tables.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import pipeline
from benchmarks.changing_corpus import Corpus, read_documents
from benchmarks.machine import cpu_name
from pipeline.driver.planning.plan import make_plan
from pipeline.driver.planning.tally import row_counts
from pipeline.job.resolve import resolve
from pipeline.job.spec import JobSpec
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from tests.support.fault_proxy import FaultProxy
from tests.support.model_dirs import bert_mean
from tests.support.outputs import make_spec, run_without_ray
from tests.support.s3_server import s3_server

MIN_COSINE = 0.99999


def rows_of(uri: str) -> tuple[pa.Table, np.ndarray]:
    table = pipeline.open_dataset(uri).to_table(
        columns=["doc_id", "chunk", "text_sha256", "n_tokens", "embedding"]
    )
    table = table.sort_by(
        [("doc_id", "ascending"), ("chunk", "ascending"), ("text_sha256", "ascending")]
    )
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    return table.drop_columns(["embedding"]), vectors


def lowest_cosine(uri: str, rebuild_uri: str) -> float:
    """The lowest cosine of the vectors of two outputs, row by row. Raises SystemExit where ids,
    chunks, hashes or token counts differ."""
    table, vectors = rows_of(uri)
    expected, fresh = rows_of(rebuild_uri)
    if not table.equals(expected):
        raise SystemExit(
            f"{uri}: the rows are not those of a rebuild: {table.num_rows} and {expected.num_rows}"
        )
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(fresh, axis=1)
    return float(((vectors * fresh).sum(axis=1) / lengths).min())


def nights(options: argparse.Namespace, root: Path, model: Path) -> None:
    documents = read_documents(options.corpus)
    random.Random(options.seed).shuffle(documents)
    corpus = Corpus(root / "in", documents[: options.documents], options.seed)

    def spec_of(output: str, part_bytes: str) -> JobSpec:
        runtime = {"part_bytes": part_bytes, "max_delete_fraction": 0.5}
        return make_spec(str(root / "in"), str(root / output), model, runtime=runtime)

    spec = spec_of("out", "16KiB")
    store = Store(spec.output.uri)
    print(
        "night  by           rows  carried  reused  embedded  removed  new texts   run s  "
        "rebuild s  lowest cosine"
    )
    for night in range(options.nights + 1):
        if night:
            corpus.night()
        n_new = corpus.write()
        started = time.perf_counter()
        plan = make_plan(resolve(spec, "cpu"), store)
        by_ray = 0 < night <= options.ray_nights
        if by_ray:
            pipeline.run(spec)
        else:
            run_without_ray(spec)
        run_s = time.perf_counter() - started
        shutil.rmtree(root / "scratch", ignore_errors=True)
        started = time.perf_counter()
        run_without_ray(spec_of("scratch", "32MiB"))
        rebuild_s = time.perf_counter() - started
        live = live_parts(store, load_snapshot(store))
        counts = row_counts(store, plan.live, live)
        before = {part.part_id for part in plan.live}
        n_embedded = sum(part.n_embedded for part in live if part.part_id not in before)
        cosine = lowest_cosine(str(root / "out"), str(root / "scratch"))
        print(
            f"{night:5d}  {'pipeline.run' if by_ray else 'functions':12} "
            f"{sum(part.n_rows for part in live):4d} "
            f"{counts['carried']:8d} {counts['reused']:7d} {counts['embedded']:9d} "
            f"{counts['removed']:8d} {n_new:10d} "
            f"{run_s:7.1f} {rebuild_s:10.1f} {cosine:14.7f}",
            flush=True,
        )
        if n_embedded != n_new or cosine < MIN_COSINE:
            raise SystemExit(
                f"night {night}: the model saw {n_embedded} texts, {n_new} are new; "
                f"lowest cosine {cosine}"
            )


def kind_of(target: str) -> str:
    """The kind of object that a request asks for."""
    return "list" if "list-type" in target else "input" if "/lake/in/" in target else "output"


def unchanged(options: argparse.Namespace, root: Path, model: Path) -> None:
    with s3_server() as server, FaultProxy(server.endpoint_url) as proxy:
        os.environ.update(server.env)
        server.make_bucket("lake")
        direct = {"storage_options": {"endpoint_url": server.endpoint_url}}
        filesystem = server.filesystem()
        for start in range(0, options.shards, 500):
            objects = {
                f"lake/in/{n:06d}.jsonl": json.dumps(
                    {"id": str(n), "text": f"document number {n}", "lang": "en"}
                ).encode()
                for n in range(start, min(start + 500, options.shards))
            }
            filesystem.pipe(objects)
        runtime = {"part_bytes": "64KiB"}
        started = time.perf_counter()
        run_without_ray(
            make_spec(
                "s3://lake/in", "s3://lake/out", model, input=direct, output=direct, runtime=runtime
            )
        )
        seconds = time.perf_counter() - started
        print(f"\n{options.shards} shards of one document embedded once in {seconds:.0f} s")
        watched = {"storage_options": {"endpoint_url": proxy.endpoint_url}}
        spec = make_spec(
            "s3://lake/in", "s3://lake/out", model, input=watched, output=watched, runtime=runtime
        )
        for attempt in range(3):
            n_earlier = len(proxy.log)
            started = time.perf_counter()
            result = pipeline.run(spec)
            seconds = time.perf_counter() - started
            requests = proxy.log[n_earlier:]
            kinds = collections.Counter(
                f"{request.method} {kind_of(request.target)}" for request in requests
            )
            print(
                f"refresh {attempt + 1}: embedded={result.embedded}, {seconds:.1f} s, "
                f"{len(requests)} requests: {dict(kinds)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path(__file__).parent.parent / "jobs" / "sample"
    )
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--ray-nights", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=10_000)
    options = parser.parse_args()
    print(cpu_name())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = bert_mean(root / "model")
        if options.nights:
            nights(options, root, model)
        if options.shards:
            unchanged(options, root, model)


if __name__ == "__main__":
    main()
