"""Snapshots published as Iceberg and Delta tables: what engines read equals the snapshot, at every
point in time.

Oracle: the rows of the snapshot by `open_dataset`, and vectors from the test's own documents; the
engines are those that people use: pyiceberg, deltalake, DuckDB, Polars, pyarrow.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from pipeline.errors import OutputError, SpecError
from pipeline.job.sections import PublishSpec
from pipeline.job.spec import spec_from
from pipeline.output import lake
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_generation, load_snapshot
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from tests.cli.test_main import called
from tests.support import outputs
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

pytest.importorskip("pyiceberg", reason="extra iceberg")
pytest.importorskip("deltalake", reason="extra delta")

from deltalake import DeltaTable
from pyiceberg.catalog import load_catalog
from pyiceberg.expressions import EqualTo, IsNull

import pipeline.output.lake.iceberg  # noqa: F401  urllib3 opens a socket when it is imported
from tests.support.processes import printed_by

pytestmark = pytest.mark.thorough  # each makes tables in real catalogs

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "ubinary")
LANGS = ["en", "漢 字", "a/b", "100%", None, "x=y", "#?", "__HIVE_DEFAULT_PARTITION__"]
BOTH = PublishSpec(iceberg={"table": "db.docs"}, delta=True)
KEPT = {
    "keep_columns": {"lang": "string", "day": "date", "at": "timestamp", "n": "int64", "ok": "bool"}
}


def docs(first: int, stop: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{n}",
            "text": f"text {n}",
            "lang": LANGS[n % len(LANGS)],
            "day": f"2024-02-2{n % 4 + 6}"[:10],
            "at": f"2024-02-29T12:34:5{n % 3}.789Z",
            "n": n % 3 or None,
            "ok": n % 2 == 0,
        }
        for n in range(first, stop)
    ]


def spec_of(root: Path, out: str = "out", **output: Any) -> Any:
    return make_spec(root / "in", root / out, input=KEPT, output=output)


def two_snapshots(root: Path, **output: Any) -> Store:
    write_shard(root / "in/a.jsonl", docs(0, 20))
    write_shard(root / "in/b.jsonl", docs(20, 30))
    run(spec_of(root, **output))
    write_shard(root / "in/b.jsonl", docs(25, 40))
    run(spec_of(root, **output))
    return Store(str(root / "out"))


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row["doc_id"])


def iceberg(root: Path, out: str = "out") -> Any:
    return load_catalog(
        "corpus-embed", type="sql", uri=f"sqlite:///{root}/{out}/_meta/iceberg/catalog.db"
    ).load_table("db.docs")


def iceberg_ids(table: Any) -> dict[int, int]:
    return {
        int(snapshot.summary["corpus-embed.snapshot"]): snapshot.snapshot_id
        for snapshot in table.snapshots()
    }


@pytest.mark.parametrize(
    ("precision", "partition_by"),
    [
        pytest.param("float32", list(KEPT["keep_columns"]), id="float32-partitioned"),
        *[
            pytest.param(precision, ["lang"], id=f"{precision}-partitioned")
            for precision in PRECISIONS[1:]
        ],
        *[
            pytest.param(precision, [], marks=pytest.mark.slow, id=f"{precision}-flat")
            for precision in PRECISIONS
        ],
    ],
)
def test_every_engine_reads_the_rows_of_every_snapshot(
    tmp_path: Path, precision: str, partition_by: list[str]
) -> None:
    store = two_snapshots(tmp_path, vector_precision=precision, partition_by=partition_by)
    root = str(tmp_path / "out")
    files = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "out/data").rglob("*")
        if path.is_file()
    }
    assert set(lake.publish(store, BOTH).values()) == {2}
    assert {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "out/data").rglob("*")
        if path.is_file()
    } == files
    table = iceberg(tmp_path)
    for number in (1, 2):
        expected = plain(open_dataset(root, number).to_table())
        assert len(expected) == {1: 30, 2: 35}[number]
        at = iceberg_ids(table)[number]
        delta = DeltaTable(root, version=number - 1)
        rows = duckdb.sql(
            f"select unnest(paths) from '{root}/{load_snapshot(store, number).file_list}'"
        )
        paths = [f"{root}/{path}" for (path,) in rows.fetchall()]
        by_arrow = delta.to_pyarrow_dataset()
        read = {
            "pyiceberg": table.scan(snapshot_id=at).to_arrow(),
            "polars of iceberg": pl.scan_iceberg(table, snapshot_id=at, reader_override="pyiceberg")
            .collect()
            .to_arrow(),
            "duckdb of iceberg": table.scan(snapshot_id=at)
            .to_duckdb("t")
            .sql("select * from t")
            .to_arrow_table(),
            "deltalake": delta.to_pyarrow_table(),
            "polars of delta": pl.scan_delta(delta, use_pyarrow=True).collect().to_arrow(),
            "duckdb of delta": duckdb.from_arrow(by_arrow).to_arrow_table(),
            "duckdb of files": duckdb.sql(
                f"select * from read_parquet({paths}, hive_partitioning = {bool(partition_by)}, "
                "hive_types_autocast = false)"
            ).to_arrow_table(),
            "polars of files": pl.read_parquet(paths, hive_partitioning=False).to_arrow(),
        }
        for engine, answer in read.items():
            names = [
                name
                for name in expected[0]
                if not (engine.endswith("of files") and name in partition_by)
            ]
            expected_rows = [{name: row[name] for name in names} for row in expected]
            assert plain(answer.select(names)) == expected_rows, engine
    assert table.current_snapshot().summary["corpus-embed.dimension"] == "8"
    assert DeltaTable(root).history(1)[0]["corpus-embed.snapshot"] == "2"


def test_partition_values_filter_in_both_tables(tmp_path: Path) -> None:
    store = two_snapshots(tmp_path, partition_by=["lang"])
    lake.publish(store, BOTH)
    table, delta = iceberg(tmp_path), DeltaTable(store.uri).to_pyarrow_dataset()
    for value in LANGS:
        expected = {doc["id"] for doc in [*docs(0, 20), *docs(25, 40)] if doc["lang"] == value}
        scan = table.scan(row_filter=IsNull("lang") if value is None else EqualTo("lang", value))
        assert set(scan.to_arrow()["doc_id"].to_pylist()) == expected
        folders = {Path(task.file.file_path).parent.name for task in scan.plan_files()}
        assert len(folders) == 1  # the others are not even opened
        filtered = (
            pa.compute.field("lang").is_null()
            if value is None
            else pa.compute.field("lang") == value
        )
        assert set(delta.to_table(filter=filtered)["doc_id"].to_pylist()) == expected


def test_publishing_again_changes_nothing_and_catches_up_one_by_one(tmp_path: Path) -> None:
    store = two_snapshots(tmp_path)
    lake.publish(store, BOTH)
    log = sorted(path.name for path in (tmp_path / "out/_delta_log").glob("*.json"))
    lake.publish(store, BOTH)
    assert [*iceberg_ids(iceberg(tmp_path))] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "out/_delta_log").glob("*.json")) == log
    write_shard(tmp_path / "in/c.jsonl", docs(50, 51))
    run(spec_of(tmp_path))
    compact(store.uri)
    lake.publish(store, BOTH)
    assert [*iceberg_ids(iceberg(tmp_path))] == [1, 2, 3, 4]
    assert DeltaTable(store.uri).version() == len(log) + 1
    for table in (iceberg(tmp_path).scan().to_arrow(), DeltaTable(store.uri).to_pyarrow_table()):
        assert table.num_rows == 36
    assert len(DeltaTable(store.uri).file_uris()) == 1


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["iceberg", "delta"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_second_publisher_of_the_same_snapshot_does_no_harm(
    tmp_path: Path, kind: str, number: int
) -> None:
    """It has looked before the first one commits, and commits after it: the catalog refuses it, or
    it adds nothing."""
    store = two_snapshots(tmp_path)
    parts = live_parts(store, load_snapshot(store, number))
    ((_, first),) = lake._tables(
        store, BOTH.model_copy(update={"delta": False} if kind == "iceberg" else {"iceberg": None})
    )
    ((_, second),) = lake._tables(
        store, BOTH.model_copy(update={"delta": False} if kind == "iceberg" else {"iceberg": None})
    )
    generation = load_generation(store, load_snapshot(store).fingerprint)
    if number == 2:
        first.add(load_snapshot(store, 1), generation, live_parts(store, load_snapshot(store, 1)))
    load, looked = second._load, second._load()
    second._load = lambda: looked
    first.add(load_snapshot(store, number), generation, parts)
    second.state = first.state
    second.add(load_snapshot(store, number), generation, parts)
    second._load = load
    assert first.state()[0] == number
    lake.publish(store, BOTH)
    assert iceberg(tmp_path).scan().to_arrow().num_rows == 35
    assert DeltaTable(store.uri).to_pyarrow_table().num_rows == 35
    if kind == "iceberg":
        assert [*iceberg_ids(iceberg(tmp_path))] == [1, 2] if number == 1 else True


def test_a_new_generation_of_the_same_columns_goes_on_in_the_table_and_others_are_refused(
    tmp_path: Path,
) -> None:
    store = two_snapshots(tmp_path)
    lake.publish(store, BOTH)
    run(spec_of(tmp_path, vector_precision="float16"))  # another fingerprint, the same columns
    lake.publish(store, BOTH)
    assert [*iceberg_ids(iceberg(tmp_path))] == [1, 2, 3]
    assert plain(iceberg(tmp_path).scan().to_arrow()) == plain(
        open_dataset(store.uri, 3).to_table()
    )
    run(spec_of(tmp_path, vector_precision="int8"))
    for publications in (PublishSpec(iceberg={"table": "db.docs"}), PublishSpec(delta=True)):
        with pytest.raises(OutputError, match="A table keeps its columns"):
            lake.publish(store, publications)
    lake.publish(store, PublishSpec(iceberg={"table": "db.docs_int8"}))
    assert iceberg(tmp_path).scan().to_arrow().num_rows == 35
    other = load_catalog(
        "corpus-embed", type="sql", uri=f"sqlite:///{tmp_path}/out/_meta/iceberg/catalog.db"
    ).load_table("db.docs_int8")
    assert [*iceberg_ids(other)] == [4]
    assert plain(other.scan().to_arrow()) == plain(open_dataset(store.uri).to_table())


def test_a_table_of_another_output_is_not_touched(tmp_path: Path) -> None:
    store = two_snapshots(tmp_path)
    shared = PublishSpec(
        iceberg={
            "table": "db.docs",
            "catalog": {"type": "sql", "uri": f"sqlite:///{tmp_path}/shared.db"},
        }
    )
    lake.publish(store, shared)
    run(spec_of(tmp_path, "other"))
    with pytest.raises(OutputError, match="belongs to"):
        lake.publish(Store(str(tmp_path / "other")), shared)


def test_vacuum_brings_tables_up_to_date_and_drops_what_would_dangle(tmp_path: Path) -> None:
    store = two_snapshots(tmp_path)
    lake.publish(store, BOTH)
    write_shard(tmp_path / "in/b.jsonl", docs(26, 41))
    run(spec_of(tmp_path))
    vacuum(store.uri, keep_snapshots=1, older_than=datetime.timedelta(0))  # a dry run
    assert [*iceberg_ids(iceberg(tmp_path))] == [1, 2]
    vacuum(store.uri, keep_snapshots=1, older_than=datetime.timedelta(0), delete=True)
    table = iceberg(tmp_path)
    assert [*iceberg_ids(table)] == [3]
    expected = plain(open_dataset(store.uri).to_table())
    assert (
        plain(table.scan().to_arrow())
        == expected
        == plain(DeltaTable(store.uri).to_pyarrow_table())
    )
    with pytest.raises(Exception, match=r"[Nn]o such file|not found|does not exist"):
        DeltaTable(store.uri, version=0).to_pyarrow_table()


def test_an_output_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"id": "no text"}\n')
    store = Store(str(tmp_path / "out"))
    run(spec_of(tmp_path))
    lake.publish(store, BOTH)
    write_shard(tmp_path / "in/b.jsonl", docs(0, 3))
    run(spec_of(tmp_path))
    lake.publish(store, BOTH)
    for table in (iceberg(tmp_path).scan().to_arrow(), DeltaTable(store.uri).to_pyarrow_table()):
        assert table.num_rows == 3


def test_an_empty_partition_value_is_kept_by_iceberg_and_refused_for_delta(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{**docs(0, 1)[0], "lang": ""}])
    run(spec_of(tmp_path, partition_by=["lang"]))
    store = Store(str(tmp_path / "out"))
    lake.publish(store, PublishSpec(iceberg={"table": "db.docs"}))
    assert iceberg(tmp_path).scan().to_arrow()["lang"].to_pylist() == [""]
    with pytest.raises(OutputError, match="empty string as a partition value"):
        lake.publish(store, PublishSpec(delta=True))


def test_publish_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_snapshots(tmp_path)
    out = str(tmp_path / "out")
    assert called(monkeypatch, "publish", out) == 2
    assert "not been published to any table yet" in capsys.readouterr().err
    assert called(monkeypatch, "publish", out, "--iceberg", "db.docs", "--delta", "--json") == 0
    assert sorted(json.loads(capsys.readouterr().out)["tables"].values()) == [2, 2]
    run(spec_of(tmp_path, vector_precision="bfloat16"))
    assert called(monkeypatch, "publish", out) == 0
    assert capsys.readouterr().out.count("snapshot 3") == 2
    assert called(monkeypatch, "publish", out, "--iceberg", "nonamespace") == 2
    assert (
        called(monkeypatch, "publish", out, "--iceberg", "a.b", "--catalog", '{"token": "x"}') == 2
    )
    assert "secret" in capsys.readouterr().err


def test_a_catalog_that_does_not_answer_leaves_the_snapshots_committed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refusing_url: str,
) -> None:
    two_snapshots(tmp_path)
    out = str(tmp_path / "out")
    catalog = json.dumps({"type": "rest", "uri": refusing_url})
    assert called(monkeypatch, "publish", out, "--iceberg", "a.b", "--catalog", catalog) == 1
    assert "the snapshots are committed" in capsys.readouterr().err


def test_a_run_with_nothing_to_do_publishes_what_its_spec_asks_for(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", outputs.DOCUMENTS)
    places = (str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    first = outputs.run_without_ray(outputs.make_spec(*places))
    spec = outputs.make_spec(*places, publish={"delta": True})
    assert outputs.run_without_ray(spec) == first
    assert DeltaTable(spec.output.uri).to_pyarrow_table().num_rows == len(outputs.DOCUMENTS)


def test_mistakes_in_publish_are_named(tmp_path: Path) -> None:
    fields = spec_of(tmp_path).model_dump(mode="json")
    for publish, message in [
        ({"iceberg": {"tabel": "a.b"}}, "did you mean 'table'"),
        (
            {"iceberg": {"table": "a.b", "catalog": {"s3.secret-access-key": "hush"}}},
            "looks like a secret",
        ),
        (
            {"iceberg": {"table": "a.b", "catalog": {"py-catalog-impl": "os.system"}}},
            "names Python code",
        ),
    ]:
        with pytest.raises(SpecError, match=message) as error:
            spec_from({**fields, "publish": publish})
        assert "hush" not in str(error.value)


@pytest.mark.parametrize("library", ["pyiceberg", "deltalake"])
def test_a_missing_extra_is_named_and_nothing_else_needs_it(tmp_path: Path, library: str) -> None:
    two_snapshots(tmp_path)
    fields = "delta=True" if library == "deltalake" else "iceberg={'table': 'a.b'}"
    code = f"""
