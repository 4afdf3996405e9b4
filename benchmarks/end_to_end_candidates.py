"""The candidates of `benchmarks.end_to_end`, which describes them and starts each in a process of
its own, rivals in their own environment: Parquet shards in, Parquet files with vectors out, figures
as one JSON line."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.rivals.encoders import KINDS, Setting, sentence_transformer


def setting_of(options: argparse.Namespace) -> Setting:
    n_threads = (os.cpu_count() or 1) if options.shares == 1 else 1
    return Setting(options.model, options.exports, options.dtype, n_threads, options.device)


def read_texts(paths: list[Path]) -> tuple[list[str], list[str]]:
    rows = pa.concat_tables([pq.read_table(path) for path in paths])
    return rows["id"].to_pylist(), rows["text"].to_pylist()


def shards_of(options: argparse.Namespace) -> list[Path]:
    return sorted(options.shards.glob("*.parquet"))


def library(options: argparse.Namespace) -> None:
    """What a user writes by hand: all texts to one call, and Parquet from its vectors."""
    ids, texts = read_texts(shards_of(options)[options.share :: options.shares])
    vectors = KINDS[options.candidate](setting_of(options))(texts, options.batch_size)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    options.out.mkdir(exist_ok=True)
    table = pa.table({"doc_id": ids, "text": texts, "embedding": column})
    pq.write_table(table, options.out / f"{options.share}.parquet")


def recipe(options: argparse.Namespace) -> None:
    import ray

    class Embedder:
        def __init__(self) -> None:
            self.model = sentence_transformer(setting_of(options))

        def __call__(self, batch: dict) -> dict:
            batch["embedding"] = self.model.encode(list(batch["text"]), batch_size=32)
            return batch

    ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    data = ray.data.read_parquet(str(options.shards))
    pool = (
        {"concurrency": os.cpu_count(), "num_cpus": 0.4}
        if options.device == "cpu"
        else {"concurrency": 1, "num_gpus": 1}
    )
    data.map_batches(Embedder, batch_size=256, **pool).write_parquet(str(options.out))


def engine_of_one_process(
    options: argparse.Namespace,
    process: int,
    n_processes: int,
    ready: Barrier,
    seconds: Queue[float],
) -> None:
    from pipeline.embed import load_engine
    from pipeline.job.engine_options import EngineOptions
    from pipeline.job.model.store import resolve
    from pipeline.tokenize import load_tokenizer

    model = resolve(str(options.model))
    texts = read_texts(shards_of(options))[1][process::n_processes]
    tokens = load_tokenizer(model, max_tokens=model.max_tokens).encode(texts)
    loaded = load_engine(
        model,
        EngineOptions.of(model, dtype=options.dtype, device=options.device),
        threads=1 if options.device == "cpu" else None,
        is_tuned=True,
    )
    warm_up = tokens.offsets[:65]
    loaded.embed(tokens.ids[: warm_up[-1]], warm_up)
    ready.wait()
    started = time.perf_counter()
    loaded.embed(tokens.ids, tokens.offsets)
    seconds.put(time.perf_counter() - started)


def engine(options: argparse.Namespace) -> None:
    spawn = multiprocessing.get_context("spawn")
    n_processes = (os.cpu_count() or 1) if options.device == "cpu" else 1
    ready = spawn.Barrier(n_processes)
    seconds = spawn.Queue()
    processes = [
        spawn.Process(
            target=engine_of_one_process, args=(options, process, n_processes, ready, seconds)
        )
        for process in range(n_processes)
    ]
    for process in processes:
        process.start()
    print(json.dumps({"embed_s": max(seconds.get() for _ in processes)}))
    for process in processes:
        process.join()


def ours(options: argparse.Namespace) -> None:
    spec = {
        "name": "end-to-end",
        "input": {"uri": f"{options.shards}/*.parquet", "id_column": "id"},
        "model": {"path": str(options.model), "dtype": options.dtype},
        "output": {"uri": str(options.out)},
        "runtime": {"device": options.device, "part_bytes": options.part_bytes},
    }
    path = options.out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(spec))
    process = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(path), "--json"],
        check=True,
        capture_output=True,
    )
    figures = json.loads(process.stdout)["run"]
    names = ("n_tokens", "padding_share", "seconds", "parts")
    print(json.dumps({name: figures[name] for name in names}))


LIBRARIES = tuple(kind for kind in KINDS if kind != "ours")
CANDIDATES = {
    "ours": ours,
    "engine": engine,
    "recipe": recipe,
    **dict.fromkeys(LIBRARIES, library),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidate", choices=CANDIDATES)
    for path in ("--model", "--exports", "--shards", "--out"):
        parser.add_argument(path, type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=32, help="of libraries")
    parser.add_argument("--share", type=int, default=0, help="which of the shares of a library")
    parser.add_argument("--shares", type=int, default=1, help="processes that share the shards")
    parser.add_argument("--part-bytes", default="256KiB", help="of ours")
    options = parser.parse_args()
    CANDIDATES[options.candidate](options)


if __name__ == "__main__":
    main()
