"""Compiled steps: taken only where they are right and faster, for any number of tokens after one
look at the model's shapes.

Oracle: the same steps in plain torch, and transformers' models for whole forwards.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.embed import fused, linear, steps
from pipeline.embed.linear import Linear
from pipeline.embed.sizes import ACTIVATIONS
from pipeline.job.model.store import resolve
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean, llama_last_token

FAMILIES: dict[str, Callable[[Path], Path]] = {"bert": bert_mean, "llama": llama_last_token}
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def sample(n_tokens: int) -> tuple[torch.Tensor, ...]:
    return (torch.ones(n_tokens, 4),)


def test_the_faster_one_of_two_that_agree_is_taken() -> None:
    other = lambda x: x + x  # noqa: E731
    for seconds, fastest in (
        ({doubled: 2.0, other: 1.0}, other),
        ({doubled: 1.0, other: 2.0}, doubled),
    ):
        assert (
            fused.faster(doubled, other, sample, lambda step, _, seconds=seconds: seconds[step])
            is fastest
        )


def test_a_compiled_step_that_gives_other_results_is_left(caplog: pytest.LogCaptureFixture) -> None:
    wrong = lambda x: x * 2 + (x.shape[0] == 3000) / 100  # noqa: E731  for one size only
    assert fused.faster(doubled, wrong, sample, lambda step, _: float(step is doubled)) is doubled
    assert "other results" in caplog.text


@pytest.mark.parametrize(("error", "is_taken"), [(0.9, True), (1.05, True), (1.5, False)])
def test_a_compiled_step_may_be_as_far_from_float32_as_the_plain_one(
    error: float, is_taken: bool
) -> None:
    """In bfloat16 right results differ by more than some wrong ones do in other steps."""

    def plain(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.dtype == torch.float32 else x * 2 + 0.25

    def compiled(x: torch.Tensor) -> torch.Tensor:
        return x.float() * 2 + 0.25 * error

    halves = lambda n: (torch.ones(n, 4, dtype=torch.bfloat16),)  # noqa: E731
    seconds = lambda step, _: float(step is plain)  # noqa: E731
    taken = fused.faster(plain, compiled, halves, seconds)
    assert taken is (compiled if is_taken else plain)


def test_the_race_is_run_where_kernels_take_longer_than_queueing_them() -> None:
    sizes: list[int] = []
    fused.faster(
        doubled, doubled, sample, lambda _, arguments: sizes.append(len(arguments[0])) or 0
    )
    assert min(sizes) >= 65_536


def test_pairs_are_rotated_alike_in_one_complex_kernel_and_in_plain_steps() -> None:
    chance = torch.Generator().manual_seed(0)
    heads = torch.randn(9, 5, 12, generator=chance)
    frequencies = torch.rand(6, generator=chance)
    (turns,) = steps.rotation(frequencies, 1.25, 9, torch.empty(0))
    cos, sin = steps.rotation(frequencies, 1.25, 9, torch.empty(0, device="meta"))
    assert (cos.shape, sin.dtype) == ((9, 6), torch.float32)
    row = turns[:, None]
    plain = steps.Steps._turn(None, heads, row.real, row.imag)  # type: ignore[arg-type]
    # Two numbers of at most 4 each, times 1.25: each side rounds two products and their sum; in
    # bfloat16 the numbers and the results are rounded, too.
    for dtype, atol in ((torch.float32, 6 * 10 * 2**-24), (torch.bfloat16, 18 * 2**-9)):
        turned = steps.Steps._turn_as_complex(None, heads.to(dtype, copy=True), row)  # type: ignore[arg-type]
        assert turned.dtype == dtype
        torch.testing.assert_close(turned.float(), plain, atol=atol, rtol=0)
    lengths = plain.unflatten(-1, (-1, 2)).norm(dim=-1)
    torch.testing.assert_close(lengths, 1.25 * heads.unflatten(-1, (-1, 2)).norm(dim=-1))


def test_a_compiler_that_fails_leaves_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_step: object) -> object:
        raise RuntimeError("no C compiler\nand a long story")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch, "compile", fails)
    assert fused.fastest(doubled, sample, "cuda") is doubled
    assert "doubled stays in plain torch: no C compiler" in caplog.text


def test_on_a_cpu_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert fused.fastest(doubled, sample, "cpu") is doubled


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor imports them itself
@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_of_compiled_steps_gives_the_same_vectors_without_compiling_again(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.array([3, 17, 1, 5, 64, 2, 33, 100])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.random.default_rng(0).integers(5, 900, offsets[-1]).astype(np.int32)
    model = resolve(str(FAMILIES[family](tmp_path / "model")))
    # so that the steps stand alone, as on a GPU
    monkeypatch.setattr(linear, "_has_onednn", lambda _dtype: False)
    plain = engine_of(model).embed(ids, offsets)
    taken: list[str] = []

    def compiled(step: fused.Step, arguments: fused.Sample, _device: str) -> fused.Step:
        taken.append(step.__name__)
        faster = torch.compile(step)
        assert (
            fused.faster(step, faster, arguments, lambda candidate, _: float(candidate is step))
            is faster
        )
        return faster

    monkeypatch.setattr(steps, "fastest", compiled)
    engine = engine_of(model, is_tuned=True)
    assert taken == {"bert": ["_summed_norm"], "llama": ["_gate"]}[family]
    with torch.compiler.set_stance("fail_on_recompile"):
        vectors = engine.embed(ids, offsets)
    np.testing.assert_allclose(vectors, plain, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_sums_and_activations_taken_into_a_product_are_those_beside_it(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = torch.Generator().manual_seed(0)
    x, weight, shift, residual = (
        torch.randn(s, generator=chance) for s in ((7, 16), (12, 16), (12,), (7, 12))
    )
    monkeypatch.setattr(linear, "_has_onednn", lambda _dtype: False)
    monkeypatch.setattr(linear, "fastest", lambda _step, _sample, _device, other: other)
    linear._gelu_product.cache_clear()
    layer = Linear(weight, shift if bias else None)
    product = functional.linear(x, weight, shift if bias else None)
    torch.testing.assert_close(layer.plus(x, residual.clone()), product + residual)
    # on a CPU the GELU inside is the exact one: 5e-4 from the tanh form at most
    expected = functional.gelu(product, approximate="tanh")
    torch.testing.assert_close(
        layer.activated(x, ACTIVATIONS["gelu_new"]), expected, atol=6e-4, rtol=0
    )
    # the GELU inside a product is the tanh form, which float32 tells from the exact one
    torch.testing.assert_close(layer.activated(x, ACTIVATIONS["gelu"]), functional.gelu(product))
    torch.testing.assert_close(layer.activated(x, ACTIVATIONS["relu"]), functional.relu(product))
    linear._gelu_product.cache_clear()


@pytest.mark.parametrize("is_inside", [True, False])
def test_where_gelu_is_computed_is_in_the_record_of_what_was_chosen(
    is_inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choice(step: fused.Step, _sample: object, _device: str, inside: fused.Step) -> fused.Step:
        return inside if is_inside else step

    monkeypatch.setattr(linear, "_has_onednn", lambda _dtype: False)
    monkeypatch.setattr(linear, "fastest", choice)
    linear._gelu_product.cache_clear()
    engine = engine_of(resolve(str(bert_mean(tmp_path / "model"))), dtype="bfloat16")
    tuning = engine.tuning
    linear._gelu_product.cache_clear()
    assert tuning["compiled"] == ("gelu" if is_inside else "")


@pytest.mark.parametrize(("off", "is_taken"), [(0.0, True), (0.02, False)])
def test_the_tanh_form_of_gelu_inside_a_product_is_near_enough_in_bfloat16(
    off: float, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU rounds once, behind both; plain torch rounds the product, too. off: of a wrong one."""

    def inside(
        bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, **_: bool
    ) -> torch.Tensor:
        product = torch.addmm(bias.float(), x.float(), weight.float())
        return (functional.gelu(product, approximate="tanh") + off).to(x.dtype)

    def raced(
        step: fused.Step, sample: fused.Sample, _device: str, other: fused.Step
    ) -> fused.Step:
        return fused.faster(step, other, sample, lambda candidate, _: float(candidate is step))

    monkeypatch.setattr(torch, "_addmm_activation", inside)
    monkeypatch.setattr(fused, "TIMED_TOKENS", 8)
    monkeypatch.setattr(linear, "fastest", raced)
    linear._gelu_product.cache_clear()
    step = linear._gelu_product(64, 128, "none", torch.device("cpu"), torch.bfloat16)
    linear._gelu_product.cache_clear()
    assert (step.__name__ == "gelu_inside") is is_taken
