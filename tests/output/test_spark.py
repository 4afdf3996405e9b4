"""Spark reads the data files of every snapshot: each precision, with and without partitions. Needs
Java.

Oracle: the rows of the snapshot by `open_dataset`. Spark gets the paths of the file list, as a
person would give them.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_snapshot
from pipeline.tools.files import files
from tests.output.test_lake import PRECISIONS, plain, two_snapshots

pyspark = pytest.importorskip("pyspark", reason="extra spark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,  # Spark is a Java process, asked through a socket
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java"),
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.sources.partitionColumnTypeInference.enabled", "false")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.parametrize("partition_by", [[], ["lang"]], ids=["flat", "partitioned"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_spark_reads_the_rows_of_every_snapshot(
    spark: Any, tmp_path: Path, precision: str, partition_by: list[str]
) -> None:
    store = two_snapshots(tmp_path, vector_precision=precision, partition_by=partition_by)
    for number in (1, 2):
        expected = open_dataset(store.uri, number).to_table()
        lists = pq.read_table(tmp_path / "out" / load_snapshot(store, number).file_list)[
            "paths"
        ].to_pylist()
        paths = [f"{tmp_path}/out/{path}" for part in lists for path in part]
        frame = spark.read.option("basePath", f"{tmp_path}/out/data").parquet(*paths)
        types = dict(frame.dtypes)
        assert types["embedding"] == {"int8": "array<tinyint>", "ubinary": "array<smallint>"}.get(
            precision, "array<float>"
        )
        rows = [row.asDict() for row in frame.collect()]
        for row in rows:
            row["at"] = row["at"] and row["at"].replace(tzinfo=datetime.UTC)
        assert sorted(rows, key=lambda row: row["doc_id"]) == [
            {name: row[name] for name in rows[0]} for row in plain(expected)
        ]
        assert set(rows[0]) == set(expected.column_names)


@pytest.mark.parametrize("partition_by", [[], ["lang"]], ids=["flat", "partitioned"])
def test_the_snippet_of_the_card_reads_the_newest_snapshot(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_by: list[str]
) -> None:
    store = two_snapshots(tmp_path, vector_precision="float32", partition_by=partition_by)
    card = (tmp_path / "out/README.md").read_text()
    files, *snippets = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    (snippet,) = [text for text in snippets if "pyspark" in text]
    monkeypatch.chdir(tmp_path / "out")
    scope: dict[str, Any] = {}
    exec(files + snippet, scope)
    expected = open_dataset(store.uri).to_table()
    assert set(scope["rows"].columns) == set(expected.column_names)
    rows = [(row["doc_id"], row["lang"]) for row in scope["rows"].collect()]
    assert sorted(rows, key=str) == sorted(
        zip(expected["doc_id"].to_pylist(), expected["lang"].to_pylist(), strict=True), key=str
    )


@pytest.mark.parametrize("partition_by", [[], ["lang"]], ids=["flat", "partitioned"])
def test_spark_reads_what_files_prints(spark: Any, tmp_path: Path, partition_by: list[str]) -> None:
    store = two_snapshots(tmp_path, vector_precision="float32", partition_by=partition_by)
    for number in (None, 1, 2):
        code = files(store.uri, snapshot=number).code("spark")
        names: dict[str, Any] = {"spark": spark}
        exec(code, names)
        expected = open_dataset(store.uri, number).to_table()
        rows = [row.asDict() for row in names["frame"].select("doc_id", "lang").collect()]
        assert sorted(rows, key=lambda row: row["doc_id"]) == [
            {name: row[name] for name in ("doc_id", "lang")} for row in plain(expected)
        ]
