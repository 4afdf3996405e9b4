"""Does the whole job, start-up, reading and writing included, beat what a user would write by hand?

    python -m benchmarks.end_to_end --corpus DIR [--texts 8000] [--rounds 1]

Each candidate is a process of its own over the same JSONL shards, the same BERT directory (6 layers, hidden 384, random
weights, MeCab + WordPiece), all cores, and ends with vectors in Parquet; float32, or for ours and engine as `ours:bfloat16`:

    ours     corpus-embed run
    encode   SentenceTransformer.encode over all texts at its best batch size (found first, not timed), then Parquet
    engine   the packed engine alone: a one-thread process a core, from token ids that are ready, loading not counted
    recipe   Ray Data map_batches with SentenceTransformer.encode (batch 32), then write_parquet

Out: one table of wall seconds, texts/s and ratio, and the lowest cosine of ours to encode's vectors.
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

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

N_SHARDS = 8
CANDIDATES = ("ours", "engine", "encode", "recipe")


def write_shards(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for shard in range(N_SHARDS):
        lines = [
            json.dumps({"id": str(i), "text": texts[i]}, ensure_ascii=False) for i in range(shard, len(texts), N_SHARDS)
        ]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_texts(folder: Path) -> tuple[list[str], list[str]]:
    rows = [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    return [row["id"] for row in rows], [row["text"] for row in rows]


def best_batch(model: Path, texts: list[str]) -> int:
    from sentence_transformers import SentenceTransformer

    loaded, seconds = SentenceTransformer(str(model), device="cpu"), {}
    loaded.encode(texts[:64], batch_size=16)
    for batch in (8, 16, 32, 64):
        started = time.perf_counter()
        loaded.encode(texts[:400], batch_size=batch)
        seconds[batch] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__)


def encode(shards: Path, model: Path, out: Path, batch: int) -> None:
    from sentence_transformers import SentenceTransformer

    ids, texts = read_texts(shards)
    vectors = SentenceTransformer(str(model), device="cpu").encode(texts, batch_size=batch)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    out.mkdir()
    pq.write_table(pa.table({"doc_id": ids, "text": texts, "embedding": column}), out / "vectors.parquet")


def recipe(shards: Path, model: Path, out: Path) -> None:
    import ray

    class Embedder:
        def __init__(self) -> None:
            from sentence_transformers import SentenceTransformer

            self.model = SentenceTransformer(str(model), device="cpu")

        def __call__(self, batch: dict) -> dict:
            batch["embedding"] = self.model.encode(list(batch["text"]), batch_size=32)
            return batch

    ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    data = ray.data.read_json(str(shards), lines=True)
    data.map_batches(Embedder, concurrency=os.cpu_count(), num_cpus=0.4, batch_size=256).write_parquet(str(out))


def engine_of_one_core(shards: Path, model: Path, dtype: str, core: int, ready: Barrier, seconds: Queue[float]) -> None:
    from pipeline.embed import load_engine
    from pipeline.model_store import resolve
    from pipeline.tokenize import load_tokenizer

    found = resolve(str(model))
    texts = read_texts(shards)[1][core :: os.cpu_count()]
    tokens = load_tokenizer(found, max_tokens=found.max_tokens).encode(texts)
    loaded = load_engine(found, dtype=dtype, threads=1)
    loaded.embed(tokens.ids[: tokens.offsets[64]], tokens.offsets[:65])  # warm
    ready.wait()
    started = time.perf_counter()
    loaded.embed(tokens.ids, tokens.offsets)
    seconds.put(time.perf_counter() - started)


def engine(shards: Path, model: Path, dtype: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    ready, seconds = spawn.Barrier(cores), spawn.Queue()
    processes = [
        spawn.Process(target=engine_of_one_core, args=(shards, model, dtype, i, ready, seconds)) for i in range(cores)
    ]
    for process in processes:
        process.start()
    print(json.dumps({"embed_s": max(seconds.get() for _ in processes)}))
    for process in processes:
        process.join()


def ours(shards: Path, model: Path, out: Path, dtype: str, part_bytes: str) -> None:
    spec = {
        "name": "end-to-end",
        "input": {"uri": f"{shards}/*.jsonl", "id_column": "id"},
        "model": {"path": str(model), "dtype": dtype},
        "output": {"uri": str(out)},
        "runtime": {"device": "cpu", "part_bytes": part_bytes},
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(spec))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(path), "--json"], check=True, capture_output=True
    )
    figures = json.loads(done.stdout)["run"]
    print(json.dumps({name: figures[name] for name in ("n_tokens", "padding_share", "seconds", "parts")}))


def vectors_of(out: Path) -> dict[str, np.ndarray]:
    folder = out / "data" if (out / "data").is_dir() else out
    table = ds.dataset(folder, format="parquet").to_table(columns=["doc_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return dict(zip(table["doc_id"].to_pylist(), flat.reshape(table.num_rows, -1), strict=True))


def lowest_cosine(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    left, right = np.stack([a[key] for key in a]), np.stack([b[key] for key in a])
    return float(((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def compare(options: argparse.Namespace) -> None:
    from benchmarks.engine import paragraphs
    from tests.model_dirs import bert_japanese

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        texts = paragraphs(options.corpus, options.texts, options.chars)
        model = bert_japanese(root / "model", hidden=384, layers=6, heads=12, intermediate=1536, vocab_size=8000)
        write_shards(root / "in", texts)
        batch = best_batch(model, texts)
        seconds: dict[str, list[float]] = {candidate: [] for candidate in options.candidates.split(",")}
        outs: dict[str, Path] = {}
        for number in range(options.rounds):
            for candidate in seconds:
                kind, _, dtype = candidate.partition(":")
                outs[candidate] = root / f"{candidate.replace(':', '-')}-{number}"
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.end_to_end",
                    "--candidate",
                    kind,
                    "--dtype",
                    dtype or "float32",
                    "--model",
                    str(model),
                ]
                command += [
                    "--shards",
                    str(root / "in"),
                    "--out",
                    str(outs[candidate]),
                    "--batch",
                    str(batch),
                ]
                started = time.perf_counter()
                done = subprocess.run(
                    [*command, "--part-bytes", options.part_bytes], check=True, capture_output=True, text=True
                )
                wall = time.perf_counter() - started
                seconds[candidate].append(json.loads(done.stdout)["embed_s"] if kind == "engine" else wall)
                print(f"{candidate}: {seconds[candidate][-1]:.1f} s {done.stdout.strip()}", flush=True)
        base = statistics.median(seconds["encode"]) if "encode" in seconds else float("nan")
        print(f"\n{len(texts)} texts, {os.cpu_count()} cores, encode at batch {batch}")
        for candidate, times in seconds.items():
            median = statistics.median(times)
            spread = f"{min(times):.1f}-{max(times):.1f}"
            print(
                f"{candidate:16} {median:7.1f} s ({spread})  {len(texts) / median:6.1f} texts/s  {base / median:.2f}x encode"
            )
        for candidate in outs if "encode" in outs else ():
            if candidate.startswith("ours"):
                cosine = lowest_cosine(vectors_of(outs[candidate]), vectors_of(outs["encode"]))
                print(f"lowest cosine of {candidate} to encode: {cosine:.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parent.parent / "jobs" / "sample")
    parser.add_argument("--texts", type=int, default=8000)
    parser.add_argument("--chars", type=int, default=100, help="characters of a text, at least")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--part-bytes", default="256KiB")
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    for path in ("--model", "--shards", "--out"):
        parser.add_argument(path, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate == "ours":
        ours(options.shards, options.model, options.out, options.dtype, options.part_bytes)
    elif options.candidate == "engine":
        engine(options.shards, options.model, options.dtype)
    elif options.candidate == "encode":
        encode(options.shards, options.model, options.out, options.batch)
    elif options.candidate == "recipe":
        recipe(options.shards, options.model, options.out)
    else:
        compare(options)


if __name__ == "__main__":
    main()
