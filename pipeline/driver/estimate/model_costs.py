"""What a model costs to run, read from the headers of its weights: parameters, operations a token,
memory.

In: a model directory and the sampled lengths. Out: a `ModelCosts`. Method: a product with a weight
takes two operations a token, so a token takes two for each parameter outside of the tables that are
looked up, and attention four for each layer, hidden dimension and token that it sees. Cost: two
small reads a file.
"""

from __future__ import annotations

import dataclasses
import math

from pipeline.job.model.directory import ModelDir
from pipeline.job.model.weight_files import tensor_shapes

__all__ = ["DTYPE_BYTES", "ModelCosts", "costs_of"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

_TABLES = ("embed", "wte", "wpe")
"""Words in the names of weights that are looked up and not multiplied with."""

_LIVE_VECTORS = 8
"""Vectors of the hidden dimension that a layer holds for each token beside those of its MLP:
residual, normed, query, key, value, context, output, one spare."""


@dataclasses.dataclass(frozen=True)
class ModelCosts:
    """parameters: of all weights; multiplied: of those that a token is multiplied with. hidden,
    inner, layers: 0 where config.json does not say."""

    parameters: int
    multiplied: int
    hidden: int
    inner: int
    layers: int

    def flops_per_token(self, seen_tokens: float) -> float:
        """Operations for one token. seen_tokens: how many tokens one sees on average, itself
        included: the sum of squared lengths over the sum of lengths."""
        return 2.0 * self.multiplied + 4.0 * self.layers * self.hidden * seen_tokens

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * DTYPE_BYTES[dtype]

    def activation_bytes(self, dtype: str, batch_tokens: int) -> int:
        """Roughly the memory of a forward pass over `batch_tokens`."""
        per_token = _LIVE_VECTORS * self.hidden + 2 * self.inner
        return per_token * batch_tokens * max(2, DTYPE_BYTES[dtype])


def costs_of(model: ModelDir) -> ModelCosts:
    """Raises ModelError for weights that are not whole."""
    shapes = tensor_shapes(model.transformer_path)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    multiplied = sum(
        size
        for name, size in sizes.items()
        if len(shapes[name]) > 1 and not any(word in name.lower() for word in _TABLES)
    )

    def stated(*names: str) -> int:
        values = (model.config.get(name) for name in names)
        return next((value for value in values if isinstance(value, int)), 0)

    hidden = stated("hidden_size", "dim", "d_model", "n_embd")
    return ModelCosts(
        parameters=sum(sizes.values()),
        multiplied=multiplied,
        hidden=hidden,
        inner=stated("intermediate_size", "hidden_dim", "d_ff", "n_inner") or 4 * hidden,
        layers=stated("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    )
