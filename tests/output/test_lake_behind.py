"""Tables that cannot be brought up, that were moved, rolled back or restored, and outputs with odd
names: the data never waits for a table, and a table never shows what the output does not hold.

Oracle: the documents that the test wrote; the tables are read by pyiceberg, deltalake, DuckDB and
Polars.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import CorpusEmbedError, OutputError, SpecError
from pipeline.job.sections import PublishSpec
from pipeline.output import lake
from pipeline.output.lake import missing_snapshots
from pipeline.output.lake.table import columns_problem
from pipeline.output.snapshots import load_snapshot, snapshot_numbers
from pipeline.output.table_records import table_statuses
from pipeline.storage import layout
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from tests.cli.test_main import called
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run

pytest.importorskip("pyiceberg", reason="extra iceberg")
pytest.importorskip("deltalake", reason="extra delta")

from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog

import pipeline.output.lake.iceberg  # noqa: F401  urllib3 opens a socket when it is imported

pytestmark = pytest.mark.thorough  # each makes tables in real catalogs

BOTH = PublishSpec(iceberg={"table": "db.docs"}, delta=True)
NO_GRACE: dict[str, Any] = {"older_than": datetime.timedelta(0), "delete": True}


def docs(name: str, number: int = 5) -> list[dict[str, Any]]:
    return [{"id": f"{name}-{n}", "text": f"{name} text {n}", "lang": "en"} for n in range(number)]


def ids_of(*names: str) -> list[str]:
    return sorted(doc["id"] for name in names for doc in docs(name))


class Scene:
    def __init__(self, root: Path, out: str = "out", **sections: Any) -> None:
        self.root = root
        self.out = root / out
        self.spec = make_spec(root / "in", self.out, **sections)
        self.store = Store(str(self.out))

    def run(self, *names: str) -> Any:
        shutil.rmtree(self.root / "in", ignore_errors=True)
        for name in names:
            write_shard(self.root / f"in/{name}.jsonl", docs(name))
        return run(self.spec)

    def iceberg_ids(self) -> list[str]:
        catalog = load_catalog(
            "corpus-embed", type="sql", uri=f"sqlite:///{self.out}/_meta/iceberg/catalog.db"
        )
        return sorted(catalog.load_table("db.docs").scan().to_arrow()["doc_id"].to_pylist())

    def delta_ids(self) -> list[str]:
        return sorted(DeltaTable(str(self.out)).to_pyarrow_table()["doc_id"].to_pylist())

    def check(self, *names: str) -> None:
        assert self.iceberg_ids() == self.delta_ids() == ids_of(*names)
        assert all(status.behind is None for status in table_statuses(self.store))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.run("a", "b")
    scene.run("a", "b", "c")
    lake.publish(scene.store, BOTH)
    return scene


def roll_back(scene: Scene, number: int) -> None:
    """What an operator does who wants an older snapshot back: later ones are removed."""
    for later in snapshot_numbers(scene.store):
        if later > number:
            (scene.out / layout.snapshot(later)).unlink()


def test_after_a_roll_back_tables_show_the_head_again(scene: Scene) -> None:
    roll_back(scene, 1)
    assert all("rolled back" in (status.behind or "") for status in table_statuses(scene.store))
    assert set(lake.publish(scene.store, BOTH).values()) == {1}
    scene.check("a", "b")


def test_another_snapshot_of_the_same_number_replaces_what_tables_show(scene: Scene) -> None:
    roll_back(scene, 1)
    scene.run("a", "d")
    scene.run("a", "d", "e")
    assert set(lake.publish(scene.store, BOTH).values()) == {3}
    scene.check("a", "d", "e")
    roll_back(scene, 1)
    scene.run("b")
    assert set(lake.publish(scene.store, BOTH).values()) == {2}
    scene.check("b")
    vacuum(scene.store.uri, keep_snapshots=1, **NO_GRACE)
    scene.check("b")
    assert lake.publish_recorded(scene.store)[1] == []


def test_a_restored_backup_is_followed(scene: Scene, tmp_path: Path) -> None:
    """The backup is older than the tables, and lies below the same path again."""
    shutil.copytree(scene.out, tmp_path / "backup")
    scene.run("a", "x")
    scene.run("y")
    lake.publish(scene.store, BOTH)
    for part in ("data", "_meta/snapshots", "_meta/files", "_meta/manifests"):
        shutil.rmtree(scene.out / part)
        shutil.copytree(tmp_path / "backup" / part, scene.out / part)
    assert set(lake.publish(scene.store, BOTH).values()) == {2}
    scene.check("a", "b", "c")


def test_tables_of_a_release_without_file_lists_are_followed_by_number_and_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(scene.out / "_delta_log")
    shutil.rmtree(scene.out / "_meta/iceberg")
    shutil.rmtree(scene.out / "_meta/tables")
    from pipeline.output.lake import delta, iceberg, table

    def old(snapshot: Any, generation: Any) -> dict[str, str]:
        lineage = table.lineage_of(snapshot, generation)
        del lineage[table.FILE_LIST]
        return lineage

    with monkeypatch.context() as patch:
        patch.setattr(delta, "lineage_of", old)
        patch.setattr(iceberg, "lineage_of", old)
        lake.publish(scene.store, BOTH)
    version = DeltaTable(str(scene.out)).version()
    lake.publish(scene.store, BOTH)
    assert DeltaTable(str(scene.out)).version() == version
    scene.run("c")
    lake.publish(scene.store, BOTH)
    assert DeltaTable(str(scene.out)).version() == version + 1
    scene.check("c")


def test_an_output_that_moved_keeps_its_tables(scene: Scene, tmp_path: Path) -> None:
    scene.out.rename(tmp_path / "moved")
    moved = Scene(tmp_path, "moved")
    moved.run("a", "f")
    assert lake.publish_recorded(moved.store)[1] == []
    moved.check("a", "f")
    assert not scene.out.exists()


def test_a_copy_of_an_output_gets_tables_of_its_own(scene: Scene, tmp_path: Path) -> None:
    shutil.copytree(scene.out, tmp_path / "copy")
    copy = Scene(tmp_path, "copy")
    copy.run("z")
    assert lake.publish_recorded(copy.store)[1] == []
    copy.check("z")
    scene.check("a", "b", "c")


def test_one_empty_partition_value_leaves_the_data_and_the_other_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(
        tmp_path,
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
        publish=BOTH.model_dump(),
    )
    first = scene.run("a")
    assert first.number == 1
    write_shard(tmp_path / "in/b.jsonl", [{"id": "empty", "text": "empty", "lang": ""}])
    assert run(scene.spec).number == 2
    (behind,) = [status for status in table_statuses(scene.store) if status.behind]
    assert (behind.number, "Delta" in behind.name) == (1, True)
    assert "empty string as a partition value" in (behind.behind or "")
    assert scene.iceberg_ids() == sorted(["empty", *ids_of("a")])
    assert called(monkeypatch, "status", str(scene.out)) == 0
    assert "BEHIND" in capsys.readouterr().out
    assert called(monkeypatch, "publish", str(scene.out)) == 1
    scene.run("a", "c")
    scene.run("a", "d")
    assert scene.delta_ids() == ids_of("a", "d")  # it can hold this one: snapshot 2 is passed over


def test_what_a_table_shows_stays_until_it_is_brought_up_or_forgotten(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One snapshot a table, not one a night."""
    broken = scene.out / "_delta_log/00000000000000000009.json"
    broken.write_text("no JSON")
    for name in ("e", "f", "g"):
        scene.run(name)
        plan = vacuum(scene.store.uri, keep_snapshots=1, **NO_GRACE)
        assert plan.kept_snapshots == (2, load_snapshot(scene.store).number)
        assert len(plan.tables_behind) == 1
    assert scene.iceberg_ids() == ids_of("g")
    broken.unlink()
    assert scene.delta_ids() == ids_of("a", "b", "c")
    broken.write_text("no JSON")
    assert called(monkeypatch, "publish", str(scene.out), "--forget", "delta") == 0
    assert called(monkeypatch, "publish", str(scene.out)) == 0
    assert "Delta" not in capsys.readouterr().out.partition("forgotten")[2]
    plan = vacuum(scene.store.uri, keep_snapshots=1, **NO_GRACE)
    assert plan.kept_snapshots == (5,)
    assert called(monkeypatch, "publish", str(scene.out), "--forget", "delta") == 2
    assert "recorded are db.docs" in capsys.readouterr().err


