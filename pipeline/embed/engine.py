"""The interface of every engine, and the loop over buckets that they share.

In: ragged token ids. Out: one float32 vector for each text, in input order. Method: rows are cut
into length buckets under a token budget, longest first; a bucket is prepared in pinned memory while
the device works on the one before it, and a result is read one step late, so nothing in the loop
waits for the device. When memory runs out, the bucket and the budget are halved and the work
continues. Cost: benchmarks/engine.py.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embed.buckets import Rows
from pipeline.errors import ModelError
from pipeline.job.cpu_features import cpu_name
from pipeline.job.engine_options import EngineOptions

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
"""Name in a job spec → dtype in which weights are read. int8 rounds the weights of linear layers
after that; the others stay float32."""


OnBucket = Callable[[int], None]
"""Takes the number of tokens of a bucket that was embedded."""


@dataclass
class EngineStats:
    """Sums over all calls of `Engine.embed`. `n_padded_tokens` counts what was computed, padding
    included."""

    n_texts: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    n_batches: int = 0
    seconds: float = 0.0
    n_oom_halvings: int = 0

    @property
    def padding_share(self) -> float:
        return 1 - self.n_tokens / self.n_padded_tokens if self.n_padded_tokens else 0.0


class Engine(ABC):
    """Vectors for ragged token ids. Not thread-safe; one engine per process and device.

    default_budget_tokens: what a forward pass holds unless the options say otherwise. on_bucket: is
    told of each bucket that was queued, for displays.
    """

    name: str
    dim: int
    n_ids: int
    """Of the vocabulary, where the engine knows it."""

    def __init__(self, options: EngineOptions, default_budget_tokens: int) -> None:
        self.options = options
        self.device = options.device
        self.device_name = (
            torch.cuda.get_device_name(options.device)
            if options.device.startswith("cuda")
            else cpu_name()
        )
        self.dtype = options.dtype
        self.stats = EngineStats()
        self.on_bucket: OnBucket | None = None
        self.budget_tokens = options.max_batch_tokens or default_budget_tokens

    @property
    def tuning(self) -> dict[str, str]:
        """What was chosen for this device, for the record of what the engine did."""
        return {"budget_tokens": str(self.budget_tokens)}

    @abstractmethod
    def _buckets(
        self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]
    ) -> Iterator[Rows]:
        """Cut rows into buckets under the budget, which is asked for before each bucket because it
        can shrink."""

    @abstractmethod
    def _forward(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows
    ) -> torch.Tensor:
        """Queue one bucket. Returns (n, dim) on the device without waiting; adds to
        n_padded_tokens."""

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """ids: (T,) int32 with special tokens; offsets: (N+1,) int64. Returns (N, dim) float32,
        C-contiguous.

        A text without tokens gives a row of NaN. NaN or inf from the model are returned as they
        are. Raises torch.OutOfMemoryError when a single text does not fit.
        """
        started = time.perf_counter()
        n_tokens = np.diff(offsets)
        vectors = np.empty((n_tokens.size, self.dim), dtype=np.float32)
        vectors[n_tokens == 0] = np.nan
        filled = np.flatnonzero(n_tokens)
        sink = _Sink(vectors, self.device)
        for bucket in self._buckets(n_tokens[filled], lambda: self.budget_tokens):
            self._embed_bucket(ids, offsets, filled[bucket], sink)
            if self.on_bucket:
                self.on_bucket(int(n_tokens[filled[bucket]].sum()))
        sink.flush()
        self.stats.n_texts += n_tokens.size
        self.stats.n_tokens += int(n_tokens.sum())
        self.stats.seconds += time.perf_counter() - started
        return vectors

    def _embed_bucket(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows, sink: _Sink
    ) -> None:
        """Embed one bucket, in smaller pieces where memory does not hold it. The smaller budget
        stays in force."""
        queue = [rows]
        while queue:
            rows = queue.pop()
            try:
                result = self._forward(ids, offsets, rows)
            except torch.OutOfMemoryError:
                if rows.size == 1:
                    raise
                result = None
            # outside `except`: the exception would keep the failed tensors alive
            if result is None:
                sink.flush()
                torch.cuda.empty_cache()
                self.stats.n_oom_halvings += 1
                half = rows.size // 2
                queue += [rows[half:], rows[:half]]
                n_tokens = int((offsets[rows + 1] - offsets[rows]).sum())
                self.budget_tokens = max(1, min(self.budget_tokens, n_tokens // 2))
                log.warning(
                    "out of memory at %d rows: budget is now %d tokens",
                    rows.size,
                    self.budget_tokens,
                )
                continue
            self.stats.n_batches += 1
            sink.put(rows, result)


class _Sink:
    """Writes results into `vectors`; on a GPU through pinned memory and one step late."""

    def __init__(self, vectors: NDArray[np.float32], device: str) -> None:
        self._vectors = vectors
        self._asynchronous = device.startswith("cuda")
        self._pending: tuple[Rows, torch.Tensor, torch.cuda.Event] | None = None

    def put(self, rows: Rows, result: torch.Tensor) -> None:
        if not self._asynchronous:
            self._vectors[rows] = result.float().numpy()
            return
        # torch caches pinned blocks and hands one out again only when the copy that used it has
        # ended.
        host = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(result.float(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.flush()
        self._pending = (rows, host, event)

    def flush(self) -> None:
        if self._pending is not None:
            rows, host, event = self._pending
            event.synchronize()
            self._vectors[rows] = host.numpy()
            self._pending = None


def check_ids(ids: NDArray[np.int32], vocab_size: int) -> None:
    """Raises ModelError for an id outside the table of `vocab_size` rows: on a GPU it would end the
    process."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ModelError(
            f"token ids reach from {ids.min()} to {ids.max()}, but the model has {vocab_size}. "
            "The tokenizer belongs to another model. Restore the directory from its source."
        )


def to_device(array: NDArray[Any], device: str) -> torch.Tensor:
    """Host array → device without waiting, through pinned memory on a GPU."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else host
