"""The interface of every engine, and the loop over buckets that they share.

In: ragged token ids. Out: one float32 vector for each text, in input order. Method: rows are cut
into length buckets under a token budget, longest first; a bucket is prepared in pinned memory while
the device works on the one before it, and a result is read one step late, so nothing in the loop
waits for the device. When memory runs out, the bucket and the budget are halved and the work
continues. Cost: benchmarks/engine.py.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.embed.buckets import Ids, Offsets, Rows, Vectors, packed_buckets
from pipeline.embed.memory import is_out_of_memory
from pipeline.embed.stats import EngineStats
from pipeline.errors import ModelError
from pipeline.job.cpu_features import cpu_name
from pipeline.job.engine_options import EngineOptions

log = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
DTYPES["int8"] = torch.float32
"""Name in a job spec → dtype in which weights are read. int8 rounds the weights of linear layers
after that; the others stay float32."""


class Engine(ABC):
    """Vectors for ragged token ids; one engine per process and device. Threads take turns: one
    queues its buckets while another waits for the end of its last one.

    default_budget_tokens: what a forward pass holds unless the options say otherwise.
    """

    name: str
    dim: int
    n_ids: int | None = None
    """Of the vocabulary, where the engine knows it."""
    positions: int | None = None
    """The most tokens of a text, where the engine has a limit of its own."""

    def __init__(self, options: EngineOptions, default_budget_tokens: int) -> None:
        self.options = options
        self.device = options.device
        is_gpu = options.device.startswith("cuda")
        self.device_name = torch.cuda.get_device_name(options.device) if is_gpu else cpu_name()
        self.dtype = options.dtype
        self.stats = EngineStats()
        self._turn = threading.Lock()
        self.budget_tokens = options.max_batch_tokens or default_budget_tokens

    @property
    def tuning(self) -> dict[str, str]:
        """What was chosen for this device, for the record of what the engine did."""
        return {"budget_tokens": str(self.budget_tokens)}

    def _buckets(self, n_tokens: Offsets) -> Iterator[Rows]:
        """Cut rows into buckets under the budget, which is read before each one: it can shrink."""
        return packed_buckets(n_tokens, lambda: self.budget_tokens)

    @abstractmethod
    def _forward(self, ids: Ids, offsets: Offsets, rows: Rows) -> tuple[Tensor, int]:
        """Queue one bucket. Returns (n, dim) on the device without waiting, and the number of
        tokens that it computes, padding included."""

    @torch.inference_mode()
    def _width(self, n_tokens: int = 1) -> int:
        """Of a vector, by embedding a text of so many tokens: config files can be wrong."""
        ids = np.zeros(n_tokens, np.int32)
        return self._forward(ids, np.array([0, n_tokens]), np.array([0]))[0].shape[1]

    @torch.inference_mode()
    def embed(self, ids: Ids, offsets: Offsets, stats: EngineStats | None = None) -> Vectors:
        """ids: (T,) int32 with special tokens; offsets: (N+1,) int64; stats: where this call is
        counted, by default the engine's own. Returns (N, dim) float32, C-contiguous.

        A text without tokens gives a row of NaN. NaN or inf from the model are returned as they
        are. Raises ModelError for ids or lengths that the model does not have, and
        torch.OutOfMemoryError when a single text does not fit.
        """
        stats = self.stats if stats is None else stats
        n_tokens = np.diff(offsets)
        self._check(ids, int(n_tokens.max(initial=0)))
        vectors = np.empty((n_tokens.size, self.dim), dtype=np.float32)
        vectors[n_tokens == 0] = np.nan
        filled = np.flatnonzero(n_tokens)
        sink = _Sink(vectors)
        with self._turn:
            started = time.perf_counter()
            for bucket in self._buckets(n_tokens[filled]):
                self._embed_bucket(ids, offsets, filled[bucket], sink, stats)
        # the next call queues its buckets while this one waits for its last
        sink.flush()
        stats.n_texts += n_tokens.size
        stats.n_tokens += int(n_tokens.sum())
        stats.seconds += time.perf_counter() - started
        return vectors

    def _check(self, ids: Ids, longest: int) -> None:
        """On a GPU an id outside the table, or a position, would end the process."""
        if self.positions is not None and longest > self.positions:
            raise ModelError(
                f"a text of {longest} tokens is longer than the {self.positions} positions of the "
                "model. Set model.max_tokens lower."
            )
        if self.n_ids is None or not ids.size:
            return
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.n_ids:
            raise ModelError(
                f"token ids reach from {ids.min()} to {ids.max()}, but the model has {self.n_ids}. "
                "The tokenizer belongs to another model. Restore the directory from its source."
            )

    def _embed_bucket(
        self, ids: Ids, offsets: Offsets, rows: Rows, sink: _Sink, stats: EngineStats
    ) -> None:
        """Embed one bucket, in halves where memory does not hold it. The smaller budget stays in
        force."""
        n_tokens = int((offsets[rows + 1] - offsets[rows]).sum())
        try:
            result, n_computed = self._forward(ids, offsets, rows)
        except RuntimeError as error:
            if rows.size == 1 or not is_out_of_memory(error):
                raise
        else:
            stats.n_batches += 1
            stats.n_padded_tokens += n_computed
            sink.put(rows, result)
            if stats.on_bucket:
                stats.on_bucket(n_tokens)
            return
        # outside `except`: the exception would keep the failed tensors alive
        sink.flush()
        torch.cuda.empty_cache()
        stats.n_oom_halvings += 1
        self.budget_tokens = max(1, min(self.budget_tokens, n_tokens // 2))
        log.warning(
            "out of memory at %d rows: budget is now %d tokens", rows.size, self.budget_tokens
        )
        half = rows.size // 2
        for fewer in (rows[:half], rows[half:]):
            self._embed_bucket(ids, offsets, fewer, sink, stats)


class _Sink:
    """Writes results into `vectors`, each when the next one is queued."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._pending: tuple[Rows, Callable[[], Vectors]] | None = None

    def put(self, rows: Rows, result: Tensor) -> None:
        copied = to_host(result)
        self.flush()
        self._pending = (rows, copied)

    def flush(self) -> None:
        if self._pending is not None:
            rows, copied = self._pending
            self._vectors[rows] = copied()
            self._pending = None


def to_host(result: Tensor) -> Callable[[], Vectors]:
    """Device → host without waiting, through pinned memory on a GPU. What is returned waits for the
    copy and gives it, in float32."""
    if result.is_cpu:
        return result.float().numpy
    # torch caches pinned blocks and hands one out again only when the copy that used it has ended
    host = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
    host.copy_(result.float(), non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def copied() -> Vectors:
        event.synchronize()
        return host.numpy()

    return copied


def to_device(array: NDArray[Any], device: str) -> Tensor:
    """Host array → device without waiting, through pinned memory on a GPU."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else host
