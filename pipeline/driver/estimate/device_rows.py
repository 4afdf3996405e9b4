"""How long the work of a plan takes on each device of the table, what it costs there, and whether
the model fits.

In: tokens, what a model costs, known rates. Out: a row for each device. Method: a recorded or
measured rate where there is one for the device; otherwise the peak of the device times UTILISATION
over the operations of a token, which the row calls calculated. Cost: arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.driver.estimate.model_costs import DTYPE_BYTES, ModelCosts
from pipeline.driver.estimate.prices import CPU_CORE, Device, devices
from pipeline.driver.estimate.rates import Rate

__all__ = ["UTILISATION", "DeviceRow", "calculated_rate", "device_rows"]

UTILISATION = {"float32": 0.5, "bfloat16": 0.4, "float16": 0.4, "int8": 0.4}
"""Share of the peak that an engine is taken to reach, by dtype."""

BATCH_TOKENS = 8192
"""Tokens of a forward pass where the budget is found by the engine: the smallest that it tries."""

FREE_SHARE = 0.9
"""Share of the memory of a device that a model can have."""

_GPU_DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """One device alone. hours, cost: for all of the work; None where nothing is known of its speed.
    rate_source: "run", "measured" or "calculated". needed_gib: weights and one forward pass;
    fits: whether they do, None where the table has no memory."""

    name: str
    dtype: str
    tokens_per_s: float | None
    rate_source: str | None
    hours: float | None
    cost: float | None
    currency: str
    price_per_hour: float
    price_source: str
    price_as_of: str
    memory_gib: float | None
    needed_gib: float
    fits: bool | None


def device_rows(
    tokens: float,
    seen_tokens: float,
    costs: ModelCosts,
    rates: Sequence[Rate],
    asked_dtype: str,
    batch_tokens: int | None,
) -> list[DeviceRow]:
    """tokens: to embed. seen_tokens: see `ModelCosts.flops_per_token`. asked_dtype: `model.dtype`.
    batch_tokens: `runtime.max_batch_tokens`, None for auto."""
    rows = []
    for name, device in devices().items():
        dtype = _dtype(name, device, asked_dtype)
        if dtype is None:
            continue
        rate = next(
            (
                (each.tokens_per_s, each.source)
                for each in rates
                if _is_of(each, name) and each.dtype == dtype
            ),
            None,
        ) or calculated_rate(device, dtype, costs, seen_tokens)
        hours = tokens / rate[0] / 3600 if rate else None
        needed = costs.weight_bytes(dtype)
        needed += costs.activation_bytes(dtype, batch_tokens or BATCH_TOKENS)
        needed_gib = needed / (1 << 30)
        memory_gib = device.memory_gib
        rows.append(
            DeviceRow(
                name=name,
                dtype=dtype,
                tokens_per_s=round(rate[0], 1) if rate else None,
                rate_source=rate[1] if rate else None,
                hours=None if hours is None else round(hours, 4),
                cost=None if hours is None else round(hours * device.price_per_hour, 4),
                currency=device.currency,
                price_per_hour=device.price_per_hour,
                price_source=device.source,
                price_as_of=device.as_of,
                memory_gib=memory_gib,
                needed_gib=round(needed_gib, 2),
                fits=None if memory_gib is None else needed_gib <= FREE_SHARE * memory_gib,
            )
        )
    return rows


def calculated_rate(
    device: Device, dtype: str, costs: ModelCosts, seen_tokens: float
) -> tuple[float, str] | None:
    """(tokens a second, "calculated"); None where the table has no peak, and for models without a
    product."""
    flops = costs.flops_per_token(seen_tokens)
    peak = device.peak_tflops.get(dtype)
    return (peak * 1e12 * UTILISATION[dtype] / flops, "calculated") if peak and flops else None


def _is_of(rate: Rate, name: str) -> bool:
    if name == CPU_CORE:
        return rate.device == "cpu"
    return rate.device == "cuda" and name.lower() in rate.device_name.lower()


def _dtype(name: str, device: Device, asked: str) -> str | None:
    """The dtype that a run would use on a device; None where it cannot."""
    if name == CPU_CORE:
        return "float32" if asked == "auto" else asked
    if asked == "auto":
        return next((dtype for dtype in _GPU_DTYPES if dtype in device.peak_tflops), None)
    return asked if asked in DTYPE_BYTES and asked != "int8" else None
