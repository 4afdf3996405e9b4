"""A device that is out of memory when an engine is loaded: tried again, then named.

Oracle: a stand-in for loading that needs what another process holds.
"""

from __future__ import annotations

import resource
import weakref
from typing import Any

import pytest
import torch

from pipeline.embed import attention, loading
from pipeline.embed.memory import is_out_of_memory, keep_freed_memory
from pipeline.errors import WorkerError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.store import resolve
from pipeline.workers.isolate import Crashed, in_process
from tests.embed.test_attention import sizes_of
from tests.embed.test_engine import ragged
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean

SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. GPU 0 has a total capacity of 79.10 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return resolve(str(bert_mean(tmp_path_factory.mktemp("embed") / "bert")))


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that loading has waited."""
    seconds: list[float] = []
    monkeypatch.setattr(loading.time, "sleep", seconds.append)
    return seconds


class Weights:
    """What was loaded before memory ran out."""


def load_beside(monkeypatch: pytest.MonkeyPatch, n_failures: int, error: Exception) -> list[Any]:
    """Loading fails so often. Returns the weights that were read, as weak references."""
    read: list[Any] = []

    def load(*_: Any) -> Any:
        assert not any(weights() for weights in read), "the last try still holds memory"
        weights = Weights()
        weights.again = weights
        read.append(weakref.ref(weights))
        if len(read) <= n_failures:
            raise type(error)(*error.args)
        return "engine"

    monkeypatch.setattr(loading, "_load", load)
    return read


@pytest.mark.parametrize("error", SHORT, ids=lambda error: str(error)[:30])
def test_loading_is_tried_again_while_another_process_holds_the_memory(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch, waited: list[float], error: Exception
) -> None:
    read = load_beside(monkeypatch, 3, error)
    assert loading.load_engine(model, EngineOptions.of(model)) == "engine"
    assert len(read) == 4
    assert waited == sorted(waited)
    assert len(waited) == 3


def test_memory_that_stays_short_is_an_error_that_says_where_and_who_holds_it(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    load_beside(monkeypatch, 100, SHORT[0])
    options = EngineOptions.of(model, device="cuda", dtype="bfloat16")
    with pytest.raises(WorkerError, match=r"'cuda' to load it as bfloat16: CUDA out.* 79\.10 GiB"):
        loading.load_engine(model, options)
    assert 30 <= sum(waited) <= 120


def test_what_is_not_a_lack_of_memory_is_raised_at_once(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    load_beside(monkeypatch, 100, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side"):
        loading.load_engine(model, EngineOptions.of(model))
    assert not waited


@pytest.mark.parametrize("error", SHORT, ids=lambda error: str(error)[:30])
def test_short_memory_is_no_reason_for_padding(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", short)
    with pytest.raises(type(error)):
        attention.flash_problem(sizes_of(64, True, True), torch.bfloat16, "cpu")


@pytest.mark.parametrize("error", [*SHORT, MemoryError()], ids=lambda error: str(error)[:30])
def test_a_text_that_finds_no_memory_costs_no_process(error: Exception) -> None:
    def work() -> None:
        raise error

    assert is_out_of_memory(error)
    with pytest.raises(Crashed) as crash:
        in_process(work)()
    assert (crash.value.reason, crash.value.died) == ("out_of_memory", False)


def test_a_bucket_that_cuda_itself_finds_no_memory_for_is_halved(model: ModelDir) -> None:
    engine = engine_of(model, max_batch_tokens=512)
    expected = engine.embed(*ragged())
    forward = engine._forward

    def short(ids: Any, offsets: Any, rows: Any) -> Any:
        if rows.size > 3:
            raise SHORT[1]
        return forward(ids, offsets, rows)

    engine._forward = short  # type: ignore[method-assign]
    torch.testing.assert_close(
        torch.from_numpy(engine.embed(*ragged())),
        torch.from_numpy(expected),
        atol=2e-5,
        rtol=0,
        equal_nan=True,
    )
    assert engine.stats.n_oom_halvings > 0


def test_what_a_layer_frees_does_not_come_anew_from_the_system() -> None:
    """By glibc's own rule 80 MiB in blocks of 20 are given back: 20,480 pages each time."""

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.zeros(5 << 20) for _ in range(4)]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        del blocks
        return after - before

    keep_freed_memory()
    page_faults()
    assert min(page_faults() for _ in range(5)) < 5_120  # fewer than one block has
