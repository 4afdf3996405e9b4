"""Do Rust tokenizers want threads of their own inside a pool of actors? Tokens per second of a
whole machine.

    python -m benchmarks.tokenizer_threads --corpus DIR [--texts 8000] [--rounds 3]

In: `*.jsonl.gz` with "text" in DIR. Models: WordPiece and Unigram tokenizers learned from text of
the tests. Candidates, all over the same texts: a process a core with one thread each (what runs
do), a process a core with the library's own pool of threads in each, one process with that pool.
Out: one line for each candidate and round, in wall time between a barrier and the last process;
loading is not counted. The switch is TOKENIZERS_PARALLELISM.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.inputs import paragraphs
from benchmarks.machine import cpu_name
from tests.support.model_dirs import bert_mean, llama_last_token

CORES = os.cpu_count() or 1
CANDIDATES = {
    "a process a core, one thread": (CORES, "false"),
    "a process a core, own threads": (CORES, "true"),
    "one process, own threads": (1, "true"),
}


def encode(
    model: Path, texts: list[str], ready: Barrier, done: Queue[tuple[float, float, int]]
) -> None:
    from pipeline.job.model.store import resolve
    from pipeline.tokenize import load_tokenizer

    tokenizer = load_tokenizer(resolve(str(model)), max_tokens=512)
    tokenizer.encode(texts[:64])  # warms up, and starts the pool of threads
    ready.wait()
    started = time.time()
    tokens = tokenizer.encode(texts)
    done.put((started, time.time(), len(tokens.ids)))


def tokens_per_s(model: Path, texts: list[str], n_processes: int, threads: str) -> float:
    os.environ["TOKENIZERS_PARALLELISM"] = threads
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(n_processes)
    done = spawn.Queue()
    processes = [
        spawn.Process(target=encode, args=(model, texts[i::n_processes], ready, done))
        for i in range(n_processes)
    ]
    for process in processes:
        process.start()
    seen = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(n for _, _, n in seen) / (
        max(end for _, end, _ in seen) - min(start for start, _, _ in seen)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(cpu_name())
    texts = paragraphs(options.corpus, options.texts, 100)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "WordPiece": bert_mean(Path(folder) / "bert"),
            "Unigram": llama_last_token(Path(folder) / "llama"),
        }
        for kind, model in models.items():
            for number in range(options.rounds):
                for name, (n_processes, threads) in CANDIDATES.items():
                    speed = tokens_per_s(model, texts, n_processes, threads)
                    print(f"{kind}, round {number}: {name:30} {speed:10,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
