"""vacuum: removes what nothing needs, and never anything that a kept snapshot, a resume or somebody
else needs.

Oracle: kept snapshots are read and verified after it; files of others are compared byte by byte.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import OutputError
from pipeline.job.resolve import resolve
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import commit_snapshot, live_parts, load_snapshot, snapshot_numbers
from pipeline.storage.layout import manifest as manifest_path
from pipeline.storage.store import Store
from pipeline.tools import stored_objects
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from tests.cli.test_main import called
from tests.support import outputs

NOW = datetime.timedelta(0)
DAY = datetime.timedelta(days=1)
DOCUMENTS = outputs.DOCUMENTS


def many(first: int, stop: int, times: int) -> list[dict]:
    """Documents first to stop, several times over under ids of their own."""
    return [
        {**document, "id": f"{document['id']}-{n}"}
        for n in range(times)
        for document in DOCUMENTS[first:stop]
    ]


class Scene:
    """An output with a short history: three complete snapshots, each of which replaced a shard of
    the one before."""

    def __init__(self, root: Path, model: Path, **sections) -> None:
        self.root, self.input, self.output = root, root / "in", root / "out"
        outputs.write_shard(self.input / "a.jsonl", DOCUMENTS[:2])
        self.spec = outputs.make_spec(str(self.input), str(self.output), model, **sections)
        self.store = Store(str(self.output))

    def run(self, documents=None, name: str = "b.jsonl", **arguments):
        if documents is not None:
            outputs.write_shard(self.input / name, documents)
        return outputs.run_without_ray(self.spec, **arguments)

    def paths(self) -> set[str]:
        files = (path for path in self.output.rglob("*") if path.is_file())
        return {path.relative_to(self.output).as_posix() for path in files}

    def age(self, days: float = 2.0, paths=None) -> None:
        for path in self.paths() if paths is None else paths:
            status = (self.output / path).stat()
            os.utime(self.output / path, (status.st_atime, status.st_mtime - days * 86400))

    def ids(self, snapshot: int | None = None) -> list[str]:
        return sorted(
            open_dataset(str(self.output), snapshot)
            .to_table(columns=["doc_id"])["doc_id"]
            .to_pylist()
        )

    def live(self, snapshot: int | None = None) -> set[str]:
        parts = live_parts(self.store, load_snapshot(self.store, snapshot))
        return {file.path for part in parts for file in part.data_files}

    def vacuum(self, **arguments):
        return vacuum(str(self.output), **arguments)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> Scene:
    # many small parts: a kept shard must not be packed into one part with a replaced one
    scene = Scene(tmp_path_factory.mktemp("vacuum"), bert_mean_dir, runtime={"part_bytes": 1024})
    for first in (2, 4, 6):
        scene.run(many(first, first + 2, 4))
    return scene


@pytest.fixture
def scene(history: Scene, tmp_path: Path) -> Scene:
    """A copy of the output (times included), with the input where it was."""
    copy = object.__new__(Scene)
    copy.__dict__ = dict(history.__dict__)
    shutil.copytree(history.output, tmp_path / "out")
    copy.output = tmp_path / "out"
    copy.spec = history.spec.model_copy(
        update={"output": history.spec.output.model_copy(update={"uri": str(copy.output)})}
    )
    copy.store = Store(str(copy.output))
    return copy


def test_a_dry_run_lists_and_removes_nothing(scene):
    before = scene.paths()
    scene.age()
    plan = scene.vacuum(keep_snapshots=1)
    assert not plan.deleted
    assert plan.paths
    assert plan.n_bytes == sum((scene.output / path).stat().st_size for path in plan.paths)
    assert scene.paths() == before


def test_what_the_kept_snapshots_do_not_name_goes_and_they_stay_whole(scene):
    ids = {number: scene.ids(number) for number in (2, 3)}
    dropped = scene.live(1)
    live = scene.live(2) | scene.live(3)
    assert dropped - live
    scene.age()
    plan = scene.vacuum(keep_snapshots=2, delete=True)
    assert plan.kept_snapshots == (2, 3)
    assert {path for path in plan.paths if path.startswith("data/")} == dropped - live
    assert {path for path in scene.paths() if path.startswith("data/")} == live
    assert snapshot_numbers(scene.store) == [2, 3]
    for number in (2, 3):
        assert scene.ids(number) == ids[number]
        assert verify(str(scene.output), snapshot=number, sample=0).ok
    assert not scene.vacuum(keep_snapshots=2).paths  # nothing left to do


def test_a_run_after_a_vacuum_has_nothing_to_do(scene):
    scene.age()
    scene.vacuum(keep_snapshots=1, delete=True)
    assert snapshot_numbers(scene.store) == [3]
    assert make_plan(resolve(scene.spec, "cpu"), scene.store).nothing_to_do
    assert verify(str(scene.output), sample=4).ok


def test_nothing_younger_than_the_grace_period_goes(scene):
    plan = scene.vacuum(keep_snapshots=1, older_than=DAY, delete=True)
    assert plan.paths == {}
    assert plan.n_too_young > 0
    scene.age(days=0.9)
    assert scene.vacuum(keep_snapshots=1, older_than=DAY, delete=True).paths == {}
    scene.age(days=0.2)
    assert scene.vacuum(keep_snapshots=1, older_than=DAY, delete=True).paths


def test_the_command_line_takes_a_grace_period_and_deletes_only_when_told(
    scene, monkeypatch, capsys
):
    scene.age(days=2.0)
    before = scene.paths()
    command = ("vacuum", str(scene.output), "--keep", "1", "--json")
    for arguments, goes in (
        (("--older-than", "7d"), False),
        (("--older-than", "36h"), True),
        (("--older-than", "7d", "--delete"), False),
    ):
        assert called(monkeypatch, *command, *arguments) == 0
        assert bool(json.loads(capsys.readouterr().out)["paths"]) is goes
        assert scene.paths() == before
    assert called(monkeypatch, *command, "--delete") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["deleted"], result["kept_snapshots"]) == (True, [3])
    assert scene.paths() == before - result["paths"].keys()
    for wrong in ("7", "-1h", "soon"):
        assert called(monkeypatch, *command, "--older-than", wrong) == 2
        assert "24h or 7d" in capsys.readouterr().err


def test_every_kept_snapshot_is_read_by_its_number_on_the_command_line(scene, monkeypatch, capsys):
    for number in (1, 2, 3):
        (doc_id, *_) = sorted(set(scene.ids(number)) - set(scene.ids(1 if number != 1 else 3)))
        for other in (1, 2, 3):
            called(monkeypatch, "trace", str(scene.output), doc_id, "--snapshot", str(other))
            is_traced = f"1 row of 1 document in snapshot {other}" in capsys.readouterr().out
            assert is_traced is (doc_id in scene.ids(other))
        assert (
            called(
                monkeypatch, "verify", str(scene.output), "--sample", "0", "--snapshot", str(number)
            )
            == 0
        )


def test_age_is_told_by_the_clock_of_the_store_and_not_by_this_machine(scene, monkeypatch):
    """A machine whose clock is a year ahead must not find everything old, nor one that is behind
    everything young."""
    real = Store.changed_at
    monkeypatch.setattr(
        stored_objects,
        "_walk",
        lambda folder, root, walk=stored_objects._walk: (
            (path, size_bytes, changed - 366 * 86400)
            for path, size_bytes, changed in walk(folder, root)
        ),
    )
    monkeypatch.setattr(Store, "changed_at", lambda store, info: real(store, info) - 366 * 86400)
    assert scene.vacuum(keep_snapshots=1, older_than=DAY).paths == {}
    assert scene.vacuum(keep_snapshots=1, older_than=datetime.timedelta(microseconds=1)).paths


def test_links_out_of_the_output_are_not_followed(scene, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = f"part-{'0' * 32}.parquet"
    (elsewhere / name).write_bytes(b"somebody else's")
    (scene.output / "data" / "lang=xx").symlink_to(elsewhere, target_is_directory=True)
    (scene.output / "data" / f"part-{'1' * 32}.parquet").symlink_to(elsewhere / name)
    (scene.output / "data" / "loop").symlink_to(scene.output, target_is_directory=True)
    scene.age()
    old = datetime.datetime(2020, 1, 1).timestamp()
    os.utime(elsewhere / name, (old, old))
    plan = scene.vacuum(keep_snapshots=1, delete=True)
    assert (elsewhere / name).read_bytes() == b"somebody else's"
    assert not any("lang=xx" in path or "1" * 32 in path or "loop" in path for path in plan.paths)
    assert [path.name for path in elsewhere.iterdir()] == [name]


def test_files_that_are_not_of_this_package_stay(scene):
    others = [
        "README.md",
        "data/notes.txt",
        "data/other.parquet",
        "_meta/own.json",
        "_meta/snapshots/latest.json",
    ]
    for name in others:
        (scene.output / name).parent.mkdir(exist_ok=True)
        (scene.output / name).write_text("mine")
    scene.age(days=400)
    scene.vacuum(keep_snapshots=1, older_than=NOW, delete=True)
    assert all((scene.output / name).read_text() == "mine" for name in others)


def test_leftovers_of_killed_writes_go_and_young_ones_stay(scene):
    leftovers = {
        f"data/part-{'a' * 32}.parquet",
        f"_meta/rejects/{'b' * 16}/part-{'a' * 32}.parquet",
        "_meta/tmp/tmpabc",
        f"_meta/probes/{'c' * 16}",
        f"_meta/files/{'d' * 64}.parquet",
    }
    for name in leftovers:
        (scene.output / name).parent.mkdir(parents=True, exist_ok=True)
        (scene.output / name).write_bytes(b"left")
    assert scene.vacuum(keep_snapshots=3).paths == {}
    scene.age(paths=leftovers)
    assert set(scene.vacuum(keep_snapshots=3, delete=True).paths) == leftovers
    assert not scene.paths() & leftovers
    assert verify(str(scene.output), sample=0).ok


def test_parts_of_an_unfinished_run_stay_and_are_resumed_from(tmp_path, bert_mean_dir):
    scene = Scene(tmp_path, bert_mean_dir, runtime={"part_bytes": 1024})
    scene.run()
    outputs.write_shard(scene.input / "c.jsonl", many(4, 8, 8))
    scene.run(complete=False, only=lambda plan: plan.todo[:2])
    scene.age(days=30)
    assert scene.vacuum(keep_snapshots=1, delete=True).paths == {}
    plan = make_plan(resolve(scene.spec, "cpu"), scene.store)
    assert len(plan.done) == 3
    assert scene.run().complete
    assert verify(str(scene.output), sample=0).ok


def test_parts_of_a_killed_run_go_once_a_later_run_completed_without_them(tmp_path, bert_mean_dir):
    """Their shard changed before the resume, so no plan can take them. A compaction in between
    settles nothing."""
    scene = Scene(tmp_path, bert_mean_dir, runtime={"part_bytes": 1024})
    scene.run()
    scene.run(many(2, 4, 4))
    outputs.write_shard(scene.input / "c.jsonl", many(4, 6, 4))
    scene.run(complete=False, only=lambda plan: plan.todo[:1])
    killed = {path for path in scene.paths() if path.startswith("data/")} - scene.live()
    assert killed
    scene.age(days=30)
    compact(str(scene.output))
    scene.age(days=30)
    assert not killed & set(scene.vacuum(keep_snapshots=1).paths)
    last = scene.run(many(6, 8, 4), name="c.jsonl")
    # which pipeline.run leaves
    (scene.output / f"_meta/runs/{last.run_id}/attempt-0.json").write_text("{}")
    scene.age()
    assert killed <= set(scene.vacuum(keep_snapshots=1, delete=True).paths)
    assert make_plan(resolve(scene.spec, "cpu"), scene.store).nothing_to_do
    assert verify(str(scene.output), sample=0).ok


def test_parts_of_a_new_model_under_way_stay_and_those_of_a_given_up_one_go(
    tmp_path, bert_mean_dir
):
    scene = Scene(tmp_path, bert_mean_dir)
    scene.run()
    first = scene.spec
    scene.spec = first.model_copy(
        update={"prepare": first.prepare.model_copy(update={"min_chars": 2})}
    )
    scene.run(complete=False)
    scene.age(
        days=30, paths=[path for path in scene.paths() if not path.startswith("_meta/manifests")]
    )
    scene.age(days=20, paths=[path for path in scene.paths() if path.startswith("_meta/manifests")])
    given_up = make_plan(resolve(scene.spec, "cpu"), scene.store).done
    assert len(given_up) == 1
    live = scene.live()
    newest = manifest_path(given_up[0].fingerprint, given_up[0].part_id)
    # written last: may go on
    os.utime(scene.output / newest, (0, (scene.output / newest).stat().st_mtime + 1))
    assert scene.vacuum(keep_snapshots=1).paths == {}
    scene.spec = first
    scene.run(DOCUMENTS[5:])  # back to the first one: its manifests are the youngest now
    plan = scene.vacuum(keep_snapshots=2, delete=True)
    assert newest in plan.paths
    assert {file.path for file in given_up[0].data_files} <= set(plan.paths)
    assert f"_meta/generations/{given_up[0].fingerprint}.json" in plan.paths
    assert live <= scene.paths()
    assert verify(str(scene.output)).ok


def test_a_partial_snapshot_after_the_last_complete_one_is_kept(scene):
    head = load_snapshot(scene.store)
    parts = live_parts(scene.store, head)
    partial = commit_snapshot(
        scene.store,
        parts[:1],
        run_id="f" * 16,
        fingerprint=head.fingerprint,
        parent=head,
        complete=False,
    )
    scene.age()
    plan = scene.vacuum(keep_snapshots=1, delete=True)
    assert plan.kept_snapshots == (head.number, partial.number)
    assert len(live_parts(scene.store, load_snapshot(scene.store))) == 1


def test_run_records_that_rows_name_stay_even_where_the_manifest_is_of_a_later_run(
    tmp_path, bert_mean_dir
):
    """A run died between data file and manifest; the next run, with one more shard, adopted the
    file."""
    scene = Scene(tmp_path, bert_mean_dir, runtime={"part_bytes": 1024})
    scene.run(complete=False)
    first = {path for path in scene.paths() if path.startswith("_meta/runs/")}
    for path in scene.output.glob("_meta/manifests/*/*.json"):
        path.unlink()
    scene.run(many(2, 4, 4))  # too large to share a part with the first shard
    parts = live_parts(scene.store, load_snapshot(scene.store))
    assert not {part.run_id for part in parts} & {path.split("/")[2] for path in first}
    scene.age()
    assert scene.vacuum(keep_snapshots=1, delete=True).paths == {}
    assert first <= scene.paths()


def test_an_interrupted_vacuum_is_finished_by_the_next(scene, monkeypatch):
    ids = scene.ids()
    scene.age()
    unneeded = set(scene.vacuum(keep_snapshots=1).paths)
    real = Store.delete
    n_allowed = [len(unneeded) // 2]

    def dies(self, relative):
        if not relative.startswith("_meta/probes") and not n_allowed[0]:
            raise KeyboardInterrupt
        n_allowed[0] -= not relative.startswith("_meta/probes")
        real(self, relative)

    monkeypatch.setattr(Store, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        scene.vacuum(keep_snapshots=1, delete=True)
    monkeypatch.setattr(Store, "delete", real)
    assert make_plan(resolve(scene.spec, "cpu"), scene.store).nothing_to_do
    scene.vacuum(keep_snapshots=1, delete=True)
    assert not scene.paths() & unneeded
    assert scene.ids() == ids
    assert verify(str(scene.output), sample=0).ok


def test_without_a_complete_snapshot_nothing_is_judged(tmp_path, bert_mean_dir):
    scene = Scene(tmp_path, bert_mean_dir)
    scene.run(complete=False)
    with pytest.raises(OutputError, match="has no complete snapshot, so vacuum cannot tell"):
        scene.vacuum(older_than=NOW, delete=True)
    with pytest.raises(OutputError, match="keep_snapshots is 0"):
        scene.vacuum(keep_snapshots=0)


def test_on_s3_the_same_goes_and_uploads_of_other_programs_stay(tmp_path, bert_mean_dir, s3):
    outputs.write_shard(tmp_path / "in" / "a.jsonl", DOCUMENTS[:2])
    options = s3.storage_options
    spec = outputs.make_spec(
        str(tmp_path / "in"), f"{s3.uri}/out", bert_mean_dir, output={"storage_options": options}
    )
    outputs.run_without_ray(spec)
    dropped = live_parts(Store(spec.output.uri, options), outputs.run_without_ray(spec))
    outputs.write_shard(tmp_path / "in" / "a.jsonl", DOCUMENTS[2:4])
    outputs.run_without_ray(spec)
    bucket, _, prefix = s3.key.partition("/")
    for key in (f"{prefix}/out/data/x.parquet", f"{prefix}/other/x.parquet"):
        s3.filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert vacuum(spec.output.uri, keep_snapshots=1, storage_options=options).paths == {}
    soon = datetime.timedelta(seconds=-5)  # in five seconds everything here is older than now
    plan = vacuum(
        spec.output.uri, keep_snapshots=1, older_than=soon, delete=True, storage_options=options
    )
    assert {file.path for part in dropped for file in part.data_files} <= set(plan.paths)
    uploads = s3.filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
    keys = {upload["Key"] for upload in uploads.get("Uploads", [])}
    assert keys == {f"{prefix}/out/data/x.parquet", f"{prefix}/other/x.parquet"}
    assert verify(spec.output.uri, storage_options=options).ok
    assert snapshot_numbers(Store(spec.output.uri, options)) == [2]
