"""Which engine serves a model: packed for plain BERT and Llama, static for a table of tokens, else
padded.

In: a `ModelDir` and what the job spec says. Out: an `Engine`. Cost: reading the weights once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from pipeline.embed.engine import DTYPES, Engine, EngineOptions, EngineStats
from pipeline.embed.packed import load_packed
from pipeline.embed.static import StaticEngine
from pipeline.errors import ModelError
from pipeline.job.model_dir import POOLINGS, ModelDir

__all__ = ["Engine", "EngineStats", "load_engine"]

if TYPE_CHECKING:
    from pipeline.job.resolve import Job

log = logging.getLogger(__name__)


def load_engine(
    model: ModelDir,
    *,
    pooling: str = "auto",
    normalize: bool | str = "auto",
    dtype: str = "float32",
    device: str = "cpu",
    truncate_dim: int | None = None,
    max_batch_tokens: int | None = None,
    prompt_tokens: int = 0,
    engine: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Load the weights and choose the engine: packed for plain BERT and Llama models, static for
    StaticEmbedding, else padded.

    pooling: "auto" (what the directory says) or one of `model_dir.POOLINGS`' values. normalize:
    "auto" (what the directory says), True or False. truncate_dim: None means what the directory
    says; vectors of a normalising model are brought back to length 1 after the cut.
    max_batch_tokens: None means the engine's default. prompt_tokens: leading ids of the prompt,
    which pooling leaves out only where the directory says so (`include_prompt: false`). threads: of
    torch in this process, None leaves them alone. Raises ModelError for an impossible combination
    or damaged weights.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("engine", engine, ("auto", "packed", "padded"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r}: torch {torch.__version__} sees no GPU. Set runtime device to 'cpu'."
        )
    if dtype == "int8" and (device != "cpu" or engine == "padded"):
        raise ModelError(
            f"dtype 'int8' runs in the packed engine on a CPU only; device is {device!r}, engine {engine!r}. Set model.dtype "
            "to 'auto'."
        )
    options = EngineOptions(
        pooling=_pooling(model, pooling),
        normalize=model.normalize if normalize == "auto" else bool(normalize),
        dtype=dtype,
        device=device,
        truncate_dim=truncate_dim if truncate_dim is not None else model.truncate_dim,
        max_batch_tokens=max_batch_tokens or 0,
        prompt_tokens=0 if model.include_prompt else prompt_tokens,
    )
    if model.is_static:
        if engine != "auto":
            raise ModelError(
                f"{model.path}: a StaticEmbedding model runs in its own engine, not in {engine!r}. Set 'auto'."
            )
        return StaticEngine(model, options)
    if engine != "padded":
        loaded = load_packed(model, options)
        if isinstance(loaded, Engine):
            return loaded
        if engine == "packed" or dtype == "int8":
            wish = (
                "engine 'packed'"
                if engine == "packed"
                else "dtype 'int8' needs engine 'packed', which"
            )
            raise ModelError(f"{model.path}: {wish} cannot run it: {loaded}. Set both to 'auto'.")
        log.info("%s: padded engine, because packed cannot run it: %s", model.path, loaded)
    # sentence-transformers: 6 s that packed models do without
    from pipeline.embed.padded import PaddedEngine

    return PaddedEngine(model, options)


def load_engine_of(
    job: Job, model: ModelDir, prompt_tokens: int, threads: int | None = None
) -> Engine:
    """The engine for a job on this machine. prompt_tokens: leading ids of the prompt, from its
    tokenizer."""
    runtime = job.spec.runtime
    return load_engine(
        model,
        # a directory may join several poolings
        pooling="auto" if job.pooling == model.pooling else job.pooling,
        normalize=job.normalize,
        dtype=job.dtype,
        device=job.device,
        truncate_dim=job.spec.model.truncate_dim,
        max_batch_tokens=None if runtime.max_batch_tokens == "auto" else runtime.max_batch_tokens,
        prompt_tokens=prompt_tokens,
        engine=runtime.engine,
        threads=threads,
    )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ModelError(f"{name} {value!r} is unknown; choose one of {sorted(choices)}.")


def _pooling(model: ModelDir, pooling: str) -> str:
    if pooling != "auto":
        _check_choice("pooling", pooling, set(POOLINGS.values()))
        return pooling
    if model.pooling is None:
        raise ModelError(
            f"{model.path}: the directory names no pooling (no Pooling in modules.json). Set model.pooling to one of "
            f"{sorted(POOLINGS.values())}; the model card says which."
        )
    return model.pooling