def test_a_run_ends_well_beside_a_catalog_that_fails_and_the_next_one_brings_the_table_up(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, publish={"iceberg": {"table": "db.docs"}})
    (scene.out / "_meta").mkdir(parents=True)
    (scene.out / "_meta/iceberg").write_text("in the way of the catalog")
    assert scene.run("a").number == 1
    (status,) = table_statuses(scene.store)
    assert status.behind
    assert scene.run("a", "b").number == 2
    (scene.out / "_meta/iceberg").unlink()
    assert run(scene.spec).number == 2  # nothing to do but this
    assert scene.iceberg_ids() == ids_of("a", "b")
    assert [status.behind for status in table_statuses(scene.store)] == [None]


def test_a_catalog_that_never_answers_does_not_hold_a_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(missing_snapshots, "STEP_LIMIT_S", 0.5)
    may_end = threading.Event()
    monkeypatch.setattr(
        "pipeline.output.lake.delta.DeltaTable.state", lambda table: may_end.wait(30)
    )
    scene = Scene(tmp_path, publish={"delta": True})
    assert scene.run("a").number == 1
    may_end.set()
    assert "has not answered" in (table_statuses(scene.store)[0].behind or "")


def test_a_table_with_features_of_another_program_is_not_touched(scene: Scene) -> None:
    write_deltalake(
        str(scene.out.parent / "other"),
        DeltaTable(str(scene.out)).to_pyarrow_table(),
        configuration={"delta.columnMapping.mode": "name"},
    )
    shutil.rmtree(scene.out / "_delta_log")
    shutil.copytree(scene.out.parent / "other/_delta_log", scene.out / "_delta_log")
    before = sorted(path.name for path in (scene.out / "_delta_log").iterdir())
    with pytest.raises(OutputError):
        lake.publish(scene.store, PublishSpec(delta=True))
    assert sorted(path.name for path in (scene.out / "_delta_log").iterdir()) == before


