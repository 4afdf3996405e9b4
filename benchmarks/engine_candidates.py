"""What `benchmarks.engine` compares: candidates from ids in this process, and from text in
processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference import bert_gflop, encode_from_ids
from benchmarks.rivals.client import BATCH_SIZES, TextServer, trial_of
from benchmarks.rivals.encoders import Candidate
from pipeline.embed import load_engine
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model

FROM_IDS = ("ids", "padded", "packed")
SORTED = ("encode", "onnx", "openvino")
"""Kinds that sort texts by characters before they make batches."""


@dataclass
class Entry:
    """One row of the table. run: once over all texts, seconds and vectors."""

    name: str
    run: Callable[[], tuple[float, np.ndarray]]
    gflop: float
    batch_size: int = 0
    precision: str = "float32"
    is_rival: bool = False
    padding: Callable[[], float] | None = None
    seconds: list[float] = field(default_factory=list)
    vectors: np.ndarray | None = None


class Workload:
    """The texts, and their ids as the model's own tokenizer makes them."""

    def __init__(self, path: Path, texts: list[str], n_threads: int, is_cpu_time: bool) -> None:
        from sentence_transformers import SentenceTransformer

        self.path = path
        self.texts = texts
        self.n_threads = n_threads
        self.clock = time.process_time if is_cpu_time else time.perf_counter
        self.clock_key = "cpu_s" if is_cpu_time else "seconds"
        self.model = read_model(path, str(path))
        self.st: Any = SentenceTransformer(
            str(path), device="cpu", model_kwargs={"dtype": torch.float32}
        )
        self.rows: list[list[int]] = self.st.tokenizer(
            texts, truncation=True, max_length=self.st.max_seq_length
        )["input_ids"]
        self.n_tokens = np.array([len(row) for row in self.rows])
        self.ids = np.concatenate([np.asarray(row, np.int32) for row in self.rows])
        self.offsets = np.concatenate([[0], np.cumsum(self.n_tokens)])
        self.order = np.argsort([-len(text) for text in texts])

    def gflop(self, trimmed: bool = False) -> float:
        return bert_gflop(self.model.config, self.n_tokens, trimmed)

    def padding(self, batch_size: int) -> float:
        """The share of encode's positions that are padding: it sorts by characters."""
        batches = [
            self.n_tokens[self.order[i : i + batch_size]]
            for i in range(0, len(self.texts), batch_size)
        ]
        return 1 - self.n_tokens.sum() / sum(batch.max() * batch.size for batch in batches)

    def timed(self, run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
        start_s = self.clock()
        vectors = run()
        return self.clock() - start_s, vectors


def from_ids(candidate: Candidate, work: Workload) -> Entry:
    if candidate.kind == "ids":
        places = work.order[np.isin(work.order, trial_of(work.texts))]
        trial = {
            size: work.timed(lambda size=size: encode_from_ids(work.st, work.rows, places, size))[0]
            for size in BATCH_SIZES["cpu"]
        }
        size = min(trial, key=trial.__getitem__)
        return Entry(
            "encode from ids",
            lambda: work.timed(lambda: encode_from_ids(work.st, work.rows, work.order, size)),
            work.gflop(),
            size,
            padding=lambda: work.padding(size),
        )
    options = EngineOptions.of(work.model, engine=candidate.kind, dtype=candidate.precision)
    engine = load_engine(work.model, options)
    engine.embed(work.ids[: work.offsets[8]], work.offsets[:9])
    engine.stats = type(engine.stats)()
    is_trimmed = candidate.kind == "packed" and work.model.pooling in ("cls", "last_token")
    return Entry(
        f"{candidate} from ids",
        lambda: work.timed(lambda: engine.embed(work.ids, work.offsets)),
        work.gflop(is_trimmed),
        precision=candidate.precision,
        padding=lambda: engine.stats.padding_share,
    )


def from_text(server: TextServer, work: Workload) -> Entry:
    candidate = server.candidate
    batch_size = server.best_batch(work.texts, clock=work.clock_key)
    is_trimmed = candidate.kind == "ours" and work.model.pooling in ("cls", "last_token")
    is_sorted = candidate.kind in SORTED and candidate.n_processes == 1

    def run() -> tuple[float, np.ndarray]:
        figures, vectors = server.encode(work.texts, batch_size)
        return figures[work.clock_key], vectors

    return Entry(
        str(candidate),
        run,
        work.gflop(is_trimmed),
        batch_size,
        candidate.precision,
        is_rival=candidate.kind != "ours",
        padding=(lambda: work.padding(batch_size)) if is_sorted else None,
    )
