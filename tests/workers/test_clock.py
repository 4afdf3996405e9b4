"""Seconds of parts that overlap add up to the time that passed.

Oracle: the moments at which parts begin and end, chosen here.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.workers import clock as clock_module
from pipeline.workers.clock import Clock


def run(monkeypatch: pytest.MonkeyPatch, *events: tuple[float, str]) -> dict[str, dict[str, float]]:
    """Parts by name; the first event of a name is its begin, the second its end. From 0 on."""
    now_s = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now_s[0])
    clock = Clock()
    parts: dict[str, ExitStack] = {}
    seconds: dict[str, dict[str, float]] = {}
    for at_s, name in events:
        now_s[0] = at_s
        if name in parts:
            parts[name].close()
        else:
            parts[name] = ExitStack()
            seconds[name] = parts[name].enter_context(clock.part())
    return seconds


def test_one_part_after_the_other_waits_between_and_works_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = run(monkeypatch, (2, "a"), (5, "a"), (5.5, "b"), (9.5, "b"))
    assert seconds["a"] == {"embedders_starved": 2, "embed": 3}
    assert seconds["b"] == {"embedders_starved": 0.5, "embed": 4}


def test_a_part_that_begins_early_counts_from_the_end_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = run(monkeypatch, (0, "a"), (1, "b"), (10, "a"), (10, "c"), (18, "b"), (20, "c"))
    assert {name: s["embed"] for name, s in seconds.items()} == {"a": 10, "b": 8, "c": 2}
    assert {s["embedders_starved"] for s in seconds.values()} == {0}


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8))
def test_every_moment_counts_once(spans: list[tuple[float, float]]) -> None:
    events = sorted((at, str(n)) for n, span in enumerate(spans) for at in span)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seconds = run(monkeypatch, *events)
    total = sum(sum(part.values()) for part in seconds.values())
    assert total == pytest.approx(events[-1][0])
    assert min(value for part in seconds.values() for value in part.values()) >= 0


def test_a_part_that_fails_ends() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="spoiled"), clock.part():
        raise ValueError("spoiled")
    with clock.part() as seconds:
        pass
    assert seconds["embedders_starved"] > 0
