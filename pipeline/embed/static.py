"""The engine of a StaticEmbedding model: a vector is the mean of its tokens' rows in one table,
without a transformer.

In and out: see `Engine`. Method: one `embedding_bag` a bucket; rows are in the job's dtype, sums in
float32. Source: sentence-transformers' StaticEmbedding, also for tables of model2vec, whose mapping
and weights are folded in once. Cost: one row of the table read per token; tokenizing takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import embedding_bag

from pipeline.embed.attention import pack
from pipeline.embed.buckets import Rows, packed_buckets
from pipeline.embed.engine import DTYPES, Engine
from pipeline.embed.head import load_head
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir

__all__ = ["StaticEngine"]

DEFAULT_BUDGET_TOKENS = 1 << 17


class StaticEngine(Engine):
    """Raises ModelError for damaged weights."""

    name = "static"

    def __init__(self, model: ModelDir, options: EngineOptions) -> None:
        super().__init__(options, DEFAULT_BUDGET_TOKENS)
        self._table = (
            _read_table(model.transformer_path).to(DTYPES[options.dtype]).float().to(options.device)
        )
        self.n_ids = self._table.shape[0]
        self._head = load_head(model, options.normalize, options.truncate_dim).to(options.device)
        with torch.inference_mode():
            self.dim = int(self._head(self._table[:1]).shape[1])

    def _buckets(
        self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]
    ) -> Iterator[Rows]:
        return packed_buckets(n_tokens, budget_tokens)

    def _forward(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows
    ) -> tuple[torch.Tensor, int]:
        batch = pack(ids, offsets, rows, self.device)
        means = embedding_bag(
            batch.ids, self._table, batch.starts, mode="mean", include_last_offset=True
        )
        return self._head(means), batch.ids.shape[0]


def _read_table(directory: Path) -> torch.Tensor:
    """(vocabulary, D), one row a token id."""
    try:
        stored = load_file(directory / "model.safetensors")
        table = stored["embedding.weight"] if "embedding.weight" in stored else _folded(**stored)
        if table.ndim != 2:
            raise ValueError(f"a table of shape {tuple(table.shape)}")
    except (OSError, SafetensorError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{directory}: model.safetensors with 'embedding.weight', or 'embeddings' of "
            f"model2vec, could not be read: {type(error).__name__}: {error}. Restore it from its "
            "source."
        ) from error
    return table


def _folded(
    embeddings: torch.Tensor,
    mapping: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """model2vec: the row of a token is `embeddings[mapping[token]] * weights[token]`."""
    rows = embeddings.float() if mapping is None else embeddings.float()[mapping.long()]
    return rows if weights is None else rows * weights.float()[:, None]
