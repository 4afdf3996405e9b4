"""Poison items are found by halving, in this process or in children that die, and everything else
comes out.

Oracle: the list of poison items that the test planted, and the count of processes that were
started.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.errors import SpecError, WorkerError
from pipeline.workers.isolate import EXIT_CUDA, MAX_DEATHS, Child, Crashed, in_process, isolate
from tests import ROOT
from tests.support.processes import below


def load_worker(
    starts: Path, killers: set[int], raisers: set[int]
) -> Callable[[Sequence[int]], list[int]]:
    """For a Child: squares; a real segmentation fault on some numbers, an exception on others."""
    with starts.open("a") as file:
        file.write("start\n")

    def squares(numbers: Sequence[int]) -> list[int]:
        if killers & set(numbers):
            ctypes.string_at(0)
        if SLEEPS in numbers:
            time.sleep(-SLEEPS)
        if raisers & set(numbers):
            raise RuntimeError("no square")
        return [number**2 for number in numbers]

    return squares


def n_starts(starts: Path) -> int:
    return len(starts.read_text().splitlines()) if starts.exists() else 0


def squares_of(n: int, child: Child) -> tuple[dict[int, int], dict[int, Crashed]]:
    squares: dict[int, int] = {}

    def attempt(start: int, stop: int) -> None:
        squares.update(zip(range(start, stop), child.ask(range(start, stop)), strict=True))

    failed = isolate([(0, n)], attempt, lambda: child.ask([-1]))
    return squares, failed


@pytest.mark.faults
@pytest.mark.parametrize(
    "poison",
    [
        {0, 199},
        pytest.param({17, 18}, marks=pytest.mark.slow),
        pytest.param({5, 160}, marks=pytest.mark.slow),
    ],
)
def test_poison_items_are_found_in_few_restarts_and_the_others_come_out(
    tmp_path: Path, poison: set[int]
) -> None:
    starts = tmp_path / "starts"
    with Child(load_worker, starts, poison, {100}) as child:
        squares, failed = squares_of(200, child)
    assert set(failed) == poison | {100}
    assert squares == {n: n**2 for n in range(200) if n not in poison | {100}}
    assert {failed[n].detail for n in poison} == {"the worker process died: SIGSEGV"}
    assert (failed[100].detail, failed[100].died) == ("RuntimeError: no square", False)
    # the first start, one for all of them, and for each its run of 12 or 13, itself alone, and once
    # more
    assert n_starts(starts) <= 2 + 3 * len(poison)


@pytest.mark.faults
def test_an_item_is_not_blamed_for_one_death_that_something_else_caused(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with Child(load_worker, starts, set(), set()) as child:
        child.ask([1])
        os.kill(child._process.pid, 9)
        squares, failed = squares_of(1, child)
    assert (squares, failed) == ({0: 0}, {})
    assert n_starts(starts) == 2


@pytest.mark.faults
def test_a_worker_that_dies_on_everything_is_an_error_and_no_reject(tmp_path: Path) -> None:
    with (
        Child(load_worker, tmp_path / "starts", {-1, 0}, set()) as child,
        pytest.raises(WorkerError, match="harmless"),
    ):
        squares_of(1, child)


SCRIPT = """
from pathlib import Path
from tests.workers.test_isolate import Child, load_worker

print("once")
with Child(load_worker, Path("starts"), set(), set()) as child:
    print(child.ask([3]), flush=True)
    if "wait" in __import__("sys").argv:
        child.ask([SLEEPS])
"""
SLEEPS = -60


def test_a_child_does_not_run_the_script_of_the_caller_again(tmp_path: Path) -> None:
    """Whoever calls `pipeline.run` need not guard it by `__name__ == "__main__"`."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pipeline.py").write_text("raise SystemExit('a stranger')")
    done = subprocess.run(
        [sys.executable, "-P", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("once\n[9]\n", "")
    assert n_starts(tmp_path / "starts") == 1


@pytest.mark.faults
def test_a_child_ends_in_the_middle_of_its_work_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.replace("SLEEPS", str(SLEEPS)))
    parent = subprocess.Popen(
        [sys.executable, "-P", "script.py", "wait"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    assert [parent.stdout.readline() for _ in range(2)] == [b"once\n", b"[9]\n"]
    (child,) = below(parent.pid)
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 50  # its work takes 60 s
    while os.path.exists(f"/proc/{child}"):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.faults
def test_a_child_that_answers_too_late_is_killed_and_the_next_question_has_a_new_one(
    tmp_path: Path,
) -> None:
    starts = tmp_path / "starts"
    others = below(os.getpid()).keys()  # servers of other tests
    with Child(load_worker, starts, set(), set()) as child:
        assert child.ask([2], time.monotonic() + 60) == [4]
        (process,) = below(os.getpid()).keys() - others
        with pytest.raises(TimeoutError):
            child.ask([SLEEPS], time.monotonic() + 0.01)
        assert not os.path.exists(f"/proc/{process}")
        assert child.ask([3]) == [9]
    assert n_starts(starts) == 2


@pytest.mark.faults
def test_a_child_can_be_killed_while_another_thread_asks_it(tmp_path: Path) -> None:
    with Child(load_worker, tmp_path / "starts", set(), set()) as child:
        child.ask([1])
        timer = threading.Timer(0.2, child.kill)
        timer.start()
        with pytest.raises(Crashed, match="SIGKILL"):
            child.ask([SLEEPS])
        timer.join()


def load_nothing() -> Callable[[object], object]:
    ctypes.string_at(0)
    raise AssertionError("unreachable")


@pytest.mark.faults
def test_a_worker_that_dies_while_it_loads_is_an_error_after_three_tries() -> None:
    with Child(load_nothing) as child, pytest.raises(WorkerError, match="SIGSEGV"):
        child.ask(1)


def test_deaths_are_bounded_when_everything_but_the_harmless_is_poison() -> None:
    n_deaths = 0

    def attempt(start: int, stop: int) -> None:
        nonlocal n_deaths
        n_deaths += 1
        raise Crashed("crashed_worker", "SIGSEGV", died=True)

    with pytest.raises(WorkerError, match=r"\d+ texts were found"):
        isolate([(0, 30_000)], attempt, lambda: None)
    assert n_deaths == MAX_DEATHS + 1


def test_errors_of_ours_and_broken_devices_are_not_blamed_on_items() -> None:
    def fails(error: BaseException) -> Callable[[], None]:
        def work() -> None:
            raise error

        return in_process(work)

    for error in (SpecError("wrong"), PermissionError("the index of known vectors cannot be read")):
        with pytest.raises(type(error)):
            fails(error)()
    with pytest.raises(Crashed) as memory:
        fails(MemoryError("no room"))()
    assert memory.value.reason == "out_of_memory"
    process = os.fork()
    if process == 0:
        fails(RuntimeError("CUDA error: device-side assert triggered"))()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == EXIT_CUDA
