"""The settled options of an engine: what a job or a model directory says, with no "auto" left.

A `ModelDir` and what a job chose instead of it come in; `EngineOptions` come out, which a `Job`
carries to every worker and `load_engine` follows. No torch: the driver and tokenizing workers do
without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model.directory import POOLINGS, ModelDir

__all__ = ["EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine pools, normalizes and computes, and on which device."""

    pooling: str
    """cls | mean | max | last_token | weighted_mean | mean_sqrt_len, several joined by "+"."""
    normalize: bool
    truncate_dim: int | None = None
    """Leading dimensions of a vector that are kept; None keeps all."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16 | int8."""
    device: str = "cpu"
    """cpu | cuda, or cuda:0 and so on."""
    engine: str = "auto"
    """packed | padded; "auto" takes the fastest engine that serves the model."""
    max_batch_tokens: int | None = None
    """Tokens of one forward pass; None takes the engine's own budget."""
    include_prompt: bool | None = None
    """Whether pooling takes the prompt in, as the model directory says; None where that has not
    been read. Engines ask the directory itself: this spares the driver from reading it again."""

    @classmethod
    def of(
        cls,
        model: ModelDir,
        *,
        pooling: str = "auto",
        normalize: bool | str = "auto",
        truncate_dim: int | None = None,
        **others: Any,
    ) -> EngineOptions:
        """The options of `model`: "auto" and None mean what its directory says.

        Raises ModelError when neither `pooling` nor the directory names a pooling, and for one
        whose vectors do not fit the directory's Dense.
        """
        named = model.pooling if pooling == "auto" else pooling
        if named is None:
            raise ModelError(
                f"{model.path}: the directory names no pooling (no Pooling in modules.json). "
                f"Set model.pooling to one of {sorted(POOLINGS.values())}; the model card says "
                "which."
            )
        n_modes = len(named.split("+"))
        has_dense = any(module.kind == "Dense" for module in model.modules)
        if model.pooling and n_modes != len(model.pooling.split("+")) and has_dense:
            raise ModelError(
                f"{model.path}: pooling {named!r} gives vectors of another width than "
                f"{model.pooling!r}, for which the Dense behind it was made. Set model.pooling to "
                "'auto'."
            )
        return cls(
            pooling=named,
            normalize=model.normalize if normalize == "auto" else bool(normalize),
            truncate_dim=model.truncate_dim if truncate_dim is None else truncate_dim,
            include_prompt=model.include_prompt,
            **others,
        )
