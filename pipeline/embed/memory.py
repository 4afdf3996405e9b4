"""A device that is out of memory: how to tell, how to give memory back, and how to keep what the
next layer needs. torch is imported only where something is given back."""

from __future__ import annotations

import ctypes
import gc

__all__ = ["free_memory", "is_out_of_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Names of glibc's malloc.h."""
_LARGEST_KEPT = 32 << 20
"""Bytes of a block; glibc takes no more."""
_KEPT_BYTES = 256 << 20

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


def keep_freed_memory() -> None:
    """Tells glibc to keep up to 256 MiB of what is freed. Otherwise the activations of a layer are
    given back to the system and come anew, page by page (benchmarks/LOG.md, 2026-11-26). Nothing
    where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
