"""A device that is out of memory: how to tell, and how to give memory back. torch is imported only
where something is given back."""

from __future__ import annotations

import gc

__all__ = ["free_memory", "is_out_of_memory"]

_NEEDS_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, whoever asked for it: torch for a tensor, or CUDA and its libraries
    for pinned memory, a kernel or a workspace."""
    is_named_so = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return is_named_so or any(text in str(error) for text in _NEEDS_MEMORY)


def free_memory() -> None:
    """Give what nothing refers to any more back to the device, for other processes."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
