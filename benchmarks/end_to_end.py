"""Does the whole job, start-up, reading and writing included, beat what a user would write by hand?

    python -m benchmarks.end_to_end --corpus DIR [--texts 8000] [--rounds 1]
        [--candidates ours,encode,onnx,openvino/2,ours:int8,openvino:qint8/2]
    python -m benchmarks.end_to_end --corpus DIR --device cuda --large --texts 600000
        --part-bytes 4MiB --candidates ours:bfloat16,engine:bfloat16,encode:bfloat16
        for a GPU (not run on one yet)

Each candidate is a process of its own over the same Parquet shards, the same BERT directory (6
layers, hidden 384, or with --large those of sup-simcse-ja-large; random weights, MeCab +
WordPiece; or with --minilm all-MiniLM-L6-v2 over English texts), on all cores, and ends with
vectors in Parquet; in float32, or as `ours:bfloat16` says:

    ours     corpus-embed run
    engine   the packed engine alone from ids that are ready, without loading: one single-threaded
             process per core, or one per GPU
    recipe   Ray Data map_batches with SentenceTransformer.encode (batch 32), then write_parquet
    encode, pool, onnx, openvino, fastembed
             one call of the library over all texts, as `benchmarks.engine` describes them, then
             Parquet; with `/2` two processes with half of the shards and one thread each

Batch sizes are the fastest of a trial before, and exports for ONNX and OpenVINO are made before;
neither is timed. Out: one table of wall seconds, texts/s, tokens/s and ratio to the first library,
and the lowest cosine of all vectors to its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.end_to_end_candidates import CANDIDATES, LIBRARIES
from benchmarks.inputs import SMALL, add_input_options, model_dir, read_texts
from benchmarks.machine import cpu_name
from benchmarks.reference import min_cosine
from benchmarks.rivals.client import (
    CandidateError,
    TextServer,
    add_rival_options,
    environment,
    participants,
    prepare_exports,
    python_of,
    run_module,
)
from benchmarks.rivals.encoders import Candidate
from tests import ROOT

N_SHARDS = 8
LARGE = {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096}
DEFAULT = "ours,engine,encode,recipe"


def write_shards(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for shard in range(N_SHARDS):
        ids = list(range(shard, len(texts), N_SHARDS))
        rows = pa.table({"id": [str(i) for i in ids], "text": [texts[i] for i in ids]})
        pq.write_table(rows, folder / f"{shard}.parquet", row_group_size=4096)


def vectors_of(out: Path) -> dict[str, np.ndarray]:
    folder = out / "data" if (out / "data").is_dir() else out
    table = ds.dataset(folder, format="parquet").to_table(columns=["doc_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return dict(zip(table["doc_id"].to_pylist(), flat.reshape(table.num_rows, -1), strict=True))


def lowest_cosine(vectors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    return min_cosine(
        np.stack(list(vectors.values())), np.stack([expected[key] for key in vectors])
    )


def best_batch(
    candidate: Candidate, model: Path, exports: Path, texts: list[str], options: argparse.Namespace
) -> int:
    """The fastest of a trial; 0 for what is not a library."""
    if candidate.kind not in LIBRARIES:
        return 0
    server = TextServer(
        candidate, model, exports, options.rivals_python, os.cpu_count() or 1, options.device
    )
    try:
        return server.best_batch(texts, options.device)
    finally:
        server.close()


def run_candidate(
    candidate: Candidate, python: str, **arguments: Any
) -> tuple[float, dict[str, Any]]:
    """(wall seconds, figures) of a candidate, in processes of its own. arguments: options of
    `benchmarks.end_to_end_candidates`."""
    module = "benchmarks.end_to_end_candidates"
    shares = candidate.n_processes
    arguments |= {"dtype": candidate.precision, "shares": shares}
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if candidate.kind == "pool" or shares > 1:
        env = environment(1)
    started = time.perf_counter()
    with ExitStack() as stack:
        # files: a process whose pipe is full would wait until the one before it has ended
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(shares)]
        processes = [
            subprocess.Popen(
                run_module(python, module, {**arguments, "share": share}, candidate.kind),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=env,
            )
            for share, log in enumerate(logs)
        ]
        outputs = [process.communicate()[0] for process in processes]
        seconds = time.perf_counter() - started
        for process, log in zip(processes, logs, strict=True):
            if process.returncode:
                log.seek(0)
                raise SystemExit(f"{candidate} failed:\n{log.read()[-4000:]}")
    lines = [line for line in outputs[0].splitlines() if line.startswith("{")]
    figures = json.loads(lines[-1]) if lines else {}
    return figures.get("embed_s", seconds), figures


def compare(options: argparse.Namespace, root: Path) -> None:
    texts = read_texts(options, options.texts)
    model = model_dir(options, root, SMALL | (LARGE if options.large else {}))
    write_shards(root / "in", texts)
    names = options.candidates.split(",")
    python = options.rivals_python
    candidates = participants(names, tuple(CANDIDATES), model, python)
    samples = read_texts(options, 300, seed=1)
    exports = prepare_exports(candidates, model, options.exports, python, samples)
    print(f"{cpu_name()}, {options.device}", flush=True)
    batch_sizes: dict[Candidate, int] = {}
    for candidate in candidates:
        try:
            batch_sizes[candidate] = best_batch(candidate, model, exports, texts, options)
        except CandidateError as error:
            print(f"{candidate} is left out: {error}", flush=True)
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in batch_sizes}
    outs: dict[Candidate, Path] = {}
    n_tokens = 0
    for number in range(options.rounds):
        for place, candidate in enumerate(batch_sizes):
            outs[candidate] = root / f"{place}-{number}"
            duration, figures = run_candidate(
                candidate,
                python_of(candidate, python),
                model=model,
                exports=exports,
                shards=root / "in",
                out=outs[candidate],
                batch_size=batch_sizes[candidate],
                device=options.device,
                part_bytes=options.part_bytes,
            )
            seconds[candidate].append(duration)
            n_tokens = max(n_tokens, figures.get("n_tokens", 0))
            print(f"{candidate}: {duration:.1f} s {json.dumps(figures)}", flush=True)
    report(seconds, batch_sizes, outs, len(texts), n_tokens)


def report(
    seconds: dict[Candidate, list[float]],
    batch_sizes: dict[Candidate, int],
    outs: dict[Candidate, Path],
    n_texts: int,
    n_tokens: int,
) -> None:
    baseline = next((candidate for candidate in seconds if candidate.kind in LIBRARIES), None)
    base = statistics.median(seconds[baseline]) if baseline else float("nan")
    expected = vectors_of(outs[baseline]) if baseline else {}
    print(f"\n{n_texts} texts, {n_tokens} tokens; ratios and lowest cosines to {baseline}")
    for candidate, times in seconds.items():
        median = statistics.median(times)
        spread = f"{min(times):.1f}-{max(times):.1f}"
        cosine = ""
        if expected and candidate.kind in ("ours", *LIBRARIES):
            cosine = f"  cosine {lowest_cosine(vectors_of(outs[candidate]), expected):.7f}"
        print(
            f"{candidate!s:18} batch {batch_sizes[candidate] or '-':>3} {median:7.1f} s ({spread}) "
            f"{n_texts / median:6.1f} texts/s {n_tokens / median:9,.0f} tokens/s "
            f"{base / median:5.2f}x{cosine}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_options(parser, n_texts=8000)
    add_rival_options(parser)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--part-bytes", default="256KiB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--large", action="store_true", help="the sizes of sup-simcse-ja-large")
    parser.add_argument("--candidates", default=DEFAULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