import sys
sys.modules[{library!r}] = None  # as if it were not installed
from pipeline.output import lake
from pipeline.job.sections import PublishSpec
from pipeline.storage.store import Store
store = Store({str(tmp_path / "out")!r})
lake.publish(store, PublishSpec())
try:
    lake.publish(store, PublishSpec({fields}))
except Exception as error:
    print(type(error).__name__, error)
"""
    printed = printed_by(code)
    extra = {"pyiceberg": "iceberg", "deltalake": "delta"}[library]
    assert printed.startswith("SpecError")
    assert f"pip install 'corpus-embed[{extra}]'" in printed


def test_tables_on_s3(s3: Any, tmp_path: Path) -> None:
    """The output on S3, the catalog in a local SQLite file; Delta's log by S3's conditional PUT."""
    write_shard(tmp_path / "in/a.jsonl", docs(0, 10))
    options = {"partition_by": ["lang"], "storage_options": s3.storage_options}
    spec = make_spec(tmp_path / "in", s3.uri, input=KEPT, output=options)
    store = Store(s3.uri, s3.storage_options)
    run(spec)
    with pytest.raises(OutputError, match="needs a local disk"):
        lake.publish(store, BOTH)
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    both = PublishSpec(iceberg={"table": "db.docs", "catalog": catalog}, delta=True)
    lake.publish(store, both)
    write_shard(tmp_path / "in/b.jsonl", docs(10, 13))
    run(spec)
    lake.publish(store, both)
    table = load_catalog("corpus-embed", **catalog, **{"s3.endpoint": s3.endpoint_url}).load_table(
        "db.docs"
    )
    expected = plain(open_dataset(s3.uri, storage_options=s3.storage_options).to_table())
    assert plain(table.scan().to_arrow()) == expected
    assert table.scan(snapshot_id=iceberg_ids(table)[1]).to_arrow().num_rows == 10
    access = {"AWS_ENDPOINT_URL": s3.endpoint_url, "AWS_ALLOW_HTTP": "true"}
    assert plain(DeltaTable(s3.uri, storage_options=access).to_pyarrow_table()) == expected
