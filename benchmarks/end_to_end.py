"""Does the whole job, start-up, reading and writing included, beat what a user would write by hand?

    python -m benchmarks.end_to_end --corpus DIR [--texts 8000] [--rounds 1]
    python -m benchmarks.end_to_end --corpus DIR --device cuda --large --texts 600000
        --part-bytes 4MiB --candidates ours:bfloat16,engine:bfloat16,encode:bfloat16
        for a GPU (not run on one yet)

Each candidate is a process of its own over the same Parquet shards, the same BERT directory (6
layers, hidden 384, or with --large those of sup-simcse-ja-large; random weights, MeCab +
WordPiece), on all cores, and ends with vectors in Parquet; in float32, or as `ours:bfloat16` says:

    ours     corpus-embed run
    encode   SentenceTransformer.encode over all texts at its best batch size (determined before,
             not timed), then Parquet
    engine   the packed engine alone from ids that are ready, without loading: one single-threaded
             process per core, or one per GPU
    recipe   Ray Data map_batches with SentenceTransformer.encode (batch 32), then write_parquet

Out: one table of wall seconds, texts/s, tokens/s and ratio, and the lowest cosine of our vectors to
those of encode.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.end_to_end_candidates import CANDIDATES, sentence_transformer
from benchmarks.engine import paragraphs
from tests.support.model_dirs import bert_japanese

N_SHARDS = 8
SMALL = {"hidden": 384, "layers": 6, "heads": 12, "intermediate": 1536, "vocab_size": 8_000}
LARGE = {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096}


def write_shards(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for shard in range(N_SHARDS):
        ids = list(range(shard, len(texts), N_SHARDS))
        rows = pa.table({"id": [str(i) for i in ids], "text": [texts[i] for i in ids]})
        pq.write_table(rows, folder / f"{shard}.parquet", row_group_size=4096)


def best_batch(model: Path, texts: list[str], device: str, dtype: str) -> int:
    """The batch size at which encode is fastest, by a trial on the first texts."""
    loaded = sentence_transformer(model, device, dtype)
    batch_sizes = (8, 16, 32, 64) if device == "cpu" else (64, 128, 256, 512)
    n_texts = 400 if device == "cpu" else 8192
    seconds: dict[int, float] = {}
    loaded.encode(texts[:64], batch_size=16)  # warm-up
    for batch_size in batch_sizes:
        started = time.perf_counter()
        loaded.encode(texts[:n_texts], batch_size=batch_size)
        seconds[batch_size] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__)


def vectors_of(out: Path) -> dict[str, np.ndarray]:
    folder = out / "data" if (out / "data").is_dir() else out
    table = ds.dataset(folder, format="parquet").to_table(columns=["doc_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return dict(zip(table["doc_id"].to_pylist(), flat.reshape(table.num_rows, -1), strict=True))


def lowest_cosine(vectors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    a = np.stack(list(vectors.values()))
    b = np.stack([expected[key] for key in vectors])
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def run_candidate(candidate: str, **arguments: Any) -> tuple[float, dict[str, Any]]:
    """(wall seconds, figures) of a candidate such as `ours:bfloat16`, in a process of its own.
    arguments: options of `benchmarks.end_to_end_candidates`."""
    kind, _, dtype = candidate.partition(":")
    command = [sys.executable, "-m", "benchmarks.end_to_end_candidates", kind]
    for name, value in {"dtype": dtype or "float32", **arguments}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    started = time.perf_counter()
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{candidate} failed:\n{process.stderr[-4000:]}")
    figures = json.loads(process.stdout or "{}")
    return figures.get("embed_s", seconds), figures


def compare(options: argparse.Namespace, root: Path) -> None:
    texts = paragraphs(options.corpus, options.texts, options.chars)
    model = bert_japanese(root / "model", **(SMALL | (LARGE if options.large else {})))
    write_shards(root / "in", texts)
    candidates = options.candidates.split(",")
    baseline = next((name for name in candidates if name.startswith("encode")), "")
    batch_size = best_batch(model, texts, options.device, baseline.partition(":")[2] or "float32")
    seconds: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    outs: dict[str, Path] = {}
    n_tokens = 0
    for number in range(options.rounds):
        for candidate in candidates:
            outs[candidate] = root / f"{candidate.replace(':', '-')}-{number}"
            duration, figures = run_candidate(
                candidate,
                model=model,
                shards=root / "in",
                out=outs[candidate],
                batch_size=batch_size,
                device=options.device,
                part_bytes=options.part_bytes,
            )
            seconds[candidate].append(duration)
            n_tokens = max(n_tokens, figures.get("n_tokens", 0))
            print(f"{candidate}: {duration:.1f} s {json.dumps(figures)}", flush=True)
    base = statistics.median(seconds[baseline]) if baseline else float("nan")
    print(
        f"\n{len(texts)} texts, {n_tokens} tokens, {options.device}, {os.cpu_count()} cores, "
        f"encode at batch {batch_size}"
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
