"""JSON Lines and plain text: one row a record, one reason a bad record, and byte ranges that lose
and double nothing."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.read import READERS, read_span
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import KEPT_TYPES, records_schema
from tests.support.specs import input_spec


def shard(data: bytes, uri: str = "a.jsonl") -> Shard:
    return Shard(uri=uri, etag="e", size_bytes=len(data))


def read(
    data: bytes,
    *,
    format: str = "jsonl",
    id_column: str | None = None,
    keep: dict[str, pa.DataType] | None = None,
    max_record_bytes: int = 1 << 20,
    spans: list[Span] | None = None,
) -> list[dict[str, Any]]:
    spec = input_spec("text", id_column, keep or {}, max_record_bytes)
    rows = []
    for span in spans or [Span(shard=shard(data))]:
        for table in read_span(READERS[format], io.BytesIO(data), span, spec):
            assert table.num_rows
            assert table.schema == records_schema(spec.keep)
            table.validate(full=True)
            rows += table.to_pylist()
    for row in rows:
        assert (row["text"] is None) == (row["reason"] is not None) == (row["detail"] is not None)
    return rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "malformed_json"),
        (b"{'text': 'a'}", "malformed_json"),
        (b'{"text": NaN}', "text_not_a_string"),
        (b'{"text": "a",}', "malformed_json"),
        (b'{"text": "a"} // comment', "malformed_json"),
        (b'{"text": "a\tb"}'.replace(b"\\t", b"\t"), "malformed_json"),
        (b'{"text": "a"} {}', "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'["text"]', "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"7", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"Text": "a"}', "missing_text"),
        (b'{"text": null}', "null_text"),
        (b'{"text": 5}', "text_not_a_string"),
        (b'{"text": ["a", 1]}', "text_not_a_string"),
        (b'{"text": [["a"]]}', "text_not_a_string"),
        (b'{"text": {"a": "b"}}', "text_not_a_string"),
        (b'{"text": "a\\u0000b"}', "nul_character"),
        (b'{"text": "a\\ud800b"}', "lone_surrogate"),
        (b'{"text": "a\\udc00"}', "lone_surrogate"),
        (b'{"text": "\xff"}', "invalid_utf8"),
        (b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason_and_its_neighbours_are_kept(
    line: bytes, reason: str
) -> None:
    good = '{"text": "良い"}'.encode()
    rows = read(b"\n".join([good, line, good]))
    assert [row["reason"] for row in rows] == [None, reason, None]
    assert [row["text"] for row in rows] == ["良い", None, "良い"]
    assert rows[1]["source_record"] == len(good) + 1
    assert rows[1]["record_bytes"] == len(line)


def test_a_lone_surrogate_outside_the_columns_in_use_is_no_fault() -> None:
    columns = (b"junk", b"lang", b"id")
    data = b"\n".join(b'{"text": "a", "%s": "\\ud800"}' % column for column in columns)
    assert [row["reason"] for row in read(data)] == [None, None, None]
    assert [row["reason"] for row in read(data, keep={"lang": pa.string()})] == [
        None,
        "invalid_column",
        None,
    ]


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "123456789012345678901234567890",
        "[" * 1100 + "]" * 1100,
        '"\\ud800"',
        '{"a": 1, "a": 2}',
        '"\\u0000"',
    ],
)
def test_what_is_odd_about_a_field_that_nobody_asked_for_costs_nothing(value: str) -> None:
    odd = f'{{"text": "a", "x": {value}}}'
    rows = read(f'{odd}\n{{"text": "b"}}\n{{"x": {{"y": {value}}}, "text": "c"}}'.encode())
    assert [row["text"] for row in rows] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("float64", "Infinity", float("inf")),
        ("string", '{"n": 12345678901234567890123}', '{"n":12345678901234567890123}'),
        ("string", "[1, null]", "[1,null]"),
        ("string", "NaN", None),
        ("string", '{"n": [NaN, null]}', None),
        ("string", '{"n": 1e999}', None),
        ("int64", "NaN", None),
        ("float64", "1e999", None),
        ("float64", "9" * 5000, None),
    ],
)
def test_an_odd_number_in_a_kept_column_is_kept_exactly_or_rejected(
    type_name: str, value: str, expected: Any
) -> None:
    (row,) = read(f'{{"text": "a", "k": {value}}}'.encode(), keep={"k": KEPT_TYPES[type_name]})
    assert row["k"] == expected
    assert row["reason"] == (None if expected is not None else "invalid_column")


def test_joined_files_leave_byte_order_marks_that_begin_no_object() -> None:
    rows = read('\ufeff{"text": "a"}\n\ufeff{"text": "b\ufeff"}\n'.encode())
    assert [row["text"] for row in rows] == ["a", "b\ufeff"]


def test_a_record_without_the_text_says_what_it_has() -> None:
    rows = read(b'{"body": "a", "lang": "en", "url": "u"}\n{}', id_column="id")
    assert rows[0]["reason"] == "missing_text"
    assert rows[0]["detail"] == "the record has body, lang, url and no 'text' (input.text_column)"
    assert rows[1]["detail"] == "the record has no fields and no 'text' (input.text_column)"
    (row,) = read(b'{"text": "a", "lang": "en"}', id_column="id")
    assert (row["reason"], row["detail"]) == (
        "invalid_id",
        "the record has text, lang and no 'id' (input.id_column)",
    )


def test_identifiers_stay_as_written() -> None:
    ids = ['"0012"', "12", '"2024-01-01"', "123456789012345678901234567890", '""', "-7"]
    rows = read("\n".join(f'{{"id": {i}, "text": "a"}}' for i in ids).encode(), id_column="id")
    assert [row["doc_id"] for row in rows] == ["0012", "12", "2024-01-01", ids[3], "", "-7"]
    only_integers = read(b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}', id_column="id")
    assert [row["doc_id"] for row in only_integers] == ["1", "2"]


def test_a_number_that_is_whole_is_an_identifier() -> None:
    values = ("5.0", "1e3", "-0.0", "9007199254740992.0")
    rows = read("\n".join(f'{{"id": {v}, "text": "a"}}' for v in values).encode(), id_column="id")
    assert [row["doc_id"] for row in rows] == ["5", "1000", "0", "9007199254740992"]


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "1.5",
        "true",
        '["a"]',
        '"\\ud800"',
        "NaN",
        "Infinity",
        "1e999",
        "9007199254740994.0",
        "0.99999999999999999999",
        "9" * 5000,
    ],
)
def test_what_is_neither_string_nor_integer_is_no_identifier(value: str) -> None:
    rows = read(
        f'{{"id": {value}, "text": "a"}}\n{{"text": "b"}}\n{{"id": "x"}}'.encode(), id_column="id"
    )
    assert [(row["reason"], row["doc_id"]) for row in rows] == [
        ("invalid_id", None),
        ("invalid_id", None),
        ("missing_text", "x"),
    ]


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("string", '"0012"', "0012"),
        ("string", "12", "12"),
        ("string", "123456789012345678901", "123456789012345678901"),
        ("string", "true", "true"),
        ("string", '{"b": [1, null], "a": "あ"}', '{"b":[1,null],"a":"あ"}'),
        ("int64", "12", 12),
        ("int64", "12.0", 12),
        ("int64", '"12"', 12),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("float64", "1", 1.0),
        ("float64", '"1.5"', 1.5),
        ("bool", "true", True),
        ("bool", '"false"', False),
        ("date", '"2024-02-29"', "2024-02-29"),
        ("timestamp", '"2024-02-29T12:00:00Z"', "2024-02-29 12:00:00+00:00"),
    ],
)
def test_kept_columns_are_cast_exactly(type_name: str, value: str, expected: Any) -> None:
    rows = read(
        f'{{"text": "a", "k": {value}}}\n{{"text": "b"}}'.encode(),
        keep={"k": KEPT_TYPES[type_name]},
    )
    assert [row["reason"] for row in rows] == [None, None]
    value = rows[0]["k"]
    assert (str(value) if type_name in ("date", "timestamp") else value) == expected
    assert rows[1]["k"] is None


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("int64", "12.5"),
        ("int64", '"x"'),
        ("int64", "true"),
        ("int64", "[1]"),
        ("int64", "9223372036854775808"),
        ("float64", '"x"'),
        ("bool", "1"),
        ("bool", '"maybe"'),
        ("date", "20240229"),
        ("date", '"2023-02-29"'),
        ("timestamp", "1700000000"),
        ("timestamp", '"noon"'),
    ],
)
def test_a_value_that_does_not_fit_its_declared_type_rejects_its_record_only(
    type_name: str, value: str
) -> None:
    fitting = {"int64": "3", "float64": "0.5", "bool": "true", "date": '"2024-01-01"'}.get(
        type_name, "null"
    )
    line = '{{"text": "a", "k": {}}}'.format
    rows = read(
        "\n".join([line(fitting), line(value), line(fitting)]).encode(),
        keep={"k": KEPT_TYPES[type_name]},
    )
    assert [row["reason"] for row in rows] == [None, "invalid_column", None]


def test_a_column_may_change_its_type_from_line_to_line() -> None:
    values = (b"1", b'"2"', b"3.0", b"3.5")
    data = b"\n".join(b'{"text": "a", "n": %s}' % value for value in values)
    rows = read(data, keep={"n": pa.int64()})
    assert [row["n"] for row in rows] == [1, 2, 3, None]
    assert [row["reason"] for row in rows] == [None, None, None, "invalid_column"]


def test_only_newlines_end_a_line() -> None:
    texts = ["a\u2028b", "c\u2029d\u0085e", "f\x0cg\x0bh", "i\rj"]
    rows = read("\n".join(texts).encode(), format="text")
    assert [row["text"] for row in rows] == texts
    as_json = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    assert [row["text"] for row in read(as_json.encode())] == texts


def test_crlf_blank_lines_and_a_byte_order_mark_are_no_content() -> None:
    data = "\ufeff一\r\n\r\n \t\n\n二\r\n三".encode()
    rows = read(data, format="text")
    assert [row["text"] for row in rows] == ["一", "二", "三"]
    for row in rows:
        record = data[row["source_record"] :][: row["record_bytes"]]
        assert record.decode("utf-8-sig") == row["text"]
    rows = read('\ufeff{"text": "一"}\r\n\r\n{"text": "二"}\r\n'.encode())
    assert [(row["text"], row["source_record"]) for row in rows] == [("一", 0), ("二", 22)]


def test_the_last_value_of_a_repeated_key_counts() -> None:
    assert read(b'{"text": "a", "text": "b"}')[0]["text"] == "b"


def test_an_empty_shard_has_no_records() -> None:
    assert read(b"") == read(b"\n\n") == read(b"", format="text") == []


@pytest.mark.parametrize("format", ["text", "document"])
def test_plain_text_refuses_columns(format: str) -> None:
    with pytest.raises(InputError, match="no columns, and the spec names lang"):
        read(b"a", format=format, keep={"lang": pa.string()})


def test_a_file_can_be_one_document() -> None:
    text = "\ufeff# Title\r\n\nA paragraph\rof two lines.\n"
    (row,) = read(text.encode(), format="document")
    assert row["text"] == text.removeprefix("\ufeff")
    assert (row["source_record"], row["record_bytes"]) == (0, len(text.encode()))
    assert read(b"", format="document") == []
    for data, reason in (
        (b"a" * 11, "record_too_large"),
        (b"\xff\n", "invalid_utf8"),
        (b"a\0b", "nul_character"),
        ("text".encode("utf-16"), "damaged_shard"),
    ):
        (row,) = read(data, format="document", max_record_bytes=10)
        assert row["reason"] == reason


def test_a_document_that_breaks_off_is_no_document() -> None:
    data = gzip.compress(b"one text, and its end" * 99)
    span = Span(shard=shard(data, "a.md.gz"))
    assert [row["reason"] for row in read(data, format="document", spans=[span])] == [None]
    (row,) = read(data[:-9], format="document", spans=[Span(shard=shard(data[:-9], "a.md.gz"))])
    assert row["reason"] == "damaged_shard"


def test_a_bad_text_line_is_rejected_alone() -> None:
    rows = read(b"a\n\xff\nb\0\n" + b"c" * 11, format="text", max_record_bytes=10)
    assert [row["reason"] for row in rows] == [
        None,
        "invalid_utf8",
        "nul_character",
        "record_too_large",
    ]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_record_limit_counts_the_record_without_its_line_end(line_end: bytes) -> None:
    data = line_end.join([b"a" * 10, b"b" * 11, b"c" * 10, b""])
    rows = read(data, format="text", max_record_bytes=10)
    assert [(row["reason"], row["record_bytes"]) for row in rows] == [
        (None, 10),
        ("record_too_large", 11),
        (None, 10),
    ]


class Generated(io.RawIOBase):
    """A file that is never in memory whole."""

    def __init__(self, head: bytes, filler: bytes, n_filler: int, tail: bytes) -> None:
        super().__init__()
        self.parts = [head, *[filler] * n_filler, tail]
        self.size = sum(map(len, self.parts))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        assert offset == 0
        return 0

    def read(self, size: int = -1, /) -> bytes:
        return self.parts.pop(0) if self.parts else b""


@pytest.mark.parametrize("format", ["jsonl", "text"])
def test_a_line_of_100_mb_is_rejected_in_bounded_memory(format: str) -> None:
    file = Generated(b'{"text": "a"}\n{"text": "', b"x" * 1_000_000, 100, b'"}\n{"text": "b"}\n')
    span = Span(shard=Shard(uri="a.jsonl", etag="e", size_bytes=file.size))
    spec = input_spec("text", None, {}, max_record_bytes=4 << 20)
    tracemalloc.start()
    tables = list(read_span(READERS[format], file, span, spec))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["reason"] for row in rows] == [None, "record_too_large", None]
    assert rows[1]["record_bytes"] == 100_000_012
    assert rows[2]["source_record"] == 100_000_027
    assert peak_bytes < 12 << 20  # the limit of 4 MiB, joined once, and blocks of 1 MB


LINES = st.lists(
    st.sampled_from(
        [b"", b" ", b'{"text": "a"}', b'{"text": "\xe3\x81\x82"}\r', b"x" * 30, b"\r", b"[1]"]
    ),
    max_size=8,
)


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(LINES, st.booleans(), st.booleans(), st.sampled_from(["jsonl", "text"]), st.integers(1, 40))
def test_the_spans_of_a_shard_give_its_records_wherever_it_is_cut(
    lines: list[bytes], has_mark: bool, ends_line: bool, format: str, part_bytes: int
) -> None:
    data = (
        (b"\xef\xbb\xbf" if has_mark else b"") + b"\n".join(lines) + (b"\n" if ends_line else b"")
    )
    whole = read(data, format=format, max_record_bytes=20)
    planned = READERS[format].spans(shard(data), lambda _: io.BytesIO(data), part_bytes)
    assert read(data, format=format, max_record_bytes=20, spans=planned) == whole
    for cut in range(len(data) + 2):
        spans = [
            Span(shard=shard(data), start=0, stop=cut),
            Span(shard=shard(data), start=cut, stop=None),
        ]
        parts = [read(data, format=format, max_record_bytes=20, spans=[span]) for span in spans]
        assert parts[0] + parts[1] == whole
        assert all(row["source_record"] < cut for row in parts[0])
        assert all(row["source_record"] >= cut for row in parts[1])


def test_spans_cover_a_large_shard_and_leave_a_compressed_one_whole() -> None:
    large = Shard(uri="a.jsonl", etag="e", size_bytes=100)
    bounds = [(s.start, s.stop) for s in READERS["jsonl"].spans(large, lambda _: io.BytesIO(), 40)]
    assert bounds == [(0, 40), (40, 80), (80, None)]
    packed = Shard(uri="a.jsonl.gz", etag="e", size_bytes=100)
    assert READERS["jsonl"].spans(packed, lambda _: io.BytesIO(), 40) == [Span(shard=packed)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
        max_size=30,
    )
)
def test_every_text_comes_back_as_it_was_and_its_bytes_are_where_the_row_says(
    texts: list[str],
) -> None:
    data = b"\n".join(json.dumps({"text": text}).encode() for text in texts)
    rows = read(data)
    assert [row["text"] for row in rows] == texts
    for row in rows:
        record = data[row["source_record"] :][: row["record_bytes"]]
        assert json.loads(record)["text"] == row["text"]


def test_errors_of_the_file_pass_through() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("peer")

    for name, uri in (
        ("jsonl", "a.jsonl"),
        ("jsonl", "a.jsonl.gz"),
        ("csv", "a.csv.bz2"),
        ("warc", "a.warc.gz"),
    ):
        span = Span(shard=Shard(uri=uri, etag="e", size_bytes=9))
        with pytest.raises(ConnectionResetError):
            list(read_span(READERS[name], Broken(), span, input_spec("text", None, {}, 99)))


@pytest.mark.parametrize("format", ["jsonl", "text"])
def test_a_byte_order_mark_and_blank_lines_alone_are_no_records(format: str) -> None:
    assert read(b"\xef\xbb\xbf\n \t\r\n\n\x0b\x0c\n", format=format) == []
    assert read(b"\xef\xbb\xbf", format=format) == []
