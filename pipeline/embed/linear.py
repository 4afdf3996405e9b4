"""One linear layer of a packed forward, with its activation or residual sum in the same kernel
where the hardware can do that.

In: x (T, in). Out: (T, out). Method: on a CPU, oneDNN with weights rearranged once at loading,
where that is faster than `torch.nn.functional.linear`, whose MKL rearranges them in every call: the
two are raced for each shape. The activation then runs on values still in cache. These operators are
what torch.compile emits; they are private, so they are probed at loading and not used where they
are missing or wrong. Everywhere else plain torch is used. Cost: benchmarks/LOG.md, 2026-11-23.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from pipeline.embed.engine import log
from pipeline.embed.sizes import ACTIVATIONS

__all__ = ["Linear", "activate", "shortest_s"]

_PLAIN: dict[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "gelu": lambda x, algorithm: functional.gelu(x, approximate=algorithm),
    "relu": lambda x, _: functional.relu(x),
    "swish": lambda x, _: functional.silu(x),
}
_ROUNDS = 5
_TYPICAL_TOKENS = 2048  # oneDNN chooses its layout for a size; others work as well


class Linear:
    """weight: (out, in), bias: (out,) or None, on their device. Where the weight is rearranged, the
    original is not kept."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._is_packed = (
            weight.device.type == "cpu"
            and _has_onednn(weight.dtype)
            and _is_onednn_faster(*weight.shape, weight.dtype)
        )
        self._weight = _reordered(weight) if self._is_packed else weight
        self._bias = bias
        self.takes_residual = self._is_packed or bias is None
        """Whether `plus` adds inside the product."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (
            _packed(x, self._weight, self._bias)
            if self._is_packed
            else functional.linear(x, self._weight, self._bias)
        )

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
        """activation(linear(x)); `activation` is a value of ACTIVATIONS."""
        if self._is_packed:
            return _packed(x, self._weight, self._bias, activation)
        if (
            activation[0] == "gelu"
            and self._bias is not None
            and _has_gelu_epilogue(x.device, x.dtype)
        ):
            inner: torch.Tensor = torch._addmm_activation(
                self._bias, x, self._weight.t(), use_gelu=True
            )
            return inner
        return activate(self(x), activation)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """linear(x) + residual, (T, out). `residual` can be overwritten with the sum."""
        if self._is_packed:
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
            return total
        if self._bias is None:
            # in place: addmm would copy the residual first
            return residual.addmm_(x, self._weight.t())
        return self(x).add_(residual)


def activate(x: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
    """A value of ACTIVATIONS applied to x."""
    name, algorithm = activation
    return _PLAIN[name](x, algorithm)


def _packed(
    x: torch.Tensor,
    weight: Any,
    bias: torch.Tensor | None,
    activation: tuple[str, str] = ("none", ""),
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, activation[0], [], activation[1]
    )
    return result


def shortest_s(*products: Callable[[], torch.Tensor]) -> list[float]:
    """Seconds of each, the best of a few rounds in turns."""
    seconds = [float("inf")] * len(products)
    with torch.inference_mode():
        for product in products:
            product()  # the first call warms up
        for _ in range(_ROUNDS):
            for i, product in enumerate(products):
                start_s = time.perf_counter()
                product()
                seconds[i] = min(seconds[i], time.perf_counter() - start_s)
    return seconds


@cache
def _has_gelu_epilogue(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this GPU adds bias and GELU inside the product. That GELU is the tanh form, at most
    5e-4 from the exact one: half precision hardly sees the difference, float32 would."""
    if device.type != "cuda" or dtype == torch.float32:
        return False
    x, weight, bias = (
        torch.randn(s, device=device).to(dtype) for s in ((64, 256), (512, 256), (512,))
    )
    try:
        fused = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    except (AttributeError, RuntimeError, TypeError) as error:
        log.info("GELU stays in plain torch: %s", error)
        return False
    return torch.allclose(
        fused.float(), functional.gelu(functional.linear(x, weight, bias)).float(), 0.02, 0.02
    )


def _reordered(weight: torch.Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_TOKENS)


@cache
def _is_onednn_faster(n_out: int, n_in: int, dtype: torch.dtype) -> bool:
    """On AVX2 it is 8-10 % slower than MKL, with AVX-512 10-20 % faster, but not in all shapes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TYPICAL_TOKENS, n_in, generator=generator).to(dtype)
    weight = torch.randn(n_out, n_in, generator=generator).to(dtype)
    packed = _reordered(weight)
    onednn_s, plain_s = shortest_s(
        lambda: _packed(x, packed, None), lambda: functional.linear(x, weight)
    )
    log.info(
        "linear %d x %d in %s: %.1f ms by oneDNN, %.1f ms plain",
        *(n_out, n_in, dtype, onednn_s * 1e3, plain_s * 1e3),
    )
    return onednn_s < plain_s


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether the private operators exist in this torch and give what plain torch gives."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(s, generator=generator).to(dtype) for s in ((5, 64), (48, 64), (48,), (5, 48))
    )
    expected = functional.linear(x, weight, bias)
    atol = 1e-4 if dtype == torch.float32 else 0.2
    try:
        with torch.inference_mode():
            packed = _reordered(weight)
            added = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
            is_right = torch.allclose(added, expected + residual, rtol=0, atol=atol) and all(
                torch.allclose(
                    _packed(x, packed, bias, activation),
                    activate(expected, activation),
                    rtol=0,
                    atol=atol,
                )
                for activation in ACTIVATIONS.values()
            )
    except (AttributeError, RuntimeError) as error:
        log.info("linear layers stay in plain torch: no oneDNN operators for %s: %s", dtype, error)
        return False
    if not is_right:
        log.warning(
            "linear layers stay in plain torch: torch %s gives other results by oneDNN",
            torch.__version__,
        )
    return is_right
