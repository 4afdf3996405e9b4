"""The unpadded engine: flat (tokens, hidden) matrices through forwards of this package for the
families that the models need.

In and out: see `Engine`. Method: weights are read from safetensors and rearranged once (query, key
and value in one matrix); a bucket is one flat sequence of tokens, so every matrix product works on
real tokens only, and only attention knows rows. Pooling by one token (cls, last_token) needs the
last layer's query, output projection and FFN for that token alone, which is exact and saves up to a
layer. Cost: benchmarks/engine.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.embed.attention import PackedBatch, attention_for, pack
from pipeline.embed.buckets import Ids, Offsets, Rows
from pipeline.embed.budget import device_key, remembered_budget
from pipeline.embed.choice import Shape
from pipeline.embed.engine import Engine
from pipeline.embed.forward import Forward
from pipeline.embed.head import load_head
from pipeline.embed.layers import Weights
from pipeline.embed.linear import Linear
from pipeline.embed.pooling import keep_real, pool, single_token_index
from pipeline.embed.watch import Watch
from pipeline.embed.weights import read_weights
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir

__all__ = ["PackedEngine"]

_WATCHED_TEXTS = 16
_WATCHED_TOKENS = 32


class PackedEngine(Engine):
    """Runs a packed forward. `name` is "packed_" and the model type, as in packed_bert. Raises
    ModelError for damaged weights."""

    def __init__(
        self,
        model: ModelDir,
        options: EngineOptions,
        unpooled_tokens: int,
        shape: Shape,
        is_tuned: bool,
    ) -> None:
        weights = read_weights(model, shape, options)
        linear: Callable[..., Linear] = Linear
        if options.dtype == "int8":
            linear = _int8_layers(shape, weights, model.positions)
        self._body = body = Forward(*shape, weights, linear, is_tuned=is_tuned)
        default_budget = body.default_budget_tokens[options.device.split(":")[0]]
        if options.device == "cpu" and options.dtype != "float32":
            default_budget *= 2  # the cache holds twice as many: 2-8 % (benchmarks/LOG.md)
        super().__init__(options, default_budget)
        self._unpooled_tokens = unpooled_tokens
        self.name = f"packed_{model.config['model_type']}"
        self.n_ids = body.vocab_size
        self.positions = model.positions
        self._head = load_head(model, options)
        self._trims = options.pooling in body.single_token_poolings
        self._attention = attention_for(options.device)
        self.dim = self._width()
        if is_tuned and options.device.startswith("cuda") and not options.max_batch_tokens:
            self.budget_tokens = remembered_budget(self, device_key(model.files, self))

    @property
    def tuning(self) -> dict[str, str]:
        return {**super().tuning, "compiled": ", ".join(self._body.compiled_steps)}

    def _forward(self, ids: Ids, offsets: Offsets, rows: Rows) -> tuple[torch.Tensor, int]:
        batch = pack(ids, offsets, rows, self.device)
        vectors = self._vectors(batch)
        # what is not finite in a row can have reached the row before it
        if batch.stretches and not vectors.sum().isfinite():
            vectors = self._vectors(batch.apart())
        return vectors, batch.ids.shape[0]

    def _vectors(self, batch: PackedBatch) -> torch.Tensor:
        how = (self.options.pooling, self._unpooled_tokens)
        pooled = single_token_index(batch, *how) if self._trims else None
        hidden = self._body.forward(batch, self._attention, pooled)  # (n, D) or (T, D)
        if self._trims:
            vectors = keep_real(hidden.float(), batch, *how)
        else:
            vectors = pool(hidden, batch, *how)
        return self._head(vectors)


@torch.inference_mode()
def _int8_layers(shape: Shape, weights: Weights, positions: int | None) -> Callable[..., Linear]:
    """Makes layers in int8, after a forward of random ids in float32 has shown what they are given.
    Such ids show as well as real texts what channels hold (benchmarks/RESULTS.md)."""
    n_tokens = min(_WATCHED_TOKENS, positions or _WATCHED_TOKENS)
    ids = np.random.default_rng(0).integers(shape.sizes.vocab, size=(_WATCHED_TEXTS, n_tokens))
    offsets = np.arange(0, ids.size + 1, n_tokens)
    batch = pack(ids.astype(np.int32).ravel(), offsets, np.arange(_WATCHED_TEXTS), "cpu")
    watch = Watch()
    Forward(*shape, weights, watch).forward(batch, attention_for("cpu"), None)
    return watch.rounded()
