"""The estimated time to the end, against the truth of timelines: a recorded one, and made-up runs
whose every second the test knows.

Oracle: when the timeline ends.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from pipeline.observe.progress import EMBEDDING, Progress
from pipeline.observe.rate import PlannedSplit, Rate, Remaining

RECORDED = [
    (56.9, 0),
    (57.9, 17297),
    (58.9, 17297),
    (59.9, 67433),
    (60.9, 82974),
    (61.9, 133110),
    (62.9, 133110),
    (63.9, 181489),
    (65.0, 225341),
    (66.0, 240881),
    (67.0, 260871),
    (68.0, 275949),
    (69.0, 304019),
    (70.0, 355048),
    (71.1, 370791),
    (72.1, 405550),
    (73.1, 440310),
    (74.1, 459327),
    (75.1, 475070),
    (76.2, 509830),
    (77.2, 544589),
    (78.2, 579349),
    (79.2, 579349),
    (80.2, 619066),
    (81.3, 650224),
    (82.3, 676074),
    (83.3, 676074),
]
"""Seconds and bytes of records done: the quickstart on a machine with eight other programs."""
RECORDED_TOTAL = 695_153
RECORDED_END_S = 84.0

Reading = tuple[float, float]


def etas(
    readings: Sequence[Reading], end_s: float, remaining: Remaining
) -> Iterator[tuple[float, float, float]]:
    """(share that is done, estimate, truth) at each reading."""
    now_s = 0.0
    progress = Progress(clock=lambda: now_s)
    progress.remaining = remaining
    for now_s, n_bytes in readings:
        progress.enter(EMBEDDING)
        progress.advance("part", {"record_bytes": n_bytes})
        progress.read_clock()
        if progress.eta_s is not None:
            yield progress.fraction, progress.eta_s, end_s - now_s


def assert_right_after_a_tenth(estimates: Sequence[tuple[float, float, float]]) -> None:
    """Within a fifth, between the first tenth and the last, where seconds decide."""
    n_compared = 0
    for share, eta_s, truth_s in estimates:
        if 0.1 <= share <= 0.9:
            assert eta_s == pytest.approx(truth_s, rel=0.2), f"at {share:.0%}"
            n_compared += 1
    assert n_compared > 5


def test_the_estimate_follows_a_recorded_run() -> None:
    remaining = Remaining([PlannedSplit("all", "", RECORDED_TOTAL)])
    estimates = list(etas(RECORDED, RECORDED_END_S, remaining))
    late = [(eta, truth) for share, eta, truth in estimates if share > 0.15]
    assert len(late) > 20
    # a bucket is 2.5 % of this short run, and each of the two embedders has one unreported
    for eta_s, truth_s in late:
        assert eta_s == pytest.approx(truth_s, rel=0.2, abs=2.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start_up_s", [0.0, 300.0])
def test_the_estimate_is_right_after_a_tenth_however_long_the_start_took(
    seed: int, start_up_s: float
) -> None:
    """Four embedders whose buckets take 0.5 to 1.5 s each, read twice a second."""
    random_ = random.Random(seed)
    free = [start_up_s] * 4
    ends = []
    for _ in range(800):
        ends.append(heapq.heappop(free) + random_.uniform(0.5, 1.5))
        heapq.heappush(free, ends[-1])
    ends.sort()
    readings = [(now, 1000 * sum(end <= now for end in ends)) for now in _until(ends, start_up_s)]
    remaining = Remaining([PlannedSplit("all", "", 1000 * len(ends))])
    assert_right_after_a_tenth(list(etas(readings, ends[-1], remaining)))


def _until(ends: Sequence[float], start_s: float) -> Iterator[float]:
    return itertools.takewhile(lambda now_s: now_s <= ends[-1], itertools.count(start_s, 0.5))


def test_a_rate_that_changes_is_followed() -> None:
    """Half of the nodes leave after a minute: a minute later the estimate has forgotten them."""
    rate = Rate()
    for half_second in range(121):
        rate.read(half_second / 2, 100 * half_second / 2)
    assert rate.per_s == pytest.approx(100)
    for half_second in range(1, 181):
        rate.read(60 + half_second / 2, 6000 + 50 * half_second / 2)
    assert rate.per_s == pytest.approx(50, rel=0.1)


def test_there_is_no_rate_before_something_has_grown() -> None:
    rate = Rate()
    assert rate.per_s == 0
    rate.read(5.0, 10.0)
    rate.read(5.0, 20.0)
    assert rate.per_s == 0


def test_finished_splits_correct_the_estimate_of_the_others_of_their_kind() -> None:
    splits = [PlannedSplit(f"gz{n}", "gzip", 400) for n in range(10)]
    remaining = Remaining([*splits, PlannedSplit("plain", "", 1000)])
    assert remaining.total_bytes == 5000
    remaining.assume("gzip", 0.5)
    assert remaining.total_bytes == 3000
    remaining.add_part("gz0", 0, False, 500)
    assert remaining.total_bytes == 3000
    remaining.add_part("gz0", 0, False, 500)  # reported twice: its writer died
    remaining.add_part("gz0", 1, True, 300)
    assert remaining.total_bytes == 800 * 10 + 1000
    remaining.add_part("plain", 0, True, 1010)
    assert remaining.total_bytes == 800 * 10 + 1010


def test_what_an_earlier_run_has_done_is_neither_done_nor_left() -> None:
    split = PlannedSplit("s", "", 1000, done_bytes=300, done_parts=frozenset([0]))
    remaining = Remaining([split])
    assert remaining.total_bytes == 700
    remaining.add_part("s", 1, True, 800)
    assert remaining.total_bytes == 800
    remaining.add_part("unknown", 0, True, 5)
    assert remaining.total_bytes == 800
