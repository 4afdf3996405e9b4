"""The engines on a GPU: the vectors of sentence-transformers on a CPU, whatever the batch, the
memory and the kernels.

Needs torch with CUDA, transformers and sentence-transformers; neither ray nor MeCab: `pytest -m gpu
tests/embed/test_gpu.py`. Oracle: `SentenceTransformer.encode` in float32 on a CPU. Tolerances:
those of bfloat16 parity, but that weights are random: where sentence-transformers in this dtype on
this GPU is itself beyond the mean, a quarter more than it. Two runs over other batches or other
kernels: a tenth of what bfloat16 may cost in float16, and in bfloat16 what it may cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.gpu import make_model
from pipeline.embed import steps
from pipeline.job.model.directory import ModelDir, read_model
from tests.support.engines import engine_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LEAST = {"float16": 0.9999, "bfloat16": 0.999}
"""Cosine of two runs that differ in the order of sums."""
LENGTHS = [1, 3, 17, 64, 65, 128, 200, 500, 17, 2]


@dataclass
class Case:
    model: ModelDir
    texts: list[str]
    ids: np.ndarray
    offsets: np.ndarray
    exact: np.ndarray  # (N, D) float32 from a CPU


@pytest.fixture(scope="module", params=["bert", "llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = make_model(tmp_path_factory.mktemp("gpu"), request.param, tiny=True)
    chance = np.random.default_rng(0)
    texts = [
        " ".join(f"w{word}" for word in chance.integers(0, 500, length)) for length in LENGTHS * 20
    ]
    st = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    rows = st.tokenizer(texts, truncation=True)["input_ids"]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Case(
        read_model(path, str(path)),
        texts,
        np.concatenate(rows).astype(np.int32),
        offsets,
        st.encode(texts),
    )


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_vectors_are_those_of_sentence_transformers(case: Case, kind: str, dtype: str) -> None:
    engine = engine_of(case.model, engine=kind, dtype=dtype, device="cuda")
    st = SentenceTransformer(
        str(case.model.path), device="cuda", model_kwargs={"dtype": getattr(torch, dtype)}
    )
    theirs = 1 - cosines(st.encode(case.texts).astype(np.float32), case.exact)
    ours = 1 - cosines(engine.embed(case.ids, case.offsets), case.exact)
    assert ours.max() <= 0.001
    assert ours.mean() <= max(0.0001, 1.25 * theirs.mean())


def test_float32_on_a_gpu_is_float32(case: Case) -> None:
    engine = engine_of(case.model, dtype="float32", device="cuda")
    assert engine.name == "padded"
    assert cosines(engine.embed(case.ids, case.offsets), case.exact).min() >= 0.99999


@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize("budget", [512, 4096])
def test_vectors_do_not_depend_on_the_batch(case: Case, budget: int, dtype: str) -> None:
    whole = engine_of(
        case.model, engine="packed", dtype=dtype, device="cuda", max_batch_tokens=32768
    )
    small = engine_of(
        case.model, engine="packed", dtype=dtype, device="cuda", max_batch_tokens=budget
    )
    a, b = (engine.embed(case.ids, case.offsets) for engine in (whole, small))
    assert small.stats.n_batches > whole.stats.n_batches
    assert cosines(a, b).min() >= LEAST[dtype]


@pytest.mark.parametrize("dtype", LEAST)
def test_steps_that_were_compiled_give_what_plain_ones_give(
    case: Case, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    options = {"engine": "packed", "dtype": dtype, "device": "cuda", "max_batch_tokens": 8192}
    options["is_tuned"] = True
    chosen = engine_of(case.model, **options).embed(case.ids, case.offsets)
    monkeypatch.setattr(steps, "fastest", lambda step, _sample, _device: step)
    plain = engine_of(case.model, **options).embed(case.ids, case.offsets)
    assert cosines(chosen, plain).min() >= LEAST[dtype]


@pytest.mark.parametrize("pooling", ["auto", "mean", "max", "weighted_mean"])
def test_nothing_in_the_loop_waits_for_the_device(case: Case, pooling: str) -> None:
    options = {"engine": "packed", "dtype": "bfloat16", "device": "cuda", "max_batch_tokens": 2048}
    engine = engine_of(case.model, pooling=pooling, **options)
    engine.embed(case.ids, case.offsets)  # warms up
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.embed(case.ids, case.offsets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_out_of_memory_halves_the_bucket_and_loses_no_row(case: Case) -> None:
    engine = engine_of(
        case.model, engine="packed", dtype="bfloat16", device="cuda", max_batch_tokens=1 << 22
    )
    ids, offsets = (
        np.tile(case.ids, 200),
        np.concatenate([[0], np.cumsum(np.tile(np.diff(case.offsets), 200))]),
    )
    torch.cuda.empty_cache()
    used, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (used + (256 << 20)) / total))
    try:
        vectors = engine.embed(ids, offsets)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.stats.n_oom_halvings > 0
    assert cosines(vectors, np.tile(case.exact, (200, 1))).min() >= 0.999
