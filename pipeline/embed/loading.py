"""Loads the engine that `choice` names.

In: a `ModelDir` and `EngineOptions`. Out: an `Engine`. Cost: reading the weights once.
"""

from __future__ import annotations

import logging
import time

import torch

from pipeline.embed.attention import flash_problem
from pipeline.embed.choice import choose, unpacked
from pipeline.embed.emulation import EMULATED, times_float32
from pipeline.embed.engine import DTYPES, Engine
from pipeline.embed.memory import free_memory, is_out_of_memory, keep_freed_memory
from pipeline.embed.packed import PackedEngine
from pipeline.embed.static import StaticEngine
from pipeline.errors import ModelError, WorkerError
from pipeline.job.cpu_features import NEEDED_NAMES
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir

__all__ = ["load_engine"]

log = logging.getLogger(__name__)

WAITS_S = (1, 4, 15, 40)
"""Between two tries to load where memory is short."""
PROBLEM_CHARS = 300
"""What is shown of torch's message, which says first who holds the memory."""


def load_engine(
    model: ModelDir,
    options: EngineOptions,
    prompt_tokens: int = 0,
    threads: int | None = None,
    *,
    is_tuned: bool = False,
) -> Engine:
    """Load the weights of `model` into the engine that `options` allow.

    prompt_tokens: leading ids of the prompt, which pooling leaves out where the directory says so
    (`include_prompt: false`). threads: how many torch uses in this process, which then also keeps
    memory that is freed; None leaves both as they are. is_tuned: whether a GPU's steps are compiled
    and its budget is looked for, which takes a minute that many texts repay. Where memory is short,
    loading is tried again for a minute: a process that has just died may still hold it. Raises
    ModelError for options that this model or this machine cannot follow, and for damaged weights;
    WorkerError where memory stays short.
    """
    if threads is not None:
        torch.set_num_threads(threads)
        keep_freed_memory()
    for wait_s in (*WAITS_S, None):
        try:
            return _load(model, options, prompt_tokens, is_tuned)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)[:PROBLEM_CHARS]
        # outside `except`: the exception would keep what was loaded alive
        free_memory()
        if wait_s is not None:
            log.warning("%s does not fit into memory; next try in %d s", model.path, wait_s)
            time.sleep(wait_s)
    raise WorkerError(
        f"{model.path}: there is not enough memory on {options.device!r} to load it as "
        f"{options.dtype}: {problem}. Stop what else runs on that device, or use a larger one."
    )


def _load(model: ModelDir, options: EngineOptions, prompt_tokens: int, is_tuned: bool) -> Engine:
    dtype = options.dtype
    device = options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r}: torch {torch.__version__} finds no GPU. Set runtime.device to "
            "'cpu'."
        )
    choice = choose(model, options)
    if choice.shape and device.startswith("cuda"):
        # sums of a product that is split between multiprocessors stay float32
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        if problem := flash_problem(choice.shape.sizes, DTYPES[dtype], device):
            choice = unpacked(model, options, problem)
            log.warning("%s: %s", model.path, problem)
    if device == "cpu" and dtype in NEEDED_NAMES and (times := times_float32(dtype)) > EMULATED:
        raise ModelError(
            f"dtype {dtype!r}: this CPU can only emulate it; a product takes {times:.0f} times as "
            f"long as in float32. Set model.dtype to 'float32', or use CPUs with "
            f"{NEEDED_NAMES[dtype]}."
        )
    unpooled_tokens = 0 if model.include_prompt else prompt_tokens
    if choice.engine == "static":
        return StaticEngine(model, options)
    if choice.shape:
        return PackedEngine(model, options, unpooled_tokens, choice.shape, is_tuned)
    log.info("%s: padded engine: %s", model.path, choice.reason)
    # imported here: sentence-transformers takes 6 s that packed models do without
    from pipeline.embed.padded import PaddedEngine

    return PaddedEngine(model, options, unpooled_tokens)
