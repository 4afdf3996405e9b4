"""How far a run has come can be asked from elsewhere, and a run that died is known as silent.

Oracle: figures that the test sets, and processes that it starts and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.observe import live_record
from pipeline.observe.live_record import live_runs, recorded
from pipeline.observe.progress import Progress
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.vacuum import vacuum
from tests import ROOT
from tests.cli.test_live import half_done
from tests.cli.test_main import called
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, run, store_of

RUN_ID = "0" * 16


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_record, "FIRST_S", 0.0)
    monkeypatch.setattr(live_record, "EVERY_S", 0.05)


def wait_for_a_record(store: Store) -> None:
    deadline = time.monotonic() + 100
    while not live_runs(store):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("prompt")
def test_status_shows_a_run_while_it_works_and_nothing_of_it_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    store = Store(str(out))
    progress, _ = half_done()
    with recorded(store, RUN_ID, "nightly [red]", progress):
        wait_for_a_record(store)
        assert called(monkeypatch, "status", str(out)) == 0
        printed = capsys.readouterr().out
        assert called(monkeypatch, "status", str(out), "--json") == 0
        (facts,) = json.loads(capsys.readouterr().out)["runs"]
        time.sleep(0.2)
        assert len(store.list(layout.LIVE)) <= 2
    assert f"run {RUN_ID} of job 'nightly [red]' works on " in printed
    assert "embedding, 1:40: 50% · 1:30 left · 1,330 documents" in printed
    assert "tokenizers wait for embedders" in printed
    assert (facts["figures"]["documents"], facts["is_silent"]) == (1330, False)
    assert not store.list(layout.LIVE)


@pytest.mark.usefixtures("prompt")
def test_a_run_leaves_a_record_while_it_works(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "hello"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    runs: list[Any] = []

    class Slow(HashEngine):
        def embed(self, ids: Any, offsets: Any, stats: Any) -> Any:
            wait_for_a_record(store_of(spec))
            runs.extend(live_runs(store_of(spec)))
            return super().embed(ids, offsets, stats)

    plan = make_plan(job_of(spec), store_of(spec))
    assert run(spec, Slow()) is not None
    assert [(live.run_id, live.job) for live in runs] == [(plan.run_id, "stand-in")]
    assert not store_of(spec).list(layout.LIVE)


def test_a_run_that_was_killed_is_silent_at_once_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys, time\n"
        "from pipeline.observe import live_record\n"
        "from pipeline.observe.progress import Progress\n"
        "from pipeline.storage.store import Store\n"
        "live_record.FIRST_S = 0.0\n"
        f"with live_record.recorded(Store(sys.argv[1]), '{RUN_ID}', 'a job', Progress()):\n"
        "    time.sleep(600)\n"
    )
    out = tmp_path / "out"
    store = Store(str(out))
    with subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT) as process:
        wait_for_a_record(store)
        (before,) = live_runs(store)
        process.kill()
    (after,) = live_runs(store)
    assert (before.is_silent, after.is_silent) == (False, True)
    assert after.process == process.pid
    assert called(monkeypatch, "status", str(out)) == 0
    assert "it has probably died" in capsys.readouterr().out


def test_a_run_elsewhere_is_silent_after_a_minute_and_strange_objects_are_passed_over(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path / "out"))
    progress, _ = half_done()
    record = {
        "host": "another",
        "process": 1,
        "namespace": None,
        "run_id": RUN_ID,
        "job": "a job",
        "since": "2026-01-01T00:00:00+00:00",
        "seen": "2026-01-01T00:05:00+00:00",
        "figures": live_record.figures(progress),
    }
    for number, data in enumerate(
        [json.dumps(record), "[]", "{", json.dumps({**record, "seen": "x"}), '{"figures": 1}'], 1
    ):
        store.put_if_absent(layout.live_record(RUN_ID, f"{number}", 1), data.encode())
    store.put_if_absent(f"{layout.LIVE}/readme", b"hello")
    (live,) = live_runs(store)
    assert (live.host, live.is_silent) == ("another", True)


def test_a_store_that_takes_no_record_hurts_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_record, "FIRST_S", 0.0)
    store = Store(str(tmp_path / "out"))

    def refuse(*_: object) -> bool:
        raise PermissionError("read-only")

    monkeypatch.setattr(store, "put_if_absent", refuse)
    with recorded(store, RUN_ID, "a job", Progress()):
        time.sleep(0.05)
    assert live_runs(store) == []


def test_vacuum_removes_the_record_of_a_dead_run_and_knows_its_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "hello"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    assert run(spec) is not None
    path = layout.live_record(RUN_ID, "a" * 16, 3)
    store_of(spec).put_if_absent(path, b"{}")
    old = tmp_path / "out" / path
    os.utime(old, (1, 1))
    assert vacuum(str(tmp_path / "out"), delete=True).paths == {path: "of a run that ended or died"}
    assert not old.exists()
