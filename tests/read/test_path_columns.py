"""Kept columns from the folders of a shard, `lang=ja/part.jsonl`, in every format.

Oracle: Arrow's own reading of such folders.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.job.input_spec import InputSpec
from pipeline.output.dataset import open_dataset
from pipeline.read import READERS, format_of, read_span
from pipeline.read.input.shards import list_shards, open_shard
from pipeline.storage import layout
from pipeline.storage.lineage import Span
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

VALUES = [
    "ja",
    None,
    "",
    "a/b=c",
    "100%",
    "日本",
    "%2F",
    " x ",
    layout.NULL_PARTITION,
    "a\\b:c?*[d]",
]


def read(root: Path, **settings: Any) -> list[dict[str, Any]]:
    spec = InputSpec(uri=str(root), **settings)
    rows = []
    for shard in list_shards([str(root)], {}, spec.format):
        with open_shard(shard, {}) as file:
            reader = READERS[format_of(shard.uri, spec.format)]
            for table in read_span(reader, file, Span(shard=shard), spec):
                assert table.schema.names[6:] == list(spec.keep)
                rows += table.to_pylist()
    return rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_value_comes_back_from_the_folder_that_a_writer_made(tmp_path: Path, name: str) -> None:
    """The folders are those that this package writes."""
    for number, value in enumerate(VALUES):
        step = layout.partition_step("the lang", value)
        write_shard(tmp_path / step / name, [{"id": str(number), "text": f"text {number}"}])
    rows = read(tmp_path, id_column="id", keep_columns=["the lang"])
    assert {row["doc_id"]: row["the lang"] for row in rows} == {
        str(number): value for number, value in enumerate(VALUES)
    }
    assert all(row["reason"] is None for row in rows)


def test_arrow_reads_the_same_values_from_the_same_folders(tmp_path: Path) -> None:
    """Also where the file has a column of that name with another value: the folder's counts."""
    for value in ("ja", None, "a/b=c", "100%", "日本"):
        path = tmp_path / layout.partition_step("lang", value) / "year=2026" / "a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"text": [f"{value}"], "lang": ["other"]}), path)
    schema = pa.schema([("lang", pa.string()), ("year", pa.int64())])
    table = ds.dataset(tmp_path, partitioning=ds.partitioning(schema, flavor="hive")).to_table()
    expected = {row["text"]: (row["lang"], row["year"]) for row in table.to_pylist()}
    rows = read(tmp_path, keep_columns={"year": "int64", "lang": "string"})
    assert {row["text"]: (row["lang"], row["year"]) for row in rows} == expected


def test_plain_text_has_the_columns_of_its_path(tmp_path: Path) -> None:
    (tmp_path / "day=2026-11-25/x=1").mkdir(parents=True)
    (tmp_path / "day=2026-11-25/x=1/a.txt").write_text("one\ntwo\n")
    rows = read(tmp_path, keep_columns={"day": "date", "x": "int64"})
    assert [(row["text"], row["day"], row["x"]) for row in rows] == [
        ("one", datetime.date(2026, 11, 25), 1),
        ("two", datetime.date(2026, 11, 25), 1),
    ]


def test_a_value_that_does_not_fit_its_type_rejects_the_records_of_its_shard_only(
    tmp_path: Path,
) -> None:
    for value in ("2026", "soon"):
        write_shard(tmp_path / f"year={value}/a.jsonl", [{"text": "one"}, {"text": None}])
    rows = read(tmp_path, keep_columns={"year": "int64"})
    assert [(row["text"], row["year"], row["reason"]) for row in rows] == [
        ("one", 2026, None),
        (None, 2026, "null_text"),
        (None, None, "invalid_column"),
        (None, None, "null_text"),
    ]
    assert "'soon'" in rows[2]["detail"] and rows[2]["detail"].startswith("year: ")


def test_the_value_nearest_to_the_file_counts_and_a_file_name_is_no_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "lang=en/lang=ja/lang=de.jsonl", [{"text": "one", "lang": "fr"}])
    assert [row["lang"] for row in read(tmp_path, keep_columns=["lang"])] == ["ja"]


def test_an_output_partitioned_by_a_column_of_the_path(tmp_path: Path) -> None:
    for lang in ("ja", "a/b"):
        step = layout.partition_step("lang", lang)
        write_shard(tmp_path / "in" / step / "a.jsonl", [{"id": lang, "text": f"text of {lang}"}])
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
    )
    run(spec)
    rows = open_dataset(str(tmp_path / "out")).to_table(columns=["doc_id", "lang"]).to_pylist()
    assert sorted(map(tuple, map(dict.values, rows))) == [("a/b", "a/b"), ("ja", "ja")]
