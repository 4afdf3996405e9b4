"""Layers in 8-bit integers: every kernel gives the sums of whole numbers, bit for bit, so that no
vector depends on the CPU or on what it is batched with."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.embed import int8
from pipeline.embed.int8 import Inputs, Int8Linear
from pipeline.embed.linear import Linear
from pipeline.embed.products import activate
from pipeline.embed.rounding import BLOCK_ROWS, FEWEST_STEPS, MOST_STEPS, in_steps
from pipeline.embed.sizes import ACTIVATIONS
from pipeline.embed.watch import Watch, _Watched
from pipeline.job.model.store import resolve
from tests.support.engines import engine_of

Normal = Callable[..., torch.Tensor]
ISA = ["AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"]
"""oneDNN uses no more than these; and what this CPU has."""


@pytest.fixture
def normal() -> Normal:
    """Normal numbers of a shape, the same for a test in every order of tests."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def whole_sums(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The oracle: NumPy's 64-bit integers."""
    return torch.from_numpy(
        (x.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T).astype(np.float32)
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 30, 100), (300, 96, 384), (3, 16, 20_000)])
@pytest.mark.parametrize("kernel", [int8._OneDnn, int8._Plain])
def test_every_kernel_gives_the_sums_of_whole_numbers(
    kernel: type[int8._OneDnn | int8._Plain], shape: tuple[int, int, int], normal: Normal
) -> None:
    x, weight = int8._hardest(*shape)
    scale, bias = normal(len(weight)).abs(), normal(len(weight))
    product = kernel(weight)
    scaled = whole_sums(x, weight) * scale
    assert torch.equal(product(x, scale), scaled)
    assert torch.equal(product(x, scale, bias), scaled + bias)


