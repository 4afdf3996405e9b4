"""Chooses the engine that serves a model: packed for the families that it knows, static for a
StaticEmbedding table, padded for everything else.

In: a `ModelDir` and `EngineOptions`. Out: an `Engine`. Cost: reading the weights once.
"""

from __future__ import annotations

import logging

import torch

from pipeline.embed.emulation import EMULATED, times_float32
from pipeline.embed.engine import Engine
from pipeline.embed.packed import load_packed
from pipeline.embed.static import StaticEngine
from pipeline.errors import ModelError
from pipeline.job import cpu_features
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir

__all__ = ["load_engine"]

log = logging.getLogger(__name__)


def load_engine(
    model: ModelDir, options: EngineOptions, prompt_tokens: int = 0, threads: int | None = None
) -> Engine:
    """Load the weights of `model` into the engine that `options` allow.

    prompt_tokens: leading ids of the prompt, which pooling leaves out where the directory says so
    (`include_prompt: false`). threads: how many torch uses in this process; None leaves the number
    as it is. Raises ModelError for options that this model or this machine cannot follow, and for
    damaged weights.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    dtype = options.dtype
    device = options.device
    engine = options.engine
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r}: torch {torch.__version__} finds no GPU. Set runtime.device to "
            "'cpu'."
        )
    if dtype == "int8" and (device != "cpu" or engine == "padded"):
        raise ModelError(
            "dtype 'int8' runs in the packed engine on a CPU only; the device is "
            f"{device!r}, the engine {engine!r}. Set model.dtype to 'auto'."
        )
    if device == "cpu" and dtype in ("bfloat16", "int8") and times_float32(dtype) > EMULATED:
        raise ModelError(
            f"dtype {dtype!r}: this CPU can only emulate it; a product takes "
            f"{times_float32(dtype):.0f} times as long as in float32. Set model.dtype to "
            f"'float32', or use CPUs with {cpu_features.NEEDED_NAMES[dtype]}."
        )
    if device == "cpu" and dtype == "float16":
        log.warning("dtype 'float16' on a CPU is mostly slower than float32: see model.dtype")
    unpooled_tokens = 0 if model.include_prompt else prompt_tokens
    if model.is_static:
        return StaticEngine(model, options)
    if engine != "padded":
        packed = load_packed(model, options, unpooled_tokens)
        if isinstance(packed, Engine):
            return packed
        if engine == "packed" or dtype == "int8":
            request = f"engine {engine!r}" if engine == "packed" else f"dtype {dtype!r}"
            raise ModelError(
                f"{model.path}: {request} was asked for, but the packed engine cannot run this "
                f"model: {packed}. Set runtime.engine and model.dtype to 'auto'."
            )
        log.info("%s: padded engine, because packed cannot run it: %s", model.path, packed)
    # imported here: sentence-transformers takes 6 s that packed models do without
    from pipeline.embed.padded import PaddedEngine

    return PaddedEngine(model, options, unpooled_tokens)
