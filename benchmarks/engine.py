"""Is the engine faster than sentence-transformers on the same texts, weights, dtype and cores, and
how near is it to the limit?

    python -m benchmarks.engine [--texts 600] [--rounds 3] [--threads 2]
                                [--budgets 1024,2048] [--bfloat16]

In: paragraphs of a corpus and a BERT directory with random weights (6 layers, hidden 384 by
default). Out: one table. Every candidate runs once in every round, so that a busy neighbour hits
all of them alike; the GEMM ceiling is measured in every round too. encode starts from text (what a
user runs) and from ids (the forward pass alone); engines from ids. GFLOP/s count the
multiplications done for real tokens (last layer trimmed where the candidate trims it).
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.embed import Engine, load_engine
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model
from tests.support.model_dirs import SAMPLE, bert_japanese

ST_BATCHES = (8, 16, 32, 64)


@dataclass
class Candidate:
    name: str
    run: Callable[[], np.ndarray]
    gflop: float
    seconds: list[float] = field(default_factory=list)
    padding: float | None = None
    vectors: np.ndarray | None = None


def paragraphs(corpus: Path, n_texts: int, n_chars: int, seed: int = 0) -> list[str]:
    """Lines of Japanese documents joined until they have `n_chars` characters, sampled over the
    whole corpus. Where it has fewer of them than asked for, the same ones come again behind a
    number, so that no two texts are equal."""
    texts: list[str] = []
    for shard in sorted(corpus.glob("*.jsonl.gz")):
        for line in gzip.decompress(shard.read_bytes()).splitlines():
            row = json.loads(line)
            text = ""
            for piece in row["text"].split("\n") if row.get("lang") == "ja" else ():
                text += piece
                if len(text) >= n_chars:
                    texts.append(text)
                    text = ""
    order = np.random.default_rng(seed).permutation(len(texts))
    rounds = (divmod(number, len(texts)) for number in range(n_texts))
    return [f"{again}番。{texts[order[i]]}" if again else texts[order[i]] for again, i in rounds]


def gemm_gflops(
    dtype: torch.dtype, clock: Callable[[], float], n: int = 2048, repeats: int = 5
) -> float:
    """The ceiling: the best of a few n³ matrix products of this dtype, GFLOP/s."""
    a = torch.randn(n, n).to(dtype)
    b = torch.randn(n, n).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        started = clock()
        a @ b
        best = min(best, clock() - started)
    return 2 * n**3 / best / 1e9


def bert_gflop(config: dict, n_tokens: np.ndarray, trimmed: bool) -> float:
    """Multiplications and additions of the linear layers and of attention for real tokens, 10⁹."""
    d = config["hidden_size"]
    f = config["intermediate_size"]
    layers = config["num_hidden_layers"]
    tokens = float(n_tokens.sum())
    squares = float((n_tokens.astype(float) ** 2).sum())
    rows = n_tokens.size
    layer = 2 * tokens * (4 * d * d + 2 * d * f) + 4 * d * squares
    last = (
        2 * tokens * 2 * d * d + 2 * rows * (2 * d * d + 2 * d * f) + 4 * d * tokens
        if trimmed
        else layer
    )
    return ((layers - 1) * layer + last) / 1e9


def encode_from_ids(
    st: Any,
    rows: list[list[int]],
    order: np.ndarray,
    batch: int,
    device: str = "cpu",
    forward: Any = None,
) -> np.ndarray:
    """Do what `encode` does behind its tokenizer, in the same order (by characters) and batches.

    `forward` takes the place of the model's own, say a compiled one.
    """
    out = np.empty((len(rows), st[0].get_embedding_dimension()), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            picked = order[start : start + batch]
            width = max(len(rows[i]) for i in picked)
            ids = torch.zeros(len(picked), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for line, i in enumerate(picked):
                ids[line, : len(rows[i])] = torch.tensor(rows[i])
                mask[line, : len(rows[i])] = 1
            features = {
                "input_ids": ids.to(device),
                "attention_mask": mask.to(device),
                "modality": "text",
            }
            out[picked] = (forward or st)(features)["sentence_embedding"].float().cpu().numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=SAMPLE)
    parser.add_argument(
        "--model", type=Path, help="a directory to use instead of one with random weights"
    )
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--chars", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument(
        "--budgets", default="", help="budgets of the packed engine to compare, comma-separated"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="also the packed engine in bfloat16"
    )
    parser.add_argument(
        "--only-engines", action="store_true", help="leave sentence-transformers out (tuning)"
    )
    parser.add_argument(
        "--cpu-clock", action="store_true", help="CPU seconds, on a busy machine; needs --threads 1"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or bert_japanese(
            Path(folder) / "model",
            hidden=options.hidden,
            layers=options.layers,
            heads=options.hidden // 32,
            intermediate=4 * options.hidden,
            vocab_size=8000,
        )
        compare(path, options)


def compare(path: Path, options: argparse.Namespace) -> None:
    from sentence_transformers import SentenceTransformer

    model = read_model(path, str(path))
    st = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = paragraphs(options.corpus, options.texts, options.chars)
    rows: list[list[int]] = st.tokenizer(texts, truncation=True)["input_ids"]
    n_tokens = np.array([len(row) for row in rows])
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    offsets = np.concatenate([[0], np.cumsum(n_tokens)])
    order = np.argsort([-len(text) for text in texts])
    full, trimmed = (bert_gflop(model.config, n_tokens, t) for t in (False, True))

    def padding(batch: int) -> float:
        widths = [n_tokens[order[i : i + batch]] for i in range(0, len(texts), batch)]
        return 1 - n_tokens.sum() / sum(w.max() * w.size for w in widths)

    candidates: list[Candidate] = []
    if not options.only_engines:
        candidates = [
            Candidate(
                f"encode from text, batch {b}",
                lambda b=b: st.encode(texts, batch_size=b),
                full,
                [],
                padding(b),
            )
            for b in ST_BATCHES
        ] + [
            Candidate(
                f"encode from ids, batch {b}",
                lambda b=b: encode_from_ids(st, rows, order, b),
                full,
                [],
                padding(b),
            )
            for b in ST_BATCHES
        ]

    def add(name: str, engine: Engine, gflop: float) -> None:
        engine.embed(ids[: offsets[8]], offsets[:9])
        engine.stats = type(engine.stats)()
        candidates.append(Candidate(name, lambda: engine.embed(ids, offsets), gflop))
        engines[name] = engine

    engines: dict[str, Engine] = {}
    add("engine padded", load_engine(model, EngineOptions.of(model, engine="padded")), full)
    is_trimmed = model.pooling in ("cls", "last_token")
    for budget in [int(b) for b in options.budgets.split(",") if b] or [None]:
        name = f"engine packed{f' {budget}' if budget else ''}"
        packed = EngineOptions.of(model, engine="packed", max_batch_tokens=budget)
        engine = load_engine(model, packed)
        add(name, engine, trimmed if is_trimmed else full)
        if options.bfloat16:
            engine = load_engine(model, dataclasses.replace(packed, dtype="bfloat16"))
            add(f"{name} bfloat16", engine, trimmed if is_trimmed else full)

    ceilings: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    clock = time.process_time if options.cpu_clock else time.perf_counter
    for _ in range(options.rounds):
        for candidate in candidates:
            started = clock()
            candidate.vectors = candidate.run()
            candidate.seconds.append(clock() - started)
        for dtype, measured in ceilings.items():
            measured.append(gemm_gflops(dtype, clock))
    for name, engine in engines.items():
        next(c for c in candidates if c.name == name).padding = engine.stats.padding_share
    report(candidates, ceilings, n_tokens, texts, options)


def report(
    candidates: list[Candidate],
    ceilings: dict[torch.dtype, list[float]],
    n_tokens: np.ndarray,
    texts: list[str],
    options: argparse.Namespace,
) -> None:
    print(
        f"{len(texts)} texts, {n_tokens.mean():.0f} tokens on average "
        f"(median {np.median(n_tokens):.0f}, longest {n_tokens.max()}), {options.threads} threads, "
        f"torch {torch.__version__}, {options.rounds} rounds"
    )
    for dtype, measured in ceilings.items():
        print(
            f"GEMM ceiling {dtype}: {statistics.median(measured):.0f} GFLOP/s "
            f"({min(measured):.0f}-{max(measured):.0f})"
        )
    reference = candidates[0].vectors
    starts = ("encode from text", "encode from ids")
    best = {
        s: min(
            (statistics.median(c.seconds) for c in candidates if c.name.startswith(s)),
            default=np.nan,
        )
        for s in starts
    }
    print(
        f"{'':32} {'texts/s':>8} {'spread':>13} {'tokens/s':>9} {'GFLOP/s':>8} {'of GEMM':>7} "
        f"{'padding':>7} {'vs text':>7} {'vs ids':>7} {'min cosine':>10}"
    )
    for c in candidates:
        median = statistics.median(c.seconds)
        spread = f"{len(texts) / max(c.seconds):.0f}-{len(texts) / min(c.seconds):.0f}"
        ceiling = statistics.median(
            ceilings[torch.bfloat16 if "bfloat16" in c.name else torch.float32]
        )
        print(
            f"{c.name:32} {len(texts) / median:8.1f} {spread:>13} "
            f"{n_tokens.sum() / median:9.0f} {c.gflop / median:8.0f} "
            f"{c.gflop / median / ceiling:7.0%} {c.padding or 0:7.1%} "
            f"{best[starts[0]] / median:7.2f} {best[starts[1]] / median:7.2f} "
            f"{min_cosine(c.vectors, reference):10.7f}"
        )


def min_cosine(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None:
        return float("nan")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


if __name__ == "__main__":
    main()