@pytest.mark.parametrize("isa", ISA)
def test_sums_do_not_depend_on_the_instructions(isa: str) -> None:
    """Without VNNI, two neighbouring weights that are both as large as 8 bits allow saturate, and
    the probe notices."""
    code = """
import torch
from pipeline.embed.int8 import _hardest, _is_exact
print(all(_is_exact(*_hardest(*s)) for s in ((64, 512, 4096), (3, 96, 384), (70, 33, 100))))
print(_is_exact(torch.full((8, 64), 127).char(), torch.full((8, 64), 127).char()))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    exact, wide = process.stdout.split()
    assert exact == "True"
    if "VNNI" not in isa:
        assert wide == "False"


@pytest.mark.parametrize("n_in", [1, 2, 63, 64])
def test_two_neighbouring_weights_add_up_to_128_at_most(n_in: int, normal: Normal) -> None:
    weight = normal(500, n_in)
    weight[::3, -1] *= 50  # an outlier
    weight[0] = 0
    weight[1] = 1e-37
    weight[2] = 63.5 / 127
    rounded, scale = int8._rounded_weight(weight)
    values = np.pad(rounded.numpy().astype(np.int64), ((0, 0), (0, n_in % 2)))
    assert np.abs(values).max() <= 127
    assert np.abs(values.reshape(500, -1, 2).sum(axis=2)).max() <= 128
    off = (rounded * scale[:, None] - weight).abs()
    assert (off <= 0.5001 * scale[:, None]).all()
    # never fewer than 7 bits
    assert (weight.abs().amax(1)[3:] >= 63 * scale[3:]).all()


def inputs(step: float | None, normal: Normal) -> Inputs:
    return Inputs(normal(64), torch.logspace(-2, 3, 64, 2).log2().round().exp2(), step)


@pytest.mark.parametrize("step", [None, 0.04], ids=["by row", "one step"])
@pytest.mark.parametrize("use", ["call", "activated", "plus"])
def test_a_row_is_what_it_is_alone_bit_for_bit(
    use: str, step: float | None, normal: Normal
) -> None:
    """Where rows share a step, some are too large for it, some too small."""
    first = Int8Linear(normal(48, 64), normal(48), inputs=inputs(step, normal))
    second = Int8Linear(normal(32, 48), None)
    x = normal(2 * BLOCK_ROWS + 7, 64)
    x[1::9] *= 100
    x[2::9] = first._shrinkage * 1e-3 - first._offset / first._shrinkage
    residual = normal(len(x), 48)

    def result(rows: slice) -> torch.Tensor:
        if use == "activated":
            return second(first.activated(x[rows], ACTIVATIONS["gelu"]))
        if use == "plus":
            return first.plus(x[rows], residual[rows].clone())
        return first(x[rows])

    together = result(slice(None))
    for i in (0, 1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, len(x) - 1):
        assert torch.equal(together[i], result(slice(i, i + 1))[0]), i
    assert torch.equal(together[5:300], result(slice(5, 300)))


def test_rows_share_a_step_only_where_it_fits_them(normal: Normal) -> None:
    """The oracle: NumPy in 64 bits."""
    x = normal(3 * BLOCK_ROWS, 24) * torch.logspace(-2, 2, 3 * BLOCK_ROWS)[:, None]
    x[7, 3] = torch.nan
    factor, off = normal(24).abs() + 10, normal(24)
    values, apart = in_steps(x, factor, off)
    steps = x.double().numpy() * factor.double().numpy() + off.double().numpy()
    largest = np.abs(steps).max(axis=1)
    fits = (largest >= FEWEST_STEPS) & (largest < MOST_STEPS + 0.5)
    assert 0 < fits.sum() < len(x) - 1
    np.testing.assert_array_equal(apart, np.flatnonzero(~fits))
    assert np.abs(values[fits].numpy() - steps[fits]).max() <= 0.5 + 1e-4
    assert np.abs(values[fits].numpy().astype(int)).max() <= MOST_STEPS


@pytest.mark.parametrize("use", ["call", "activated"])
def test_layers_whose_rows_share_a_step_stay_close_to_float32(use: str, normal: Normal) -> None:
    """The first 20 rows do not fit the step. Tolerance: each number of x is off by half a step,
    each weight by half of its own."""
    weight, bias = normal(48, 64), normal(48)
    x = normal(300, 64) + 5 * normal(64)
    x[:10] *= 40

    def result(layer: Linear) -> torch.Tensor:
        if use == "activated":
            values, scale = layer.activated(x, ACTIVATIONS["relu"])
            return values * scale
        return layer(x)

    watched = _Watched(weight, bias)
    watched(x[20:])
    seen = watched.inputs()
    assert seen is not None
    assert seen.step is not None
    layer = Int8Linear(weight, bias, inputs=seen)
    _, apart = in_steps(x, layer._steps_of_1, layer._steps_off)
    assert set(range(10)) <= set(apart.tolist()) <= set(range(20))
    exact = Linear(weight, bias)(x)
    exact = activate(exact, ACTIVATIONS["relu"]) if use == "activated" else exact
    cosines = torch.nn.functional.cosine_similarity(exact, result(layer))
    assert cosines.min() > 0.999


@pytest.mark.parametrize("case", ["outliers", "not finite", "nothing", "zeros", "residual"])
def test_rows_that_are_not_alike_share_no_step(case: str, normal: Normal) -> None:
    watched = _Watched(normal(16, 32), None)
    x = normal(200, 32)
    if case == "outliers":
        x[3] *= 1e3
    if case == "not finite":
        x[3, 4] = torch.inf
    if case == "residual":  # attention's mixture, and the inner numbers of an MLP
        watched.plus(x, normal(200, 16))
    elif case != "nothing":
        watched(x * (case != "zeros"))
    seen = watched.inputs()
    assert (seen is None) == (case == "nothing")
    assert seen is None or seen.step is None
    assert Int8Linear(normal(16, 32), None, inputs=seen)(normal(4, 32)).isfinite().all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layers_stay_close_to_the_same_layers_in_float32(
    activation: str, has_bias: bool, normal: Normal
) -> None:
    weights = normal(96, 64), normal(64, 96)
    biases = (normal(96), normal(64)) if has_bias else (None, None)
    x = normal(300, 64)
    x[1], x[2, 3], x[3] = 0, 40.0, x[3] * 1e-20
    residual = normal(300, 64)

    def result(kind: type[Linear]) -> torch.Tensor:
        up, down = (kind(w.clone(), b) for w, b in zip(weights, biases, strict=True))
        inner = up.activated(x, ACTIVATIONS[activation])
        return down.plus(inner, residual.clone()) - residual

    exact, rounded = result(Linear), result(Int8Linear)
    cosines = torch.nn.functional.cosine_similarity(exact, rounded)
    usual = torch.ones(300, dtype=torch.bool)
    usual[1:4] = False
    assert cosines[usual].min() > 0.999
    assert cosines[2] > 0.99
    # Rows of zeros, and nearly so: the second layer gets what the activation makes of the bias.
    bias = torch.zeros(96) if biases[0] is None else biases[0]
    off = largest_rounding(activate(bias[None], ACTIVATIONS[activation])[0], weights[1])
    for i in (1, 3):
        assert ((rounded[i] - exact[i]).abs() <= off + 1e-4).all()


def largest_rounding(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(out,) How far a product of x (in,) can be off if each number is rounded to its nearest."""
    half_x = x.abs().max() / 127 / 2
    pairs = weight.unflatten(1, (-1, 2)).sum(2).abs()
    half_weight = torch.maximum(weight.abs().amax(1), pairs.amax(1)) / 127 / 2
    each = x.abs() * half_weight[:, None] + weight.abs() * half_x + half_x * half_weight[:, None]
    return each.sum(1)


