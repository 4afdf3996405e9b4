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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.embed.engine import log
from pipeline.embed.fused import Step, fastest
from pipeline.embed.products import NO_ACTIVATION, activate, packed, packed_with, reordered
from pipeline.embed.sizes import ACTIVATIONS

__all__ = ["GatedLinear", "Linear", "shortest_s"]

_ROUNDS = 5
_RACED_PRODUCTS = 1 << 30
"""Most multiplications of a product that is raced: a hundredth of a second."""
_RACED_TOKENS = 512
"""Most tokens of it: for small weights a few milliseconds, which tell as well as 2048 tokens do."""


class Linear:
    """weight: (out, in), bias: (out,) or None, on their device. Where the weight is rearranged, the
    original is not kept. activation: that of `activated`, where the layer is used so."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: tuple[str, str] | None = None
    ) -> None:
        self._is_packed = (
            weight.device.type == "cpu"
            and _has_onednn(weight.dtype)
            and _is_onednn_faster(*weight.shape, weight.dtype, bias is not None, activation)
        )
        self._weight = reordered(weight) if self._is_packed else weight
        self._bias = bias
        self.takes_residual = self._is_packed or bias is None
        """Whether `plus` adds inside the product."""

    def __call__(self, x: Tensor) -> Tensor:
        product = packed if self._is_packed else functional.linear
        return product(x, self._weight, self._bias)

    def activated(self, x: Tensor, activation: tuple[str, str]) -> Any:
        """activation(linear(x)), in the form that the next layer takes; `activation` is a value of
        ACTIVATIONS."""
        if self._is_packed:
            return packed(x, self._weight, self._bias, activation)
        gelu = self._gelu(activation)
        return gelu(x, self._weight, self._bias) if gelu else activate(self(x), activation)

    def has_gelu_inside(self, activation: tuple[str, str]) -> bool:
        """Whether `activated` takes GELU into the product, as some GPUs are faster."""
        gelu = None if self._is_packed else self._gelu(activation)
        return gelu is not None and gelu.__name__ == "gelu_inside"

    def _gelu(self, activation: tuple[str, str]) -> Step | None:
        """GELU of the product by the faster way, where both ways give the same."""
        name, algorithm = activation
        dtype = self._weight.dtype
        # inside a product it is the tanh form, 5e-4 from the exact one: bfloat16 does not see it
        is_exact = algorithm == "tanh" or dtype == torch.bfloat16
        if name != "gelu" or not is_exact or self._bias is None:
            return None
        return _gelu_product(*self._weight.shape, algorithm, self._weight.device, dtype)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """linear(x) + residual, (T, out). `residual` can be overwritten with the sum."""
        if self._is_packed:
            return packed_with(x, residual, self._weight, self._bias, "add")
        if self._bias is None:
            # in place: addmm would copy the residual first
            return residual.addmm_(x, self._weight.t())
        return self(x).add_(residual)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """linear(x) * factor, (T, out). `factor` can be overwritten with the result."""
        if self._is_packed:
            return packed_with(x, factor, self._weight, self._bias, "mul")
        return self(x).mul_(factor)


class GatedLinear:
    """activation(gate(x)) * up(x) in two products, each with its step inside where that is faster.
    weight: (2 F, in), the gate first, bias: (2 F,) or None, on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: tuple[str, str]) -> None:
        gate, up = weight.chunk(2)
        gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
        self._gate = Linear(gate, gate_bias, activation)
        self._up = Linear(up, up_bias)

    def activated(self, x: Tensor, activation: tuple[str, str]) -> Tensor:
        """(T, in) -> (T, F); `activation` is a value of ACTIVATIONS."""
        return self._up.times(x, self._gate.activated(x, activation))


@contextmanager
def one_thread() -> Iterator[None]:
    """For races: on a busy machine threads that wait for each other take more CPU time than their
    products."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def shortest_s(*products: Callable[[], Tensor]) -> list[float]:
    """CPU seconds of each, the best of a few rounds in turns. Wall time would tell of other work on
    the machine."""
    seconds = [float("inf")] * len(products)
    with one_thread(), torch.inference_mode():
        for product in products:
            product()  # the first call warms up
        for _ in range(_ROUNDS):
            for i, product in enumerate(products):
                start_s = time.process_time()
                product()
                seconds[i] = min(seconds[i], time.process_time() - start_s)
    return seconds


@cache
def _gelu_product(
    n_out: int, n_in: int, algorithm: str, device: torch.device, dtype: torch.dtype
) -> Step:
    """GELU of a product with bias: in plain torch, or inside the product where this GPU is faster
    so and as exact."""

    def gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.gelu(functional.linear(x, weight, bias), approximate=algorithm)

    def gelu_inside(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inner: Tensor = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        return inner

    def sample(n_tokens: int) -> tuple[Tensor, ...]:
        shapes = ((n_tokens, n_in), (n_out, n_in), (n_out,))
        x, weight, bias = (torch.randn(shape, device=device) for shape in shapes)
        return x.to(dtype), (weight / n_in**0.5).to(dtype), bias.to(dtype)

    return fastest(gelu, sample, device.type, gelu_inside)


@cache
def _is_onednn_faster(
    n_out: int, n_in: int, dtype: torch.dtype, has_bias: bool, activation: tuple[str, str] | None
) -> bool:
    """On AVX2 its products are 8-10 % slower than MKL's, with AVX-512 up to 20 % faster, but not in
    all shapes. Bias and activation, which it hides, decide where the products are alike."""
    n_tokens = max(64, min(_RACED_TOKENS, _RACED_PRODUCTS // (n_out * n_in)))
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, n_in, generator=generator).to(dtype) for n in (n_tokens, n_out))
    rearranged = reordered(weight)
    bias = torch.zeros(n_out, dtype=dtype) if has_bias else None

    def plain() -> Tensor:
        product = functional.linear(x, weight, bias)
        return activate(product, activation) if activation else product

    def onednn() -> Tensor:
        return packed(x, rearranged, bias, activation or NO_ACTIVATION)

    onednn_s, plain_s = shortest_s(onednn, plain)
    times = "linear %d x %d in %s: %.1f ms by oneDNN, %.1f ms plain"
    log.info(times, n_out, n_in, dtype, onednn_s * 1e3, plain_s * 1e3)
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
            rearranged = reordered(weight)
            added = packed_with(x, residual.clone(), rearranged, bias, "add")
            times = packed_with(x, residual.clone(), rearranged, bias, "mul")
            pairs = [(added, expected + residual, 0.0), (times, expected * residual, 0.02)]
            for activation in ACTIVATIONS.values():
                activated = packed(x, rearranged, bias, activation)
                pairs.append((activated, activate(expected, activation), 0.0))
            is_right = all(torch.allclose(a, b, rtol=rtol, atol=atol) for a, b, rtol in pairs)
    except (AttributeError, RuntimeError) as error:
        log.info("linear layers stay in plain torch: no oneDNN operators for %s: %s", dtype, error)
        return False
    if not is_right:
        problem = "linear layers stay in plain torch: torch %s gives other results by oneDNN"
        log.warning(problem, torch.__version__)
    return is_right
