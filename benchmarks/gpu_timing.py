"""Seconds of work on a device, and the share of them in which the device was busy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds, the device's queue empty before and after."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def busy_share(work: Callable[[], object], device: str) -> str:
    """Time of kernels and copies over the wall time of one run; "-" without a GPU, or in another
    process (D)."""
    if not device.startswith("cuda"):
        return "-"
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        wall_s = timed(work, device)
    busy_s = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return f"{busy_s / wall_s:.0%}" if busy_s else "-"
