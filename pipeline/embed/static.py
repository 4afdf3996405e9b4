"""The engine of a StaticEmbedding model: a vector is the mean of its tokens' rows in one table,
without a transformer.

In and out: see `Engine`. Method: one `embedding_bag` a bucket; rows are in the job's dtype, sums in
float32. Source: sentence-transformers' StaticEmbedding, also for tables of model2vec, whose mapping
and weights are folded in once. Cost: one row of the table read per token; tokenizing takes longer.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.embed.attention import pack
from pipeline.embed.buckets import Ids, Offsets, Rows
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
        table = _read_table(model.transformer_path).to(DTYPES[options.dtype])
        self._table = table.float().to(options.device)
        self.n_ids = len(table)
        self._head = load_head(model, options)
        self.dim = self._width()

    def _forward(self, ids: Ids, offsets: Offsets, rows: Rows) -> tuple[Tensor, int]:
        batch = pack(ids, offsets, rows, self.device)
        means = embedding_bag(
            batch.ids, self._table, batch.starts, mode="mean", include_last_offset=True
        )
        return self._head(means), batch.ids.shape[0]


def _read_table(directory: Path) -> Tensor:
    """(vocabulary, D), one row a token id."""
    try:
        stored = load_file(directory / "model.safetensors")
        table = stored["embedding.weight"] if "embedding.weight" in stored else _folded(**stored)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"a table of shape {tuple(table.shape)}")
    except (OSError, SafetensorError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{directory}: model.safetensors with 'embedding.weight', or 'embeddings' of "
            f"model2vec, could not be read: {type(error).__name__}: {error}. Restore it from its "
            "source."
        ) from error
    return table


def _folded(
    embeddings: Tensor, mapping: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """model2vec: the row of a token is `embeddings[mapping[token]] * weights[token]`."""
    rows = embeddings.float() if mapping is None else embeddings.float()[mapping.long()]
    return rows if weights is None else rows * weights.float()[:, None]
