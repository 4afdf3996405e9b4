"""Results that arrive late, and calls of two threads on one engine, on a stand-in for the device.

The stand-in does what a GPU may do: a copy to pinned memory ends at the last moment that its event
allows, copies that nobody waits for end in any order, and a pinned buffer that nothing refers to is
handed out again at once. Oracle: the same engine on the CPU alone, bit for bit.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.embed.engine import Engine
from pipeline.embed.stats import EngineStats
from pipeline.errors import ModelError
from pipeline.job.model.store import resolve
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean

BUDGET = 60


class OnDevice(torch.Tensor):
    is_cpu = property(lambda _: False)


class Pinned(torch.Tensor):
    device_of: Any
    buffer: np.ndarray

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Pinned:
        assert non_blocking
        self.device_of.queue(self.buffer, source.numpy().reshape(-1).copy())
        return self


class Device:
    """log: what the host did, in its order: ("queue" or "wait", number of the bucket)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.log: list[tuple[str, int]] = []
        self.pending: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.unused: list[np.ndarray] = []
        self.n_reused = 0
        self.chance = np.random.default_rng(0)
        self.before_waiting: Callable[[int], None] = lambda _: None

    def empty(self, shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> Pinned:
        assert (pin_memory, dtype) == (True, torch.float32)
        size = int(np.prod(shape))
        with self.lock:
            self.n_reused += bool(self.unused)
            buffer = self.unused.pop() if self.unused else np.empty(10_000, np.float32)
        buffer[:] = np.nan
        host = torch.from_numpy(buffer[:size]).view(shape).as_subclass(Pinned)
        host.device_of, host.buffer = self, buffer
        weakref.finalize(host, self.unused.append, buffer)
        return host

    def queue(self, buffer: np.ndarray, values: np.ndarray) -> None:
        with self.lock:
            number = sum(what == "queue" for what, _ in self.log)
            self.log.append(("queue", number))
            self.pending[number] = (buffer, values)
            for other in self.chance.permutation(list(self.pending))[: self.chance.integers(0, 2)]:
                self.end(int(other))

    def end(self, number: int) -> None:
        with self.lock:
            buffer, values = self.pending.pop(number, (np.empty(0), np.empty(0)))
            buffer[: values.size] = values

    def event(self) -> Event:
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.number = self.device.log[-1][1]

    def synchronize(self) -> None:
        self.device.before_waiting(self.number)
        with self.device.lock:
            self.device.log.append(("wait", self.number))
        self.device.end(self.number)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = bert_mean(tmp_path_factory.mktemp("embed") / "bert")
    return engine_of(resolve(str(path)), max_batch_tokens=BUDGET)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    monkeypatch.setattr(torch, "empty", device.empty)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    yield device
    assert not any(what == "queue" and number in device.pending for what, number in device.log)


def on_device(plain: Engine, memory_tokens: int = 10_000) -> Any:
    """The engine with its results on the stand-in, whose memory holds so many tokens."""
    engine = copy.copy(plain)
    forward = plain._forward

    def forwarded(ids: Any, offsets: Any, rows: Any) -> Any:
        if (offsets[rows + 1] - offsets[rows]).sum() > memory_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result, n_tokens = forward(ids, offsets, rows)
        return result.as_subclass(OnDevice), n_tokens

    engine._forward = forwarded
    return engine


def ragged(seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    offsets = np.cumsum([0, *chance.integers(1, 40, 60)])
    return chance.integers(5, 900, offsets[-1]).astype(np.int32), offsets


def test_rows_are_right_when_copies_end_late_and_in_any_order(
    plain: Engine, device: Device
) -> None:
    ids, offsets = ragged(0)
    expected = plain.embed(ids, offsets)
    np.testing.assert_array_equal(on_device(plain).embed(ids, offsets), expected)
    assert device.n_reused > 5


def test_the_host_waits_for_a_bucket_only_when_the_next_one_is_queued(
    plain: Engine, device: Device
) -> None:
    stats = EngineStats()
    on_device(plain).embed(*ragged(0), stats)
    n = stats.n_batches
    expected = [("queue", 0)]
    for number in range(1, n):
        expected += [("queue", number), ("wait", number - 1)]
    assert device.log == [*expected, ("wait", n - 1)]


def test_one_call_queues_while_another_waits_for_its_last_bucket(
    plain: Engine, device: Device
) -> None:
    texts = [ragged(0), ragged(1)]
    alone = [EngineStats(), EngineStats()]
    expected = [plain.embed(*text, stats) for text, stats in zip(texts, alone, strict=True)]
    last = alone[0].n_batches - 1
    engine = on_device(plain)
    stats = [EngineStats(), EngineStats()]
    first_waits, second_queued = threading.Event(), threading.Event()

    def before_waiting(number: int) -> None:
        if number == last:
            first_waits.set()
            assert second_queued.wait(30)
        elif number > last:
            second_queued.set()

    device.before_waiting = before_waiting
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.embed, *texts[0], stats[0])
        assert first_waits.wait(30)
        second = threads.submit(engine.embed, *texts[1], stats[1])
        for vectors, alike in zip((first.result(), second.result()), expected, strict=True):
            np.testing.assert_array_equal(vectors, alike)
    for own, other in zip(stats, alone, strict=True):
        own.seconds = other.seconds
        assert own == other


@pytest.mark.parametrize(
    ("ids", "offsets", "error"),
    [
        (np.full(300, 7, np.int32), np.array([0, 300]), torch.OutOfMemoryError),
        (np.array([10**6], np.int32), np.array([0, 1]), ModelError),
    ],
    ids=["does not fit", "foreign id"],
)
def test_a_call_that_fails_leaves_its_neighbours_alone(
    plain: Engine, device: Device, ids: np.ndarray, offsets: np.ndarray, error: type[Exception]
) -> None:
    good, counted = ragged(0), EngineStats()
    expected = plain.embed(*good, counted)
    engine = on_device(plain, memory_tokens=BUDGET)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            stats = EngineStats()
            fails = threads.submit(engine.embed, ids, offsets)
            succeeds = threads.submit(engine.embed, *good, stats)
            with pytest.raises(error):
                fails.result()
            np.testing.assert_array_equal(succeeds.result(), expected)
            stats.seconds = counted.seconds
            assert stats == counted


def test_halved_buckets_count_for_the_call_whose_buckets_they_were(
    plain: Engine, device: Device
) -> None:
    engine = on_device(plain, memory_tokens=BUDGET)
    engine.budget_tokens = 400
    has_halved = threading.Event()
    halved, later = EngineStats(on_bucket=lambda _: has_halved.set()), EngineStats()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(engine.embed, *ragged(0), halved)]
        assert has_halved.wait(30)
        calls.append(threads.submit(engine.embed, *ragged(1), later))
        for call, seed in zip(calls, (0, 1), strict=True):
            # other buckets sum in another order
            np.testing.assert_allclose(call.result(), plain.embed(*ragged(seed)), atol=2e-5)
    assert halved.n_oom_halvings > 0
    assert later.n_oom_halvings == 0
    assert engine.budget_tokens <= BUDGET
