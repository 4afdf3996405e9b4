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
from pipeline.embed.engine import DTYPES, Engine, check_ids
from pipeline.embed.families import FAMILIES
from pipeline.embed.forward import Forward
from pipeline.embed.head import load_head
from pipeline.embed.int8 import Int8Linear
from pipeline.embed.linear import Linear
from pipeline.embed.pooling import keep_real, pool, single_token_index
from pipeline.embed.rotary import Unsupported
from pipeline.embed.weights import own_name, read_weights
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.weight_files import tensor_shapes

__all__ = ["PackedEngine", "load_packed"]


class PackedEngine(Engine):
    """Runs a packed forward. `name` is "packed_" and the model type, as in packed_bert."""

    def __init__(
        self,
        model: ModelDir,
        options: EngineOptions,
        unpooled_tokens: int,
        body: Forward,
    ) -> None:
        default_budget = body.default_budget_tokens[options.device.split(":")[0]]
        if options.device == "cpu" and options.dtype != "float32":
            default_budget *= 2  # the cache holds twice as many: 2-8 % (benchmarks/LOG.md)
        super().__init__(options, default_budget)
        self._unpooled_tokens = unpooled_tokens
        self.name = f"packed_{model.config['model_type']}"
        self._body = body
        self._model_positions = model.positions
        self._head = load_head(model, options.normalize, options.truncate_dim).to(options.device)
        self._trims = options.pooling in body.single_token_poolings
        self._attention = attention_for(options.device)
        with torch.inference_mode():
            self.dim = int(
                self._forward(np.zeros(1, np.int32), np.array([0, 1]), np.array([0])).shape[1]
            )
        self.stats.n_padded_tokens = 0
        if options.device.startswith("cuda") and not options.max_batch_tokens:
            self.budget_tokens = remembered_budget(self, device_key(model.files, self))

    def embed(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        longest = int(np.diff(offsets).max(initial=0))
        if self._model_positions is not None and longest > self._model_positions:
            raise ModelError(
                f"a text of {longest} tokens is longer than the {self._model_positions} positions "
                "of the model. Set model.max_tokens lower."
            )
        check_ids(ids, self._body.vocab_size)
        return super().embed(ids, offsets)

    def _buckets(
        self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]
    ) -> Iterator[Rows]:
        return packed_buckets(n_tokens, budget_tokens)

    def _forward(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows
    ) -> torch.Tensor:
        mode = self.options.pooling
        prompt_tokens = self._unpooled_tokens
        batch = pack(ids, offsets, rows, self.device)
        self.stats.n_padded_tokens += int(batch.ids.shape[0])
        if self._trims:
            pooled = single_token_index(batch, mode, prompt_tokens)
            hidden = self._body.forward(batch, self._attention, pooled)  # (n, D)
            return self._head(keep_real(hidden.float(), batch, mode, prompt_tokens))
        hidden = self._body.forward(batch, self._attention, None)  # (T, D)
        return self._head(pool(hidden, batch, mode, prompt_tokens))


def load_packed(
    model: ModelDir, options: EngineOptions, unpooled_tokens: int
) -> PackedEngine | str:
    """The engine, or the reason why this model or these options need the padded one.

    Raises ModelError for damaged weights.
    """
    config = model.config
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        return f"model_type {kind!r} is not one of {sorted(FAMILIES)}"
    if options.device != "cpu" and options.dtype == "float32":
        return "variable-length attention on a GPU needs bfloat16 or float16"
    modules = [module.kind for module in model.modules]
    before = modules[1 : modules.index("Pooling")] if model.pooling else []
    if before:
        return f"modules stand between transformer and pooling: {before}"
    if model.forward_settings:
        return f"sentence-transformers' config file sets {list(model.forward_settings)}"
    if (
        config.get("quantization_config")
        or (model.transformer_path / "adapter_config.json").is_file()
    ):
        return "its weights are quantized or come with an adapter"
    family = FAMILIES[kind]
    try:
        sizes = family.read(config)
    except Unsupported as reason:
        return str(reason)
    except KeyError as name:
        return f"config.json does not say {name}"
    shapes = family.shapes(sizes)
    stored = {own_name(name, family.prefix) for name in tensor_shapes(model.transformer_path)}
    if shapes.keys().isdisjoint(stored):
        return f"its weights have other names than those of {kind}"
    dtype = DTYPES[options.dtype]
    weights = read_weights(model.transformer_path, shapes, family.prefix, dtype, options.device)
    linear = Int8Linear if options.dtype == "int8" else Linear
    body = Forward(family, sizes, weights, linear)
    return PackedEngine(model, options, unpooled_tokens, body)
