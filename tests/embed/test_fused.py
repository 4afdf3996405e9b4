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
    wrong = lambda x: x * 2 + (x.shape[0] == 3000)  # noqa: E731  for one size only
    assert fused.faster(doubled, wrong, sample, lambda step, _: float(step is doubled)) is doubled
    assert "other results" in caplog.text


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
    engine = engine_of(model)
    assert taken == {"bert": ["_summed_norm"], "llama": ["_turn", "_gate"]}[family]
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
    monkeypatch.setattr(linear, "_has_gelu_epilogue", lambda _device, _dtype: True)
    layer = Linear(weight, shift if bias else None)
    product = functional.linear(x, weight, shift if bias else None)
    torch.testing.assert_close(layer.plus(x, residual.clone()), product + residual)
    # the GELU of a product is the tanh form on a GPU: 5e-4 from the other one at most
    torch.testing.assert_close(
        layer.activated(x, ACTIVATIONS["gelu"]), functional.gelu(product), atol=6e-4, rtol=0
    )
    torch.testing.assert_close(layer.activated(x, ACTIVATIONS["relu"]), functional.relu(product))
