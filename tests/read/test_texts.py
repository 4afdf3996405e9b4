"""Text inside of a record: by a path, from a list of paragraphs, from several fields by a template;
alike in every format that has fields."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.read import READERS, read_span
from pipeline.storage.lineage import Shard, Span
from tests.support.specs import input_spec


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parquet(records: list[dict[str, Any]]) -> bytes:
    names = dict.fromkeys(name for record in records for name in record)
    sink = io.BytesIO()
    table = pa.table({name: [record.get(name) for record in records] for name in names})
    pq.write_table(table, sink)
    return sink.getvalue()


def flat_csv(records: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(dict.fromkeys(name for r in records for name in r)))
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


def read(format: str, data: bytes, **settings: Any) -> list[dict[str, Any]]:
    span = Span(shard=Shard(uri=f"a.{format}", etag="e", size_bytes=len(data)))
    spec = input_spec(**settings)
    rows = []
    for table in read_span(READERS[format], io.BytesIO(data), span, spec):
        table.validate(full=True)
        rows += table.to_pylist()
    return rows


NESTED = [("jsonl", jsonl), ("parquet", parquet)]
ALL = [*NESTED, ("csv", flat_csv)]


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_path_leads_into_nested_objects(format: str, write: Any) -> None:
    records = [
        {"doc": {"text": "a", "meta": {"id": 1, "lang": "en"}}},
        {"doc": {"text": "b", "meta": {"id": 2, "lang": None}}},
        {"doc": {"text": None, "meta": None}},
        {"doc": None},
    ]
    rows = read(
        format,
        write(records),
        text_column="doc.text",
        id_column="doc.meta.id",
        keep={"doc.meta.lang": pa.string()},
    )
    assert [row["text"] for row in rows] == ["a", "b", None, None]
    assert [row["doc_id"] for row in rows] == ["1", "2", None, None]
    assert [row["doc.meta.lang"] for row in rows] == ["en", None, None, None]
    assert {row["reason"] for row in rows[2:]} <= {"null_text", "invalid_id"}


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_column_of_that_very_name_goes_before_a_path(format: str, write: Any) -> None:
    records = [{"doc.text": "exact", "doc": {"text": "nested"}}]
    (row,) = read(format, write(records), text_column="doc.text")
    assert row["text"] == "exact"


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_list_of_paragraphs_is_joined_by_line_feeds(format: str, write: Any) -> None:
    values = [["one", "two"], ["a", None, "b"], [], None, ["良い"], [None]]
    rows = read(format, write([{"text": value} for value in values]))
    assert [row["text"] for row in rows] == ["one\ntwo", "a\nb", "", None, "良い", ""]
    assert [row["reason"] for row in rows] == [None, None, None, "null_text", None, None]


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_path_through_a_list_of_objects_gives_paragraphs(format: str, write: Any) -> None:
    values = [
        [{"t": "one", "n": 1}, {"t": "two", "n": 2}],
        [],
        None,
        [{"t": None, "n": 3}, {"t": "c", "n": 4}],
    ]
    rows = read(format, write([{"body": value} for value in values]), text_column="body.t")
    assert [row["text"] for row in rows] == ["one\ntwo", "", None, "c"]


@pytest.mark.parametrize(
    "type_",
    [
        pa.large_list(pa.string()),
        pa.list_(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_every_kind_of_list_is_joined(type_: pa.DataType) -> None:
    values = [["a", "b"], None, ["c", None], ["d", "e"]]
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(values, type_)}), sink)
    rows = read("parquet", sink.getvalue())
    assert [row["text"] for row in rows] == ["a\nb", None, "c", "d\ne"]


@pytest.mark.parametrize(("format", "write"), ALL)
def test_a_template_joins_fields(format: str, write: Any) -> None:
    records = [{"title": "一", "body": "b {x}", "n": 7}, {"title": "t", "body": "", "n": 8}]
    rows = read(format, write(records), text_template="{title} {{{n}}}\n{body}")
    assert [row["text"] for row in rows] == ["一 {7}\nb {x}", "t {8}\n"]


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_missing_field_leaves_its_place_empty_and_all_missing_is_a_reject(
    format: str, write: Any
) -> None:
    records: list[dict[str, Any]] = [
        {"title": "t", "body": None},
        {"title": None, "body": "b"},
        {"title": None, "body": None},
    ]
    rows = read(format, write(records), text_template="{title}\n{body}")
    assert [row["text"] for row in rows] == ["t\n", "\nb", None]
    assert rows[2]["reason"] == "missing_text"
    assert "'title', 'body'" in rows[2]["detail"]


@pytest.mark.parametrize(("format", "write"), NESTED)
def test_a_template_takes_paths_and_lists(format: str, write: Any) -> None:
    records = [{"doc": {"title": "t", "body": ["one", "two"]}}]
    (row,) = read(format, write(records), text_template="{doc.title}: {doc.body}")
    assert row["text"] == "t: one\ntwo"


def test_a_field_of_a_template_that_is_no_text_is_a_reject() -> None:
    rows = read("jsonl", jsonl([{"a": 1.5}, {"a": True}, {"a": {}}]), text_template="{a}")
    assert [row["reason"] for row in rows] == ["text_not_a_string"] * 3
    assert "'a'" in rows[0]["detail"]
    with pytest.raises(InputError, match=r"'a' is of type double.*Set input\.text_template"):
        read("parquet", parquet([{"a": 1.5}]), text_template="{a}")


@pytest.mark.parametrize(("format", "write"), [NESTED[1], ALL[2]])
def test_a_missing_field_of_a_template_is_named(format: str, write: Any) -> None:
    with pytest.raises(
        InputError, match=r"'headline' not found; columns are title\. Set input\.te"
    ):
        read(format, write([{"title": "a"}]), text_template="{headline}")


def test_a_missing_path_names_the_paths_that_are_there() -> None:
    data = parquet([{"doc": {"body": "a", "id": 1}}])
    with pytest.raises(InputError, match=r"'doc\.text' not found; columns are doc, doc\.body, doc"):
        read("parquet", data, text_column="doc.text")
    with pytest.raises(
        InputError, match=r"'doc' is of type struct.*columns of text are doc\.body\."
    ):
        read("parquet", data, text_column="doc")


@pytest.mark.parametrize("template", ["", "no field", "{}", "{0!r}", "{a:>3}", "{a", "a}", "{a!s}"])
def test_a_template_without_a_clear_meaning_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="text_template"):
        input_spec(text_template=template)


def test_a_template_and_a_column_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="text_column and text_template exclude each other"):
        input_spec(text_column="body", text_template="{title}")


def test_a_setting_that_is_not_used_is_no_part_of_the_identity() -> None:
    assert "text_template" not in input_spec().identity()
    assert input_spec(text_template="{a}").identity()["text_template"] == "{a}"
    assert input_spec().identity()["text_column"] == "text"
