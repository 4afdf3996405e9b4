"""The engine for every sentence-transformers directory: the library's own modules, fed with padded
length buckets.

In and out: see `Engine`. Method: `SentenceTransformer(directory)` does the forward pass and the
pooling; only the batching differs (rows sorted by token count, a token budget instead of a batch
size, no tokenizing between steps). Rows are always padded on the right, also where the tokenizer
pads on the left: with a mask that is exact for learned, rotary and relative positions alike. Cost:
padding included, see `EngineStats.padding_share`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.embed.buckets import Ids, Offsets, Rows, flat_index, padded_buckets
from pipeline.embed.engine import DTYPES, Engine, to_device
from pipeline.embed.head import load_head
from pipeline.embed.memory import is_out_of_memory
from pipeline.embed.rotary import depends_on_length
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import POOLINGS, ModelDir

log = logging.getLogger(__name__)

DEFAULT_BUDGET_TOKENS = {"cpu": 2048, "cuda": 16384}
"""A CPU is fastest while a layer's activations stay in its cache, a GPU when its multiprocessors
are full."""

PROBE_TOKENS = 8
"""Length of the text that is embedded at load: Funnel and other architectures that pool neighbours
cannot take one token."""

LONGEST_PROBE_TOKENS = 1_100
"""Length of the longest text of the probe for padding: BigBird's attention changes at 704 tokens.
"""

PADDING_NOISE = {"float32": 1e-5, "bfloat16": 5e-4, "float16": 1e-4}
"""1 - cosine between a text alone and beside others, up to which only the order of sums differs."""

EXACT_WHEN_PADDED = {
    *("bert", "distilbert", "gemma3_text", "gpt2", "llama", "mistral", "modernbert", "mpnet"),
    *("nomic_bert", "qwen3", "roberta", "t5", "xlm-roberta"),
}
"""Values of `model_type` whose mask is exact: the tests hold them to it, and loading does not probe
them."""

_NAME_IN_LIBRARY = {ours: theirs for theirs, ours in POOLINGS.items()}


class PaddedEngine(Engine):
    """Serves what sentence-transformers serves. Raises ModelError when that cannot load the
    directory."""

    name = "padded"

    def __init__(self, model: ModelDir, options: EngineOptions, unpooled_tokens: int) -> None:
        super().__init__(options, DEFAULT_BUDGET_TOKENS[options.device.split(":")[0]])
        self._unpooled_tokens = unpooled_tokens
        body = _load_body(model, options)
        transformer = body[0]
        self._body = torch.nn.Sequential(*body).to(options.device).eval()
        # rounded as the library rounds its own
        self._head = load_head(model, options).to(DTYPES[options.dtype]).float()
        pad = getattr(transformer.config, "pad_token_id", None)
        # RoBERTa counts positions by it
        self._pad_id = int(pad) if isinstance(pad, int) and pad >= 0 else 0
        self._has_types = _has_token_types(model, transformer.tokenizer)
        self.dim = self._measured_dim(model)
        # transformers follows any other value of is_causal only where nothing is masked
        is_exact = (
            model.config.get("model_type") in EXACT_WHEN_PADDED
            and model.config.get("is_causal", False) is False
        )
        self._of_one_length = depends_on_length(model.config) or (
            not is_exact and self._sees_neighbours(model, transformer)
        )
        if self._of_one_length:
            log.info("%s: vectors depend on padding, so no bucket is padded", model.path)

    def _measured_dim(self, model: ModelDir) -> int:
        n_ids = PROBE_TOKENS + self._unpooled_tokens
        if model.positions is not None:
            n_ids = min(n_ids, model.positions)
        try:
            return self._width(n_ids)
        # the library's modules raise whatever a missing feature makes Python raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            advice = (
                "Use another model." if self.dtype == "float32" else "Set model.dtype to 'float32'."
            )
            raise ModelError(
                f"{model.path}: the model's own forward fails on a text of {n_ids} tokens in dtype "
                f"{self.dtype!r}: {type(error).__name__}: {error}. {advice}"
            ) from error

    def _sees_neighbours(self, model: ModelDir, transformer: Any) -> bool:
        """Whether the vector of a text changes beside a longer one: convolutions, Fourier mixing
        and blocks of tokens see padding through any mask."""
        longest = min(LONGEST_PROBE_TOKENS, model.max_tokens, model.positions or model.max_tokens)
        lengths = [n for n in (longest, 65, 20, 5) if n <= longest]
        offsets = np.cumsum([0, *lengths])
        table = transformer.auto_model.get_input_embeddings()
        n_ids = getattr(table, "num_embeddings", 100)
        ids = np.random.default_rng(0).integers(0, n_ids, offsets[-1]).astype(np.int32)
        texts = np.arange(len(lengths))
        with torch.inference_mode():
            together, _ = self._forward(ids, offsets, texts)
            alone = torch.cat([self._forward(ids, offsets, texts[i : i + 1])[0] for i in texts])
        similarity = torch.nn.functional.cosine_similarity(together.double(), alone.double())
        return bool(similarity.min() < 1 - PADDING_NOISE[self.dtype])

    def _buckets(self, n_tokens: Offsets) -> Iterator[Rows]:
        return padded_buckets(
            n_tokens, lambda: self.budget_tokens, of_one_length=self._of_one_length
        )

    def _forward(self, ids: Ids, offsets: Offsets, rows: Rows) -> tuple[Tensor, int]:
        n_tokens = offsets[rows + 1] - offsets[rows]
        is_token = np.arange(n_tokens.max()) < n_tokens[:, None]  # (n, longest)
        batch = np.stack([np.full(is_token.shape, self._pad_id), is_token])
        batch[0, is_token] = ids[flat_index(offsets, rows)[0]]
        input_ids, attention_mask = to_device(batch, self.device)
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        if self._has_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        if self._unpooled_tokens:
            features["prompt_length"] = self._unpooled_tokens
        pooled = self._body(features)["sentence_embedding"]  # (n, D)
        return self._head(pooled.float()), batch[0].size


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


def _load_body(model: ModelDir, options: EngineOptions) -> list[Any]:
    """The modules up to Pooling. A directory without modules.json is a transformer alone."""
    try:
        with _missing_weights() as names:
            modules: list[Any] = list(
                SentenceTransformer(
                    str(model.path),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True, "dtype": DTYPES[options.dtype]},
                )
            )
    except Exception as error:
        raise ModelError(
            f"{model.path}: sentence-transformers could not load the model: "
            f"{type(error).__name__}: {error}"
        ) from error
    if missing := sorted(name for name in names if "pooler" not in name):
        raise ModelError(
            f"{model.path}: the weights lack {', '.join(missing[:3])}, and transformers would "
            "run with random numbers in their place. The architecture of config.json is not "
            "that of the weights (custom code computes it, or files are missing)."
        )
    kinds = [type(module) for module in modules]
    body = modules[: kinds.index(Pooling) if Pooling in kinds else None]
    if options.pooling == model.pooling:
        return [*body, modules[len(body)]]
    modes = tuple(_NAME_IN_LIBRARY[mode] for mode in options.pooling.split("+"))
    width = modules[0].get_embedding_dimension()
    return [*body, Pooling(width, modes, include_prompt=model.include_prompt)]


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """The names of weights that transformers misses in what is loaded meanwhile: it starts them at
    random and goes on. Its report of them and its progress bars, which would fill the log of every
    worker, are off."""
    names: list[str] = []
    stored = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(kind: Any, *arguments: Any, **settings: Any) -> Any:
        model, info = stored.__func__(kind, *arguments, **settings, output_loading_info=True)
        names.extend(info["missing_keys"])
        return model

    reporter = logging.getLogger("transformers.modeling_utils")
    level = reporter.level
    has_bars = transformers_logging.is_progress_bar_enabled()
    reporter.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
    try:
        yield names
    finally:
        PreTrainedModel.from_pretrained = stored  # type: ignore[method-assign]
        reporter.setLevel(level)
        if has_bars:
            transformers_logging.enable_progress_bar()