def test_channels_that_are_larger_than_others_leave_them_their_steps(normal: Normal) -> None:
    weights = normal(48, 64), normal(32, 48)
    x = normal(400, 64)
    x[:, 5] *= 60
    exact = Linear(weights[0], None)(x)

    def result(make: Callable[..., Linear]) -> torch.Tensor:
        layers = [make(weight.clone(), None) for weight in weights]
        layers[1].plus(layers[0].activated(x[:20], ACTIVATIONS["relu"]), normal(20, 32))
        return layers[0](x)

    watch = Watch()
    torch.testing.assert_close(result(watch), exact)
    make = watch.rounded()
    off = [(result(kind) - exact).square().mean() for kind in (Int8Linear, make)]
    assert off[1] < off[0] / 4
    layers = [watch(weight, None) for weight in weights]
    layers[0](torch.zeros(3, 64))
    watch.rounded()(weights[0], None)(x)  # nothing was seen, so nothing is divided


def test_what_channels_are_divided_by_is_the_same_on_every_cpu(normal: Normal) -> None:
    x = torch.tensor([[1.0, -40, 1e9, 0, 1.1, torch.pi]])
    spreads = []
    for noise in (torch.ones(6), 1 + 1e-5 * normal(6)):
        watched = _Watched(normal(4, 6), None)
        watched(torch.cat([x, -x]) * noise)
        seen = watched.inputs()
        assert seen is not None
        spreads.append(seen.spread)
    assert torch.equal(*spreads)
    assert torch.equal(spreads[0].log2(), spreads[0].log2().round())
    assert spreads[0].aminmax() == (1 / 16, 16)


@pytest.mark.parametrize("step", [None, 0.04])
def test_a_row_that_is_not_finite_spoils_itself_alone(step: float | None, normal: Normal) -> None:
    layer = Int8Linear(normal(16, 32), None, inputs=Inputs(normal(32), torch.ones(32), step))
    x = normal(3, 32)
    x[0, 1], x[1, 2] = torch.inf, torch.nan
    assert layer(x).isfinite().all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("family", ["bert_mean_dir", "llama_dir"])
def test_no_vector_depends_on_the_kernel_and_nothing_is_warned_of(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve(str(request.getfixturevalue(family)))
    ids, offsets = np.arange(5, 95, dtype=np.int32), np.array([0, 1, 40, 90])
    vectors = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for is_best in (True, False):
            monkeypatch.setattr(int8, "_is_onednn_best", lambda is_best=is_best: is_best)
            vectors.append(engine_of(model, dtype="int8").embed(ids, offsets))
    np.testing.assert_array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("problem", ["missing", "saturates", "adds wrongly"])
def test_a_kernel_that_is_missing_or_not_exact_is_not_used(
    problem: str, monkeypatch: pytest.MonkeyPatch, normal: Normal
) -> None:
    def call(self: int8._OneDnn, *args: torch.Tensor) -> torch.Tensor:
        if problem == "missing":
            raise AttributeError("no qlinear_pointwise")
        if problem == "adds wrongly":
            return int8._Plain(self._weight)(*args[:3])
        return int8._Plain(self._weight)(*args).clamp(-1e5, 1e5)

    def init(self: int8._OneDnn, weight: torch.Tensor) -> None:
        self._weight = weight

    monkeypatch.setattr(int8._OneDnn, "__init__", init)
    monkeypatch.setattr(int8._OneDnn, "__call__", call)
    int8._is_onednn_best.cache_clear()
    try:
        assert not int8._is_onednn_best()
        assert isinstance(Int8Linear(normal(8, 8), None)._product, int8._Plain)
    finally:
        int8._is_onednn_best.cache_clear()
