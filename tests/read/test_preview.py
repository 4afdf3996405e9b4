"""What plan shows of the input: fields and first text of each format, or the cause why not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.job.input_spec import InputSpec
from pipeline.read import preview as preview_module
from pipeline.read.input.shards import list_shards
from pipeline.read.preview import Preview, previews

RECORD = {"body": "a", "lang": "en", "text": "一つ"}


def previews_of(folder: Path, **settings: Any) -> list[Preview]:
    return previews(list_shards([str(folder)], {}), InputSpec(uri=str(folder), **settings))


def test_the_first_record_of_each_format_shows_its_fields_and_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(RECORD).encode()))
    (tmp_path / "b.jsonl").write_bytes(b"{}")
    pq.write_table(pa.Table.from_pylist([RECORD]), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("body,lang,text\na,en,一つ\n", encoding="utf-8")
    (tmp_path / "e.txt").write_text("一つ\n二つ\n", encoding="utf-8")
    shown = previews_of(tmp_path)
    assert [(entry.format, entry.unit) for entry in shown] == [
        ("jsonl", "line"),
        ("parquet", "row"),
        ("csv", "row"),
        ("text", "line"),
    ]
    assert {entry.text for entry in shown} == {"一つ"}
    assert [entry.fields for entry in shown] == [tuple(RECORD)] * 3 + [()]
    assert {entry.problem for entry in shown} == {None}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_wrong_text_column_is_a_mistake_that_names_what_there_is(
    tmp_path: Path, name: str
) -> None:
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([RECORD]), tmp_path / name)
    else:
        is_csv = name == "a.csv"
        (tmp_path / name).write_text("body,lang,text\na,en,b\n" if is_csv else json.dumps(RECORD))
    (entry,) = previews_of(tmp_path, text_column="content")
    assert entry.text is None
    assert entry.is_mistake
    assert entry.problem is not None
    assert entry.fields == tuple(RECORD)


def test_one_damaged_shard_is_no_mistake_of_the_spec(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no footer")
    for entry in previews_of(tmp_path):
        assert entry.text is None
        assert entry.problem
        assert not entry.is_mistake


def test_a_description_beside_the_data_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "a_info.json").write_text('{"features": {}}')
    (tmp_path / "b.jsonl").write_text('{"text": "one"}')
    assert [entry.text for entry in previews_of(tmp_path)] == ["one"]
    (tmp_path / "b.jsonl").write_text('{"body": "one"}')
    (entry,) = previews_of(tmp_path)
    assert entry.is_mistake
    (tmp_path / "b.jsonl").write_bytes('{"body": "one"}'.encode("utf-16"))
    (entry,) = previews_of(tmp_path)
    assert entry.uri.endswith("a_info.json")
    assert not entry.is_mistake
    (tmp_path / "c.jsonl").write_text('{"text": "last"}')
    assert [entry.text for entry in previews_of(tmp_path)] == ["last"]


def test_folders_of_the_path_are_fields(tmp_path: Path) -> None:
    (tmp_path / "lang=ja").mkdir()
    (tmp_path / "lang=ja/a.jsonl").write_text('{"text": "a"}')
    (entry,) = previews_of(tmp_path, keep_columns="lang")
    assert (entry.fields, entry.text) == (("text", "lang"), "a")


def test_columns_of_plain_text_are_a_mistake_of_the_spec(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (entry,) = previews_of(tmp_path, id_column="id")
    assert entry.is_mistake
    assert entry.problem is not None
    assert "plain text has no columns" in entry.problem


def test_empty_shards_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"text")
    assert [entry.text for entry in previews_of(tmp_path)] == ["text"]


def test_a_preview_reads_a_bounded_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * 3_000_000)
    monkeypatch.setattr(preview_module, "MAX_BYTES", 1 << 20)
    (entry,) = previews_of(tmp_path)
    assert entry.text is None
    assert entry.problem is not None
    assert "no record ends within" in entry.problem
