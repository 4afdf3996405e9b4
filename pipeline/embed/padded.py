"""The engine for every sentence-transformers directory: the library's own modules, fed with padded
length buckets.

In and out: see `Engine`. Method: `SentenceTransformer(directory)` does the forward pass and the
pooling; only the batching differs (rows sorted by token count, a token budget instead of a batch
size, no tokenizing between steps). Rows are always padded on the right, also where the tokenizer
pads on the left: with a mask that is exact for learned, rotary and relative positions alike. Cost:
padding included, see `EngineStats.padding_share`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers.utils import logging as transformers_logging

from pipeline.embed.buckets import Rows, flat_index, padded_buckets
from pipeline.embed.engine import DTYPES, Engine, to_device
from pipeline.embed.head import Head, before_normalize
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model_dir import POOLINGS, ModelDir

DEFAULT_BUDGET_TOKENS = {"cpu": 2048, "cuda": 16384}
"""A CPU is fastest while a layer's activations stay in its cache, a GPU when its multiprocessors
are full."""

_NAME_IN_LIBRARY = {ours: theirs for theirs, ours in POOLINGS.items()}


class PaddedEngine(Engine):
    """Serves what sentence-transformers serves. Raises ModelError when that cannot load the
    directory."""

    name = "padded"

    def __init__(self, model: ModelDir, options: EngineOptions, unpooled_tokens: int) -> None:
        super().__init__(options, DEFAULT_BUDGET_TOKENS[options.device.split(":")[0]])
        self._unpooled_tokens = unpooled_tokens
        with _quiet_loading():
            modules = _load_modules(model, options)
        pooled_at = next(i for i, module in enumerate(modules) if isinstance(module, Pooling))
        # Not the transformer, which came in this dtype: rotary frequencies stay float32 in it, or
        # far tokens move.
        for module in modules[1 : pooled_at + 1]:
            module.to(DTYPES[options.dtype])
        self._body = torch.nn.Sequential(*modules[: pooled_at + 1]).to(options.device).eval()
        behind = before_normalize(modules[pooled_at + 1 :], lambda module: type(module).__name__)
        self._head = Head(behind, options.normalize, options.truncate_dim).to(options.device).eval()
        pad = getattr(modules[0].config, "pad_token_id", None)
        # RoBERTa counts positions by it
        self._pad_id = int(pad) if isinstance(pad, int) and pad >= 0 else 0
        self._has_types = _has_token_types(model, modules[0].tokenizer)
        try:
            self.dim = int(self.embed_one_token().shape[1])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"{model.path}: the model's own forward fails in dtype {options.dtype!r}: {error}. "
                "Set model.dtype to 'float32'."
            ) from error

    def embed_one_token(self) -> torch.Tensor:
        """(1, dim): the dimension is measured, never read from a config file."""
        with torch.inference_mode():
            n_ids = 1 + self._unpooled_tokens
            return self._forward(np.zeros(n_ids, np.int32), np.array([0, n_ids]), np.array([0]))

    def _buckets(
        self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]
    ) -> Iterator[Rows]:
        return padded_buckets(n_tokens, budget_tokens)

    def _forward(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows
    ) -> torch.Tensor:
        n_tokens = offsets[rows + 1] - offsets[rows]
        indices, positions = flat_index(offsets, rows)
        line = np.repeat(np.arange(rows.size), n_tokens)
        batch = np.full((2, rows.size, int(n_tokens.max())), self._pad_id, dtype=np.int64)
        batch[1] = 0
        batch[0, line, positions] = ids[indices]
        batch[1, line, positions] = 1
        input_ids, attention_mask = to_device(batch, self.device)  # (n, longest) each
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        if self._has_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        if self._unpooled_tokens:
            features["prompt_length"] = self._unpooled_tokens
        pooled = self._body(features)["sentence_embedding"]  # (n, D)
        self.stats.n_padded_tokens += batch[0].size
        return self._head(pooled.float())


def _has_token_types(model: ModelDir, tokenizer: Any) -> bool:
    """Whether token types are fed. All are 0 then, which for GPT-2 is not the same as none.

    Raises ModelError for other types.
    """
    types = tokenizer("a").get("token_type_ids")
    if types is not None and any(types):
        raise ModelError(
            f"{model.path}: its tokenizer gives token types {types}; only type 0 is supported."
        )
    return types is not None


def _load_modules(model: ModelDir, options: EngineOptions) -> list[Any]:
    weights = {"use_safetensors": True, "dtype": DTYPES[options.dtype]}
    try:
        if model.modules:
            loaded = SentenceTransformer(
                str(model.path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs=weights,
            )
            modules: list[Any] = list(loaded)
        else:
            local = {"local_files_only": True}
            modules = [
                Transformer(
                    str(model.path),
                    model_kwargs={**weights, **local},
                    processor_kwargs=local,
                    config_kwargs=local,
                )
            ]
    except Exception as error:
        raise ModelError(
            f"{model.path}: sentence-transformers could not load the model: "
            f"{type(error).__name__}: {error}"
        ) from error
    if options.pooling != model.pooling:
        modes = tuple(_NAME_IN_LIBRARY[mode] for mode in options.pooling.split("+"))
        at = next(
            (i for i, module in enumerate(modules) if isinstance(module, Pooling)), len(modules)
        )
        width = modules[0].get_embedding_dimension()
        modules[at : at + 1] = [Pooling(width, modes, include_prompt=model.include_prompt)]
    return modules


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars, which would fill the log of every worker."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
