"""The unpadded engine: flat (tokens, hidden) matrices through our own forward of the two families the models
need.

In and out: see `Engine`. Method: weights are read by transformers and rearranged once (query, key and value
in one matrix); a bucket is one flat row of tokens, so every GEMM works on real tokens only and only attention
knows rows. Pooling by one token (cls, last_token) needs the last layer's query, output projection and FFN for
that token alone, which is exact and saves up to a layer. Cost: benchmarks/engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from pipeline.embed.attention import attention_for, pack
from pipeline.embed.base import DTYPES, Engine, EngineOptions, quiet_loading
from pipeline.embed.buckets import Rows, packed_buckets
from pipeline.embed.head import load_head
from pipeline.embed.packed_bert import PackedBert
from pipeline.embed.packed_llama import PackedLlama
from pipeline.embed.pooling import keep_real, pool, single_token_index
from pipeline.errors import ModelError
from pipeline.model_dir import ModelDir

__all__ = ["PackedEngine", "load_packed"]

FAMILIES: dict[str, type[PackedBert] | type[PackedLlama]] = {"bert": PackedBert, "llama": PackedLlama}
"""`model_type` of config.json → its forward. A new family is one file and one line here."""


class PackedEngine(Engine):
    """Runs a packed forward. `name` is packed_bert or packed_llama."""

    def __init__(self, model: ModelDir, options: EngineOptions, body: PackedBert | PackedLlama) -> None:
        super().__init__(options)
        self.name = f"packed_{model.config['model_type']}"
        self._body = body
        self._head = load_head(model, options.normalize, options.truncate_dim).to(options.device)
        self._trims = options.pooling in body.single_token_poolings
        self._attention = attention_for(options.device)
        self.budget_tokens = options.max_batch_tokens or body.default_budget_tokens[options.device.split(":")[0]]
        with torch.inference_mode():
            self.dim = int(self._forward(np.zeros(1, np.int32), np.array([0, 1]), np.array([0])).shape[1])
        self.stats.n_padded_tokens = 0

    def embed(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        longest = int(np.diff(offsets).max(initial=0))
        if longest > self._body.max_tokens:
            raise ModelError(
                f"a text of {longest} tokens is longer than the {self._body.max_tokens} positions of the model. "
                "Lower model.max_tokens."
            )
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._body.vocab_size:
            raise ModelError(
                f"token ids reach from {ids.min()} to {ids.max()}, the model has {self._body.vocab_size}. "
                "The tokenizer belongs to another model."
            )
        return super().embed(ids, offsets)

    def _buckets(self, n_tokens: NDArray[np.int64], budget_tokens: Callable[[], int]) -> Iterator[Rows]:
        return packed_buckets(n_tokens, budget_tokens)

    def _forward(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows) -> torch.Tensor:
        mode, prompt_tokens = self.options.pooling, self.options.prompt_tokens
        batch = pack(ids, offsets, rows, self.device)
        self.stats.n_padded_tokens += int(batch.ids.shape[0])
        if self._trims:
            wanted = single_token_index(batch, mode, prompt_tokens)
            hidden = self._body.forward(batch, self._attention, wanted)  # (n, D)
            return self._head(keep_real(hidden.float(), batch, mode, prompt_tokens))
        hidden = self._body.forward(batch, self._attention, None)  # (T, D)
        return self._head(pool(hidden, batch, mode, prompt_tokens))


def load_packed(model: ModelDir, options: EngineOptions) -> PackedEngine | str:
    """The engine, or the reason why this model or these options need the padded one. Raises ModelError for
    damage.
    """
    family = FAMILIES.get(str(model.config.get("model_type")))
    if family is None:
        return f"model_type {model.config.get('model_type')!r} is not one of {sorted(FAMILIES)}"
    if options.device != "cpu" and options.dtype == "float32":
        return "variable-length attention on a GPU needs bfloat16 or float16"
    before = (
        [m.kind for m in model.modules[1 : [m.kind for m in model.modules].index("Pooling")]] if model.pooling else []
    )
    if before:
        return f"modules stand between transformer and pooling: {before}"
    try:
        with quiet_loading(warnings=False):  # what is missing is checked below
            body, info = AutoModel.from_pretrained(
                str(model.transformer_path),
                dtype=DTYPES[options.dtype],
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        raise ModelError(
            f"{model.transformer_path}: transformers could not load the model: {type(error).__name__}: {error}"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise ModelError(
            f"{model.transformer_path}: the weights lack or do not fit {(missing or sorted(info['mismatched_keys']))[:3]}, "
            "which would be drawn at random. Restore the files from their source."
        )
    reason = family.unsupported(body)
    if reason:
        return reason
    return PackedEngine(model, options, family(body.eval(), options.device))
