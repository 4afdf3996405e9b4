"""What a CPU is fast at is measured: a product that oneDNN is slow at stays plain, and a dtype that
is emulated is refused. The slow CPU is this one with oneDNN and torch held to older instructions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.embed import linear, loading
from pipeline.embed.emulation import times_float32
from pipeline.embed.linear import Linear
from pipeline.embed.loading import load_engine
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.store import resolve
from tests.support.processes import printed_by

OLD = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.mark.parametrize("is_faster", [True, False])
def test_the_faster_product_is_taken_and_both_give_the_same(
    is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear._is_onednn_faster.cache_clear()
    seconds = [1.0, 2.0] if is_faster else [2.0, 1.0]
    monkeypatch.setattr(linear, "shortest_s", lambda *_products: seconds)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator) for s in ((7, 24), (40, 24)))
    layer = Linear(weight, None)
    linear._is_onednn_faster.cache_clear()
    assert layer._is_packed is (is_faster and linear._has_onednn(torch.float32))
    torch.testing.assert_close(layer(x), x @ weight.T)


def test_the_shorter_of_several_times_counts() -> None:
    calls = []

    def product() -> torch.Tensor:
        calls.append(0)
        return torch.zeros(1)

    first, second = linear.shortest_s(product, product)
    assert 0 < first < 1
    assert 0 < second < 1
    assert len(calls) == 2 * (1 + linear._ROUNDS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_emulated_dtype_is_refused_when_the_engine_loads(
    dtype: str, bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "times_float32", lambda _dtype: 35.0)
    model = resolve(str(bert_mean_dir))
    with pytest.raises(ModelError, match=f"dtype '{dtype}': .* 35 times as long as in float32"):
        load_engine(model, EngineOptions.of(model, dtype=dtype))


def test_a_cpu_without_the_instructions_is_seen_to_emulate_them() -> None:
    code = "from pipeline.embed.emulation import EMULATED, times_float32\n"
    code += "print(times_float32('bfloat16') > EMULATED)"
    assert printed_by(code, environment=OLD) == "True\n"
    assert times_float32("float32") < 4


def test_a_race_is_run_in_one_thread_and_leaves_the_number_as_it_was() -> None:
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with linear.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), linear.one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
