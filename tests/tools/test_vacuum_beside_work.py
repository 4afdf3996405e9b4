"""vacuum --delete beside runs, compactions and publications, at every one of their steps and
without any grace: nothing that they adopt is taken away.

Oracle: the documents that the test wrote, and the SHA-256 that the head's manifests state.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import CommitConflict, LeaseHeld, OutputError
from pipeline.output import lease, work
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import VacuumPlan, vacuum
from pipeline.write.create import create_manifest
from tests.support import stand_in
from tests.support.outputs import write_shard

NO_GRACE = datetime.timedelta(0)


def docs(name: str, number: int = 30) -> list[dict[str, Any]]:
    return [{"id": f"{name}-{n}", "text": f"{name} text {n} " * 4} for n in range(number)]


class Scene:
    """An output of small parts with two complete snapshots, and its input."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("a", "b", "c"):
            write_shard(root / f"shards/{name}.jsonl", docs(name))
        self.store = Store(str(root / "out"))
        self.show("a", "b")
        self.run()
        self.show("a")
        self.run()

    def show(self, *names: str) -> None:
        """Make exactly these shards the input; nothing of the files changes."""
        self.names = set(names)
        uris = [str(self.root / f"shards/{name}.jsonl") for name in sorted(names)]
        self.spec = stand_in.make_spec(uris, self.root / "out", runtime={"part_bytes": 1024})

    def run(self) -> Any:
        return stand_in.run(self.spec)

    def vacuum(self, keep: int = 1, older_than: datetime.timedelta = NO_GRACE) -> VacuumPlan:
        return vacuum(self.store.uri, keep_snapshots=keep, older_than=older_than, delete=True)

    def check(self, number: int | None = None) -> None:
        """The head holds the documents of the input, in files as its manifests describe them."""
        table = open_dataset(self.store.uri, number).to_table(columns=["doc_id"])
        expected = sorted(doc["id"] for name in self.names for doc in docs(name))
        assert sorted(table["doc_id"].to_pylist()) == expected
        for part in live_parts(self.store, load_snapshot(self.store, number)):
            for file in part.data_files:
                assert hashlib.sha256(self.store.read(file.path)).hexdigest() == file.sha256


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def before_each_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Calls a function before every object that is created outside of it."""

    def install(interfere: Callable[[], object]) -> None:
        real = Store.put_if_absent
        is_inside = False

        def put(store: Store, relative: str, data: bytes) -> bool:
            nonlocal is_inside
            if not is_inside and not relative.startswith((layout.WORK, "_meta/probes")):
                is_inside = True
                try:
                    interfere()
                finally:
                    is_inside = False
            return real(store, relative, data)

        monkeypatch.setattr(Store, "put_if_absent", put)

    return install


def test_a_vacuum_before_every_write_of_a_run_takes_nothing_from_it(
    scene: Scene, before_each_write: Any
) -> None:
    scene.show("a", "c")
    before_each_write(scene.vacuum)
    scene.run()
    scene.check()


def test_a_vacuum_before_every_write_of_a_compaction_takes_nothing_from_it(
    scene: Scene, before_each_write: Any
) -> None:
    before_each_write(scene.vacuum)
    assert compact(scene.store.uri).n_parts_joined > 1
    scene.check()


def test_a_run_takes_the_parts_of_a_dropped_snapshot_while_vacuums_want_to_delete_them(
    scene: Scene, before_each_write: Any
) -> None:
    """Shard b is back as it was: its parts are in snapshot 1 only, which is not kept."""
    scene.show("a", "b", "c")
    before_each_write(scene.vacuum)
    engine = stand_in.HashEngine()
    stand_in.run(scene.spec, engine)
    scene.check()
    assert len(engine.seen) == len(docs("c"))


def test_an_orphan_of_long_ago_is_adopted_while_vacuums_want_to_delete_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before_each_write: Any
) -> None:
    scene.show("a", "c")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.write.part.create_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            scene.run()
    (orphan,) = set(scene.store.list("data")) - {
        file.path
        for number in (1, 2)
        for part in live_parts(scene.store, load_snapshot(scene.store, number))
        for file in part.data_files
    }
    os.utime(scene.root / "out" / orphan, (0, 0))
    content = scene.store.read(orphan)
    before_each_write(scene.vacuum)
    scene.run()
    scene.check()
    assert scene.store.read(orphan) == content


def test_a_killed_run_leaves_what_a_resume_adopts_at_any_grace(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.show("a", "c")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.write.part.create_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            scene.run()
    before = set(scene.store.list("data"))
    scene.vacuum(keep=2)
    assert set(scene.store.list("data")) == before
    scene.run()
    scene.check()


@pytest.mark.thorough
def test_a_run_waits_for_a_vacuum_that_deletes_and_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work, "NOTE_S", 0.2)
    monkeypatch.setattr(work, "POLL_S", 0.05)
    may_delete = threading.Event()
    real = Store.delete

    def delete(store: Store, relative: str) -> None:
        if threading.current_thread().name == "vacuum" and relative.startswith("data/"):
            may_delete.wait(120)
        real(store, relative)

    monkeypatch.setattr(Store, "delete", delete)
    scene.show("a", "b")  # the vacuum deletes just these parts
    vacuuming = threading.Thread(target=scene.vacuum, name="vacuum")
    vacuuming.start()
    while 1 in snapshot_numbers(scene.store):
        time.sleep(0.02)
    running = threading.Thread(target=scene.run)
    running.start()
    end_s = time.monotonic() + 60
    while "waiting for a vacuum to end" not in caplog.text and time.monotonic() < end_s:
        time.sleep(0.02)
    assert snapshot_numbers(scene.store) == [2]
    may_delete.set()
    running.join(120)
    vacuuming.join(120)
    scene.check(3)
    assert "waiting for a vacuum to end" in caplog.text
    assert scene.store.list(layout.WORK) == {}


def test_marks_of_the_dead_hold_nobody_up_and_go(scene: Scene) -> None:
    for activity, fingerprint in (("run", "ab"), ("vacuum", "")):
        scene.store.put_if_absent(layout.work(f"{activity}-{fingerprint}-{'0' * 16}", 3), b"{}")
    for seconds in (-2 * work.SILENT_S, 40 * work.SILENT_S):  # in the past, and in the future
        for path in scene.store.list(layout.WORK):
            at = time.time() + seconds
            os.utime(scene.root / "out" / path, (at, at))
        plan = vacuum(scene.store.uri, keep_snapshots=1, older_than=NO_GRACE)
        assert not plan.work_under_way
        scene.show("a", "c")
        scene.run()  # at once
    for path in scene.store.list(layout.WORK):
        os.utime(scene.root / "out" / path, (0, 0))
    scene.vacuum()
    assert scene.store.list(layout.WORK) == {}


def test_a_process_of_this_machine_that_was_killed_holds_nobody_up_for_a_moment(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marks are young, and nobody has removed them."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", lambda store, relative: None)
        patch.setattr(os, "getpid", lambda: 2**22 + 1)  # above the largest number of a process
        with work.vacuuming(scene.store), work.under_way(scene.store, "run", "ab", waits=False):
            pass
    assert len(scene.store.list(layout.WORK)) == 2
    assert not vacuum(scene.store.uri).work_under_way
    scene.show("a", "c")
    scene.run()
    scene.check()


def test_while_a_publication_is_alive_every_snapshot_stays(scene: Scene) -> None:
    with work.under_way(scene.store, "publish"):
        plan = scene.vacuum()
        assert plan.kept_snapshots == (1, 2)
        assert plan.work_under_way
    assert scene.vacuum().kept_snapshots == (2,)


def test_the_lease_of_a_living_refresh_stays_and_one_from_the_future_blocks_nobody(
    scene: Scene,
) -> None:
    with lease.hold(scene.store) as number:
        scene.vacuum()
        with pytest.raises(LeaseHeld, match=rf"lease {number} .*last sign of life 0 s ago"):
            lease.hold(scene.store).__enter__()
        for path in scene.store.list(layout.LEASES):
            at = time.time() + 30
            os.utime(scene.root / "out" / path, (at, at))
        with pytest.raises(LeaseHeld, match="last sign of life 0 s ago"):
            lease.hold(scene.store).__enter__()
        for path in scene.store.list(layout.LEASES):
            at = time.time() + 10 * 86400
            os.utime(scene.root / "out" / path, (at, at))
        with lease.hold(scene.store) as second:
            assert second == number + 1


def test_a_vacuum_that_was_suspended_stops_before_it_deletes_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease.Pulse, "is_lost", property(lambda pulse: True))
    before = scene.store.list("data")
    with pytest.raises(OutputError, match="was suspended"):
        scene.vacuum()
    assert scene.store.list("data") == before


def test_a_pulse_that_was_silent_once_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "time", lambda: now)
    pulse = lease.Pulse(300)
    now = 299
    pulse.beat()
    assert not pulse.is_lost
    now = 700
    pulse.beat()  # the first thing that a process does when it continues
    assert pulse.is_lost


def test_a_commit_whose_files_are_gone_moves_no_head_and_the_next_run_heals(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program deletes a data file between its manifest and the snapshot."""
    scene.show("a", "c")
    real = Store.put_if_absent
    before = set(scene.store.list("data"))

    def put(store: Store, relative: str, data: bytes) -> bool:
        if relative.startswith("_meta/files/"):
            (scene.root / "out" / min(set(store.list("data")) - before)).unlink()
        return real(store, relative, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", put)
        with pytest.raises(CommitConflict, match="No snapshot was made"):
            scene.run()
    assert snapshot_numbers(scene.store) == [1, 2]
    engine = stand_in.HashEngine()
    stand_in.run(scene.spec, engine)
    assert 0 < len(engine.seen) < len(docs("c"))
    scene.check()


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_live_data_file_that_is_gone_or_cut_is_seen_and_made_anew(
    scene: Scene, is_cut: bool
) -> None:
    paths = [
        f.path for p in live_parts(scene.store, load_snapshot(scene.store)) for f in p.data_files
    ]
    path = scene.root / "out" / paths[0]
    content = path.read_bytes()
    path.unlink()
    if is_cut:
        path.write_bytes(content[: len(content) // 2])
    engine = stand_in.HashEngine()
    stand_in.run(scene.spec, engine)
    scene.check()
    assert 0 < len(engine.seen) < len(docs("a"))
    assert make_plan(stand_in.job_of(scene.spec), scene.store).nothing_to_do


def test_a_manifest_whose_file_is_gone_is_replaced_by_the_attempt_that_made_it_again(
    scene: Scene,
) -> None:
    head = load_snapshot(scene.store)
    part = live_parts(scene.store, head)[0]
    (file,) = part.data_files
    path = layout.manifest(part.fingerprint, part.part_id)
    (scene.root / "out" / path).unlink()
    other = part.model_copy(update={"data_files": (file.model_copy(update={"sha256": "0" * 64}),)})
    scene.store.put_if_absent(path, other.to_json())
    assert create_manifest(scene.store, part) == part
    assert json.loads(scene.store.read(path)) == json.loads(part.to_json())


def test_at_every_step_of_a_vacuum_that_dies_each_listed_snapshot_can_be_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c", "b", "c"):
        scene.show("a", name)
        scene.run()
    real = Store.delete
    n_deleted = 0

    def delete(store: Store, relative: str) -> None:
        nonlocal n_deleted
        real(store, relative)
        if layout.locate(relative).kind in ("work", "probe"):
            return
        n_deleted += 1
        for number in snapshot_numbers(store):
            open_dataset(store.uri, number).to_table(columns=["doc_id"])

    monkeypatch.setattr(Store, "delete", delete)
    scene.vacuum()
    assert n_deleted > 10
    scene.check()


def test_snapshots_that_an_older_vacuum_left_unreadable_count_for_nothing_and_go_first(
    scene: Scene,
) -> None:
    scene.show("a", "c")
    scene.run()
    shared = {
        f.path
        for part in live_parts(scene.store, load_snapshot(scene.store, 2))
        for f in part.data_files
    }
    for part in live_parts(scene.store, load_snapshot(scene.store, 1)):
        for file in part.data_files:
            if file.path not in shared:
                (scene.root / "out" / file.path).unlink()
    plan = scene.vacuum(keep=3)
    assert plan.kept_snapshots == (2, 3)
    first, reason = next(iter(plan.paths.items()))
    assert first == layout.snapshot(1)
    assert "cannot be read any more" in reason
    scene.check()


def test_nothing_is_deleted_while_the_newest_snapshot_cannot_be_read(scene: Scene) -> None:
    part = live_parts(scene.store, load_snapshot(scene.store))[0]
    (scene.root / "out" / part.data_files[0].path).unlink()
    before = scene.store.list("data")
    with pytest.raises(OutputError, match="snapshot 2, the newest one"):
        scene.vacuum()
    assert scene.store.list("data") == before


def test_a_vacuum_of_nothing_writes_nothing_and_says_what_to_check(tmp_path: Path) -> None:
    for delete in (False, True):
        with pytest.raises(OutputError, match=r"has no complete snapshot.*Check the URI"):
            vacuum(str(tmp_path / "nothing"), older_than=NO_GRACE, delete=delete)
    assert list(tmp_path.iterdir()) == []
