"""Does the whole job, start-up, reading and writing included, beat what a user would write by hand?

    python -m benchmarks.end_to_end --corpus DIR [--texts 8000] [--rounds 1]
    python -m benchmarks.end_to_end --corpus DIR --device cuda --large --texts 600000 --part-bytes 4MiB
        --candidates ours:bfloat16,engine:bfloat16,encode:bfloat16                          for a GPU (not run on one yet)

Each candidate is a process of its own over the same Parquet shards, the same BERT directory (6
layers, hidden 384, or with --large those of sup-simcse-ja-large; random weights, MeCab +
WordPiece), all cores, and ends with vectors in Parquet; float32, or as `ours:bfloat16`:

    ours     corpus-embed run
    encode   SentenceTransformer.encode over all texts at its best batch size (found first, not timed), then Parquet
    engine   the packed engine alone from ids that are ready, without loading: one single-threaded process a core, or one a GPU
    recipe   Ray Data map_batches with SentenceTransformer.encode (batch 32), then write_parquet

Out: one table of wall seconds, texts/s, tokens/s and ratio, and the lowest cosine of ours to
encode's vectors.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

N_SHARDS = 8
CANDIDATES = ("ours", "engine", "encode", "recipe")
SMALL = {"hidden": 384, "layers": 6, "heads": 12, "intermediate": 1536, "vocab_size": 8_000}
LARGE = {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096}


def write_shards(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for shard in range(N_SHARDS):
        ids = list(range(shard, len(texts), N_SHARDS))
        rows = pa.table({"id": [str(i) for i in ids], "text": [texts[i] for i in ids]})
        pq.write_table(rows, folder / f"{shard}.parquet", row_group_size=4096)


def read_texts(folder: Path) -> tuple[list[str], list[str]]:
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    return rows["id"].to_pylist(), rows["text"].to_pylist()


def sentence_transformer(model: Path, device: str, dtype: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(model), device=device, model_kwargs={"dtype": getattr(torch, dtype)}
    )


def best_batch(model: Path, texts: list[str], device: str, dtype: str) -> int:
    loaded, seconds = sentence_transformer(model, device, dtype), {}
    sizes, n_texts = ((8, 16, 32, 64), 400) if device == "cpu" else ((64, 128, 256, 512), 8192)
    loaded.encode(texts[:64], batch_size=16)
    for batch in sizes:
        started = time.perf_counter()
        loaded.encode(texts[:n_texts], batch_size=batch)
        seconds[batch] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__)


def encode(options: argparse.Namespace) -> None:
    ids, texts = read_texts(options.shards)
    vectors = sentence_transformer(options.model, options.device, options.dtype).encode(
        texts, batch_size=options.batch
    )
    out = options.out
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    out.mkdir()
    pq.write_table(
        pa.table({"doc_id": ids, "text": texts, "embedding": column}), out / "vectors.parquet"
    )


def recipe(options: argparse.Namespace) -> None:
    import ray

    class Embedder:
        def __init__(self) -> None:
            self.model = sentence_transformer(options.model, options.device, options.dtype)

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
    from pipeline.job.model_store import resolve
    from pipeline.tokenize import load_tokenizer

    found = resolve(str(options.model))
    texts = read_texts(options.shards)[1][process::n_processes]
    tokens = load_tokenizer(found, max_tokens=found.max_tokens).encode(texts)
    loaded = load_engine(
        found,
        EngineOptions.of(found, dtype=options.dtype, device=options.device),
        threads=1 if options.device == "cpu" else None,
    )
    loaded.embed(tokens.ids[: tokens.offsets[64]], tokens.offsets[:65])  # warm
    ready.wait()
    started = time.perf_counter()
    loaded.embed(tokens.ids, tokens.offsets)
    seconds.put(time.perf_counter() - started)


def engine(options: argparse.Namespace) -> None:
    spawn = multiprocessing.get_context("spawn")
    n = (os.cpu_count() or 1) if options.device == "cpu" else 1
    ready, seconds = spawn.Barrier(n), spawn.Queue()
    processes = [
        spawn.Process(target=engine_of_one_process, args=(options, i, n, ready, seconds))
        for i in range(n)
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
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(path), "--json"],
        check=True,
        capture_output=True,
    )
    figures = json.loads(done.stdout)["run"]
    print(
        json.dumps(
            {name: figures[name] for name in ("n_tokens", "padding_share", "seconds", "parts")}
        )
    )


def vectors_of(out: Path) -> dict[str, np.ndarray]:
    folder = out / "data" if (out / "data").is_dir() else out
    table = ds.dataset(folder, format="parquet").to_table(columns=["doc_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return dict(zip(table["doc_id"].to_pylist(), flat.reshape(table.num_rows, -1), strict=True))


def lowest_cosine(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    left, right = np.stack([a[key] for key in a]), np.stack([b[key] for key in a])
    return float(
        ((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min()
    )


def compare(options: argparse.Namespace) -> None:
    from benchmarks.engine import paragraphs
    from tests.support.model_dirs import bert_japanese

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        texts = paragraphs(options.corpus, options.texts, options.chars)
        model = bert_japanese(root / "model", **(SMALL | (LARGE if options.large else {})))
        write_shards(root / "in", texts)
        seconds: dict[str, list[float]] = {
            candidate: [] for candidate in options.candidates.split(",")
        }
        baseline = next((candidate for candidate in seconds if candidate.startswith("encode")), "")
        batch = best_batch(model, texts, options.device, baseline.partition(":")[2] or "float32")
        outs: dict[str, Path] = {}
        n_tokens = 0
        for number in range(options.rounds):
            for candidate in seconds:
                kind, _, dtype = candidate.partition(":")
                outs[candidate] = root / f"{candidate.replace(':', '-')}-{number}"
                given = {
                    "candidate": kind,
                    "dtype": dtype or "float32",
                    "model": model,
                    "shards": root / "in",
                    "out": outs[candidate],
                    "batch": batch,
                    "device": options.device,
                    "part-bytes": options.part_bytes,
                }
                command = [sys.executable, "-m", "benchmarks.end_to_end"]
                command += [
                    text for name, value in given.items() for text in (f"--{name}", str(value))
                ]
                started = time.perf_counter()
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                wall = time.perf_counter() - started
                if done.returncode:
                    raise SystemExit(f"{candidate} failed:\n{done.stderr[-4000:]}")
                told = json.loads(done.stdout or "{}")
                seconds[candidate].append(told["embed_s"] if kind == "engine" else wall)
                n_tokens = max(n_tokens, told.get("n_tokens", 0))
                print(
                    f"{candidate}: {seconds[candidate][-1]:.1f} s {done.stdout.strip()}", flush=True
                )
        base = statistics.median(seconds[baseline]) if baseline else float("nan")
        print(
            f"\n{len(texts)} texts, {n_tokens} tokens, {options.device}, {os.cpu_count()} cores, encode at batch {batch}"
        )
        for candidate, times in seconds.items():
            median = statistics.median(times)
            spread = f"{min(times):.1f}-{max(times):.1f}"
            print(
                f"{candidate:16} {median:7.1f} s ({spread})  {len(texts) / median:6.1f} texts/s  "
                f"{n_tokens / median:9,.0f} tokens/s  {base / median:.2f}x encode"
            )
        for candidate in outs if baseline else ():
            if candidate.startswith("ours"):
                cosine = lowest_cosine(vectors_of(outs[candidate]), vectors_of(outs[baseline]))
                print(f"lowest cosine of {candidate} to {baseline}: {cosine:.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path(__file__).parent.parent / "jobs" / "sample"
    )
    parser.add_argument("--texts", type=int, default=8000)
    parser.add_argument("--chars", type=int, default=100, help="characters of a text, at least")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--part-bytes", default="256KiB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--large", action="store_true", help="the sizes of sup-simcse-ja-large")
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    for path in ("--model", "--shards", "--out"):
        parser.add_argument(path, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    {"ours": ours, "engine": engine, "encode": encode, "recipe": recipe}.get(
        options.candidate, compare
    )(options)


if __name__ == "__main__":
    main()
