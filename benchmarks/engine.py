"""Is the engine faster than its rivals on the same texts, weights and cores, and how near is it to
the limit?

    python -m benchmarks.engine [--texts 600] [--rounds 3] [--threads 2]
        [--candidates ours,ours/2,encode,onnx,openvino:qint8]
    python -m benchmarks.engine --minilm --candidates ours/2,encode,onnx,fastembed

In: paragraphs of a corpus and a BERT directory with random weights (6 layers, hidden 384 by
default; Japanese by MeCab and WordPiece), or all-MiniLM-L6-v2 over English ones. Out: one table.
Every candidate runs once in every round, so that a busy neighbour hits all of them alike, each at
the batch size that was fastest in a trial. Loading, exports and warm-up are not timed.

From text, in processes of their own (KIND[:PRECISION][/PROCESSES]: `/2` shares the texts among two
processes of one thread each, as a job does; without it one process has all threads):

    ours       tokenizer and packed engine of this package: float32, bfloat16, int8
    encode     SentenceTransformer.encode: float32, bfloat16
    pool       the same in a multi-process pool of sentence-transformers, a process a thread
    onnx       its ONNX backend: float32 optimized at O3, qint8 as the CPU's instruction set wants
    openvino   its OpenVINO backend: float32, bfloat16, qint8 calibrated with texts of the corpus
    fastembed  the same O3 file; needs a model with a tokenizer.json (--minilm)

From ids, in this process: `ids` (the forward of encode, in its order), `padded`, `packed`. onnx,
openvino and fastembed need an environment of their own: `make rivals`. A float32 rival whose lowest
cosine to encode is below 0.9999 computes something else, and is void (exit code 1). GFLOP/s count
the multiplications done for real tokens (last layer trimmed where the candidate trims it).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.engine_candidates import FROM_IDS, Entry, Workload, from_ids, from_text
from benchmarks.engine_report import print_header, report
from benchmarks.inputs import SMALL, add_input_options, model_dir, read_texts
from benchmarks.reference import gemm_gflops
from benchmarks.rivals.client import (
    CandidateError,
    TextServer,
    add_rival_options,
    participants,
    prepare_exports,
)
from benchmarks.rivals.encoders import KINDS, Candidate

CANDIDATES = (
    *("encode", "encode:bfloat16", "pool", "onnx", "onnx/2", "openvino", "openvino/2"),
    *("fastembed", "fastembed/2", "ours", "ours/2"),
    *("onnx:qint8", "onnx:qint8/2", "openvino:qint8", "openvino:qint8/2"),
    *("ours:bfloat16/2", "ours:int8", "ours:int8/2", "ids", "padded", "packed"),
)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_options(parser, n_texts=600)
    add_rival_options(parser)
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=SMALL["hidden"])
    parser.add_argument("--layers", type=int, default=SMALL["layers"])
    parser.add_argument(
        "--cpu-clock", action="store_true", help="CPU seconds, on a busy machine; needs --threads 1"
    )
    options = parser.parse_args(arguments)
    if options.cpu_clock and options.threads > 1:
        parser.error("--cpu-clock needs --threads 1")
    return options


def compare(path: Path, options: argparse.Namespace) -> bool:
    kinds = (*KINDS, *FROM_IDS)
    candidates = participants(options.candidates.split(","), kinds, path, options.rivals_python)
    work = Workload(path, read_texts(options, options.texts), options.threads, options.cpu_clock)
    print_header(work, options.rounds)
    exports = prepare_exports(
        candidates,
        path,
        options.exports,
        options.rivals_python,
        read_texts(options, 300, seed=1),
    )
    with ExitStack() as servers:

        def entry_of(candidate: Candidate) -> Entry:
            if candidate.kind in FROM_IDS:
                return from_ids(candidate, work)
            server = TextServer(candidate, path, exports, options.rivals_python, options.threads)
            servers.callback(server.close)
            return from_text(server, work)

        entries = []
        for candidate in candidates:
            try:
                entries.append(entry_of(candidate))
            except CandidateError as error:
                print(f"{candidate} is left out: {error}", flush=True)
            else:
                print(f"{candidate} is ready", file=sys.stderr, flush=True)
        ceilings: dict[torch.dtype, list[float]] = {torch.float32: []}
        if any(entry.precision == "bfloat16" for entry in entries):  # minutes where it is emulated
            ceilings[torch.bfloat16] = []
        clock = time.process_time if options.cpu_clock else time.perf_counter
        for _ in range(options.rounds):
            for entry in list(entries):
                try:
                    seconds, entry.vectors = entry.run()
                except CandidateError as error:
                    print(f"{entry.name} is left out: {error}", flush=True)
                    entries.remove(entry)
                else:
                    entry.seconds.append(seconds)
            for dtype, measured in ceilings.items():
                measured.append(gemm_gflops(dtype, clock))
    reference = work.st.encode(work.texts, batch_size=8)
    return report(entries, ceilings, work, reference)


def main() -> None:
    options = options_of()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            **SMALL,
            "hidden": options.hidden,
            "layers": options.layers,
            "heads": options.hidden // 32,
            "intermediate": 4 * options.hidden,
        }
        if not compare(model_dir(options, Path(folder), sizes), options):
            sys.exit(1)


if __name__ == "__main__":
    main()
