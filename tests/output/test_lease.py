"""One refresh at a time: who gets the lease, when it is taken over, and that it never stands in a
run's way.

Oracle: the objects in storage, real processes that are killed, and a clock that only the store has.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseHeld
from pipeline.output import lease
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.vacuum import vacuum
from tests import ROOT
from tests.support.outputs import make_spec, run_without_ray, write_shard

HOLD = """
import sys, time
from pipeline.output import lease
from pipeline.storage.store import Store
with lease.hold(Store(sys.argv[1]), float(sys.argv[2])) as number:
    print(number, flush=True)
    # in short sleeps: a signal after SIGCONT may be given to the other thread, and wakes nobody
    for _ in range(600):
        time.sleep(0.1)
"""


def holder(uri: str, ttl_s: float) -> subprocess.Popen[str]:
    """A process that holds the lease; returns when it has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, uri, str(ttl_s)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout
    assert process.stdout.readline().strip().isdigit()
    return process


def leases(store: Store) -> list[str]:
    return [name.removeprefix("_meta/leases/").lstrip("0") for name in store.list("_meta/leases")]


def test_the_second_one_is_told_who_holds_it_and_the_next_one_gets_a_new_number(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    with lease.hold(store) as first:
        with (
            pytest.raises(LeaseHeld, match=rf"holds lease 1 .*{os.getpid()}") as held,
            lease.hold(store),
        ):
            pass
        assert held.value.exit_code == 6
    with lease.hold(store) as second:
        assert (first, second) == (1, 2)
        assert leases(store) == ["2/holder.json"]  # what is over is cleared away
    assert leases(store) == ["2/holder.json", "2/released"]


def make_older(root: Path, seconds: float) -> None:
    """As if what there is of leases had been written so long ago. Their holders stand still."""
    when = time.time() - seconds
    for path in (root / "_meta/leases").glob("*/*"):
        os.utime(path, (when, when))


def test_a_killed_holder_is_followed_after_its_time_and_not_before(tmp_path: Path) -> None:
    store, ttl_s = Store(str(tmp_path)), 600.0
    process = holder(str(tmp_path), 1.0)
    try:
        (taken,) = (tmp_path / "_meta/leases").glob("*/holder.json")
        os.utime(taken, (0, 0))
        end_s = time.monotonic() + 60
        while "beat" not in (beats := " ".join(leases(store))) and time.monotonic() < end_s:
            time.sleep(0.01)
        assert "beat" in beats
        with pytest.raises(LeaseHeld), lease.hold(store, ttl_s):  # alive: it beats
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    make_older(tmp_path, ttl_s - 300)
    with pytest.raises(LeaseHeld, match=r"last sign of life 3\d\d s"), lease.hold(store, ttl_s):
        pass
    make_older(tmp_path, ttl_s + 1)
    with lease.hold(store, ttl_s) as number:
        assert number == 2


def test_age_is_told_by_the_clock_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is a day ahead or behind sees the same lease."""
    real = time.time
    with lease.hold(Store(str(tmp_path))):
        for days in (-1, 1):
            monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
            with pytest.raises(LeaseHeld), lease.hold(Store(str(tmp_path))):
                pass


def test_a_holder_that_slept_past_its_time_ends_well_and_does_not_release_the_next_one(
    tmp_path: Path,
) -> None:
    store, ttl_s = Store(str(tmp_path)), 600.0
    process = holder(str(tmp_path), 0.5)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    make_older(tmp_path, 2 * ttl_s)
    with lease.hold(store, ttl_s) as number:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        with pytest.raises(LeaseHeld, match=f"lease {number}"), lease.hold(store, 30):
            pass


def race(stores: list[Store]) -> list[int]:
    n_refused = threading.Semaphore(0)

    def take(store: Store) -> int:
        try:
            with lease.hold(store) as number:
                for _ in stores[1:]:  # held until all the others have asked
                    assert n_refused.acquire(timeout=60)
                return number
        except LeaseHeld:
            n_refused.release()
            return 0

    with ThreadPoolExecutor(len(stores)) as pool:
        return sorted(pool.map(take, stores))


def test_of_eight_that_ask_at_once_one_gets_it(tmp_path: Path) -> None:
    assert race([Store(str(tmp_path)) for _ in range(8)]) == [0] * 7 + [1]


def test_on_s3_too_one_of_eight_gets_it_and_a_silent_one_is_followed(s3: Any) -> None:
    stores = [Store(f"{s3.uri}/out", s3.storage_options) for _ in range(8)]
    assert race(stores) == [0] * 7 + [1]
    store = stores[0]
    store.put_if_absent(layout.lease(2, "holder.json"), b"{}")
    with pytest.raises(LeaseHeld, match="lease 2"), lease.hold(store, 60):
        pass
    time.sleep(2.1)  # LastModified has whole seconds
    with lease.hold(store, 1) as number:
        assert number == 3


def test_refresh_of_an_unchanged_corpus_needs_no_ray_and_ends_at_once_while_another_one_runs(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "A text.", "lang": "en"}])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    assert run_without_ray(spec)
    (tmp_path / "job.yaml").write_text(spec.to_yaml())
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "refresh",
        str(tmp_path / "job.yaml"),
        "--nominal-time",
        "2026-11-22",
    ]
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}  # nothing is there: whoever asks Ray, fails

    def refresh() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    done = refresh()
    assert (done.returncode, "nothing to do" in done.stderr) == (0, True), done.stderr
    with lease.hold(Store(spec.output.uri)):
        refused = refresh()
    assert refused.returncode == 6
    assert "LeaseHeld" in refused.stderr
    assert leases(Store(spec.output.uri)) == ["2/holder.json", "2/released"]
    vacuum(spec.output.uri, keep_snapshots=1, older_than=datetime.timedelta(0), delete=True)
    assert leases(Store(spec.output.uri)) == []