def test_a_log_that_is_a_link_out_of_the_output_is_neither_read_nor_written(
    scene: Scene, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (scene.out / "_delta_log").rename(elsewhere)
    (scene.out / "_delta_log").symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    scene.run("q")
    with pytest.raises(CorpusEmbedError, match="link leads out"):
        lake.publish(scene.store, PublishSpec(delta=True))
    assert sorted(path.name for path in elsewhere.iterdir()) == before


@pytest.mark.parametrize("kind", ["TRIGGER", "VIEW"])
def test_a_catalog_with_more_than_tables_is_not_opened(scene: Scene, kind: str) -> None:
    bodies = {
        "TRIGGER": "CREATE TRIGGER evil AFTER UPDATE ON iceberg_tables BEGIN "
        "DELETE FROM iceberg_tables; END",
        "VIEW": "CREATE VIEW evil AS SELECT 1",
    }
    with sqlite3.connect(scene.out / "_meta/iceberg/catalog.db") as connection:
        connection.execute(bodies[kind])
    scene.run("q")
    with pytest.raises(OutputError, match=f"{kind.lower()} 'evil'"):
        lake.publish(scene.store, PublishSpec(iceberg={"table": "db.docs"}))


def test_plan_knows_that_a_package_is_missing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deltalake" else real(name)
    )
    spec = make_spec(scene.root / "in", scene.out, publish={"delta": True})
    with pytest.raises(SpecError, match=r"pip install '\.\[delta\]'"):
        make_plan(job_of(spec), scene.store)


