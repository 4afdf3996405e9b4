"""The unpadded engine: flat (tokens, hidden) matrices through forwards of this package for the
families that the models need.

In and out: see `Engine`. Method: weights are read from safetensors and rearranged once (query, key
and value in one matrix); a bucket is one flat sequence of tokens, so every matrix product works on
real tokens only, and only attention knows rows. Pooling by one token (cls, last_token) needs the
last layer's query, output projection and FFN for that token alone, which is exact and saves up to a
layer. Cost: benchmarks/engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embed.attention import attention_for, pack
from pipeline.embed.buckets import Rows, packed_buckets
from pipeline.embed.budget import device_key, remembered_budget
from pipeline.embed.choice import Shape
from pipeline.embed.engine import DTYPES, Engine
from pipeline.embed.forward import Forward
from pipeline.embed.head import load_head
from pipeline.embed.int8 import Watch
from pipeline.embed.linear import Linear
from pipeline.embed.pooling import keep_real, pool, single_token_index
from pipeline.embed.weights import read_weights
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir

__all__ = ["PackedEngine", "load_packed"]

_WATCHED_TEXTS = 16
_WATCHED_TOKENS = 32
"""Of random ids, which show as well as real texts what channels hold (benchmarks/RESULTS.md)."""


class PackedEngine(Engine):
    """Runs a packed forward. `name` is "packed_" and the model type, as in packed_bert."""

    def __init__(
        self,
        model: ModelDir,
        options: EngineOptions,
        unpooled_tokens: int,
        body: Forward,
        is_tuned: bool,
    ) -> None:
        default_budget = body.default_budget_tokens[options.device.split(":")[0]]
        if options.device == "cpu" and options.dtype != "float32":
            default_budget *= 2  # the cache holds twice as many: 2-8 % (benchmarks/LOG.md)
        super().__init__(options, default_budget)
        self._unpooled_tokens = unpooled_tokens
        self.name = f"packed_{model.config['model_type']}"
        self._body = body
        self.n_ids = body.vocab_size
        self.positions = model.positions
        self._head = load_head(model, options.normalize, options.truncate_dim).to(options.device)
        self._trims = options.pooling in body.single_token_poolings
        self._attention = attention_for(options.device)
        with torch.inference_mode():
            vector, _ = self._forward(np.zeros(1, np.int32), np.array([0, 1]), np.array([0]))
        self.dim = vector.shape[1]
        if is_tuned and options.device.startswith("cuda") and not options.max_batch_tokens:
            self.budget_tokens = remembered_budget(self, device_key(model.files, self))

    @property
    def tuning(self) -> dict[str, str]:
        return {**super().tuning, "compiled": ", ".join(self._body.compiled_steps)}

    def _buckets(
        self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]
    ) -> Iterator[Rows]:
        return packed_buckets(n_tokens, budget_tokens)

    def _forward(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows
    ) -> tuple[torch.Tensor, int]:
        mode = self.options.pooling
        prompt_tokens = self._unpooled_tokens
        batch = pack(ids, offsets, rows, self.device)
        n_tokens = batch.ids.shape[0]
        if self._trims:
            pooled = single_token_index(batch, mode, prompt_tokens)
            hidden = self._body.forward(batch, self._attention, pooled)  # (n, D)
            return self._head(keep_real(hidden.float(), batch, mode, prompt_tokens)), n_tokens
        hidden = self._body.forward(batch, self._attention, None)  # (T, D)
        return self._head(pool(hidden, batch, mode, prompt_tokens)), n_tokens


def load_packed(
    model: ModelDir, options: EngineOptions, unpooled_tokens: int, shape: Shape, is_tuned: bool
) -> PackedEngine:
    """Raises ModelError for damaged weights."""
    family, sizes = shape
    dtype = DTYPES[options.dtype]
    weights = read_weights(
        model.transformer_path, family.shapes(sizes), family.prefix, dtype, options.device
    )
    linear: Callable[..., Linear] = Linear
    if options.dtype == "int8":
        watch = Watch()
        n_tokens = min(_WATCHED_TOKENS, model.positions or _WATCHED_TOKENS)
        ids = np.random.default_rng(0).integers(sizes.vocab, size=(_WATCHED_TEXTS, n_tokens))
        batch = pack(
            ids.astype(np.int32).ravel(),
            np.arange(0, ids.size + 1, n_tokens),
            np.arange(_WATCHED_TEXTS),
            options.device,
        )
        with torch.inference_mode():
            Forward(family, sizes, weights, watch).forward(
                batch, attention_for(options.device), None
            )
        linear = watch.rounded()
    body = Forward(family, sizes, weights, linear, is_tuned=is_tuned)
    return PackedEngine(model, options, unpooled_tokens, body, is_tuned)