@pytest.mark.parametrize(
    "name", ["emb #1", "emb?v=1", "100% new", "日本 語", "a+b&c=d;e", "a%20b", "[x]*", "a:b"]
)
def test_a_table_lies_in_its_output_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    scene = Scene(tmp_path, name)
    scene.run("a", "b")
    lake.publish(scene.store, PublishSpec(iceberg={"table": "db.docs"}))
    from pipeline.output.lake.local_catalog import catalog_uri

    catalog = load_catalog("corpus-embed", type="sql", uri=catalog_uri(scene.store))
    rows = catalog.load_table("db.docs").scan()
    assert sorted(rows.to_arrow()["doc_id"].to_pylist()) == ids_of("a", "b")
    if name == "a%20b":  # deltalake itself cannot open such a folder
        with pytest.raises(OutputError, match="percent sign"):
            lake.publish(scene.store, PublishSpec(delta=True))
    else:
        lake.publish(scene.store, PublishSpec(delta=True))
        scene.run("a", "c")
        lake.publish_recorded(scene.store)
        assert scene.delta_ids() == ids_of("a", "c")
        delta = DeltaTable(str(scene.out))
        frame = pl.scan_delta(delta, use_pyarrow=True).select("doc_id").collect()
        assert sorted(frame["doc_id"]) == ids_of("a", "c")
        data = delta.to_pyarrow_dataset()  # noqa: F841  DuckDB reads it by its name
        assert duckdb.sql("select count(*) from data").fetchall() == [(10,)]
    assert {path.name for path in tmp_path.iterdir()} == {"in", name}


@pytest.mark.parametrize("name", ["emb #1", "emb?v=1", "100% new", "日本 語", "a+b&c", "a%20b"])
def test_on_s3_a_delta_table_lies_in_its_output_whatever_that_is_called(
    tmp_path: Path, s3: Any, name: str
) -> None:
    write_shard(tmp_path / "in/a.jsonl", docs("a"))
    options = {"storage_options": s3.storage_options}
    spec = make_spec(tmp_path / "in", f"{s3.uri}/{name}", output=options)
    run(spec)
    store = Store(spec.output.uri, s3.storage_options)
    if name == "a%20b":  # deltalake itself cannot open such a folder
        with pytest.raises(OutputError, match="percent sign"):
            lake.publish(store, PublishSpec(delta=True))
        return
    lake.publish(store, PublishSpec(delta=True))
    write_shard(tmp_path / "in/b.jsonl", docs("b"))
    run(spec)
    assert lake.publish_recorded(store)[1] == []
    assert store.list("_delta_log")
    folders = {path.removeprefix(s3.key + "/").split("/")[0] for path in s3.filesystem.find(s3.key)}
    assert folders == {name}
    if "#" in name or "?" in name:
        with pytest.raises(OutputError, match="'#' or a"):
            lake.publish(
                store,
                PublishSpec(
                    iceberg={
                        "table": "db.docs",
                        "catalog": {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db"},
                    }
                ),
            )


def test_a_difference_of_columns_is_told_alone() -> None:
    columns = "doc_id string, embedding list<item: float not null>; partitions "
    assert columns_problem(columns, columns) is None
    assert columns_problem(columns, columns + "lang") == "it is partitioned by nothing, and by lang"
    problem = columns_problem(columns, "doc_id string, n int64; partitions ")
    assert problem is not None
    assert "n int64" in problem
    assert "doc_id" not in problem


def test_a_compaction_says_that_old_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(tmp_path, runtime={"part_bytes": 1024})
    for name in ("a", "b"):
        write_shard(tmp_path / f"in/{name}.jsonl", docs(name, 60))
    n_files = run(scene.spec).n_files
    assert n_files > 2
    assert called(monkeypatch, "compact", str(scene.out)) == 0
    assert f"{n_files} older files stay in data/" in capsys.readouterr().out
    assert called(monkeypatch, "vacuum", str(scene.out), "--keep", "1", "--older-than", "0h") == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 200
    assert "a data file that no kept part names" in printed
    assert compact(scene.store.uri).n_parts_joined == 0
    assert json.dumps(vacuum(scene.store.uri).paths)
