"""CSV: quoting as Python's csv writes it, and one bad row costs one row."""

from __future__ import annotations

import csv
import gzip
import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.read import READERS, read_span
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import records_schema
from tests.support.specs import input_spec


def read(
    data: bytes,
    *,
    uri: str = "a.csv",
    id_column: str | None = None,
    keep: dict[str, pa.DataType] | None = None,
    max_record_bytes: int = 1 << 20,
    **settings: Any,
) -> list[dict[str, Any]]:
    span = Span(shard=Shard(uri=uri, etag="e", size_bytes=len(data)))
    spec = input_spec(id_column=id_column, keep=keep, max_record_bytes=max_record_bytes, **settings)
    rows = []
    for table in read_span(READERS["csv"], io.BytesIO(data), span, spec):
        assert table.schema == records_schema(spec.keep)
        table.validate(full=True)
        rows += table.to_pylist()
    return rows


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, str]], line_end: str) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *rows])
    read_rows = read(sink.getvalue().encode(), id_column="id")
    assert [(row["doc_id"], row["text"]) for row in read_rows] == rows
    assert [row["source_record"] for row in read_rows] == list(range(len(rows)))


def test_quoted_newlines_delimiters_and_quotes_are_text() -> None:
    rows = read(b'\xef\xbb\xbftext,id\n"a\nb, ""c""",1\n\n2" disk,2\n')
    assert [row["text"] for row in rows] == ['a\nb, "c"', '2" disk']
    assert [row["record_bytes"] for row in rows] == [14, 9]


def test_a_field_may_be_longer_than_the_csv_modules_own_limit() -> None:
    long = "x" * 500_000
    assert read(f"text\n{long}\n".encode())[0]["text"] == long


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a", "invalid_column"),
        (b"a,b,c", "invalid_column"),
        (b"a,\xff", "invalid_utf8"),
        (b"\xff,b", "invalid_id"),
        (b"a,b\0c", "nul_character"),
        (b'a,"b" c', "invalid_column"),
        (b"a,b\rc", "invalid_column"),
        (b"a," + b"b" * 100, "record_too_large"),
        (b'a,"b', "invalid_column"),
    ],
)
def test_a_bad_row_is_rejected_alone(line: bytes, reason: str) -> None:
    data = b"id,text\n1,one\n" + line + b"\n2,two\n3,three\n"
    rows = read(data, id_column="id", max_record_bytes=50)
    assert [row["reason"] for row in rows] == [None, reason, None, None]
    assert [row["text"] for row in rows] == ["one", None, "two", "three"]
    assert [row["source_record"] for row in rows] == [0, 1, 2, 3]


def test_an_unclosed_quote_costs_its_line_even_when_the_rest_is_over_the_limit() -> None:
    good = [f"{i},text {i}" for i in range(2000)]
    rows = read(
        ('id,text\n0,"open\n' + "\n".join(good)).encode(), id_column="id", max_record_bytes=1000
    )
    assert rows[0]["reason"] == "record_too_large"
    assert [row["text"] for row in rows[1:]] == [f"text {i}" for i in range(2000)]


def test_kept_columns_are_cast_and_empty_numbers_are_null() -> None:
    rows = read(b"text,n,lang\na,1,ja\nb,,\nc,x,en\n", keep={"n": pa.int64(), "lang": pa.string()})
    assert [(row["n"], row["lang"], row["reason"]) for row in rows] == [
        (1, "ja", None),
        (None, "", None),
        (None, "en", "invalid_column"),
    ]


def test_tab_separated_values_are_told_by_the_suffix() -> None:
    assert read(gzip.compress(b"id\ttext\n1\ta,b\n"), uri="a.tsv.gz")[0]["text"] == "a,b"


def test_a_missing_or_repeated_column_names_those_that_are_there() -> None:
    with pytest.raises(
        InputError,
        match=r"'text' not found; columns are id, body\. Set input\.text_column\. If",
    ):
        read(b"id,body\n1,a\n")
    with pytest.raises(InputError, match="'text' found twice"):
        read(b"text,text\n1,a\n")
    assert read(b"") == read(b"text\n") == []


QUOTES = b'id\ttext\n1\t"Quoted start\n2\t"Foo" he said\n3\t"whole"\n4\tC:\\new\n'


def texts(data: bytes, **settings: Any) -> list[str | None]:
    return [row["text"] for row in read(data, **settings)]


def test_quotation_marks_of_tab_separated_values_are_text() -> None:
    expected = ['"Quoted start', '"Foo" he said', '"whole"', "C:\\new"]
    assert texts(QUOTES, uri="a.tsv") == expected
    assert texts(QUOTES.replace(b"\n", b"\r\n"), uri="a.tsv") == expected
    quoted = b'id\ttext\n3\t"who\nle"\n'
    assert texts(quoted, uri="a.tsv", csv={"quote": '"'}) == ["who\nle"]
    rows = read(quoted, uri="a.tsv")
    assert [row["reason"] for row in rows] == [None, "invalid_column"]
    assert "input.csv.quote" in rows[1]["detail"]


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_another_delimiter_is_seen_in_the_header(delimiter: str) -> None:
    data = f"id{delimiter}text\n1{delimiter}hello, world\n".encode()
    assert texts(data) == texts(data, csv={"delimiter": delimiter}) == ["hello, world"]
    with pytest.raises(InputError, match=r"'text' not found; columns are id.text"):
        read(data, csv={"delimiter": ","})
    with pytest.raises(InputError, match=r"'body' not found; columns are id, text\."):
        read(data, text_column="body")


def test_spaces_behind_the_commas_of_the_header_are_no_text() -> None:
    assert texts(b'id, text\n1, "a, b"\n2, c\n') == ["a, b", "c"]
    assert texts(b"id,text\n1, c\n") == [" c"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_backslash_before_a_quotation_mark_is_seen_in_the_first_rows(line_end: str) -> None:
    rows = [
        ("1", '"he said \\"hi\\", ok"', 'he said "hi", ok'),
        ("2", '"a \\\\, b \\n"', "a \\, b \\n"),
        ("3", "\\\\server\\share", "\\\\server\\share"),
        ("4", f'"two{line_end}lines ""x"""', f'two{line_end}lines "x"'),
        ("5", '""', ""),
    ]
    data = line_end.join(["id,text", *(f"{id},{field}" for id, field, _ in rows), ""]).encode()
    assert texts(data) == texts(data, csv={"escape": "\\"}) == [text for _, _, text in rows]
    plain = read(data, csv={"escape": "none"})
    assert plain[0]["reason"] == "invalid_column"


def test_backslashes_of_a_file_that_follows_the_standard_are_text() -> None:
    data = b'id,text\n1,"C:\\dir\\"\n2,"a ""\\"", b\\\\"\n'
    assert texts(data) == ["C:\\dir\\", 'a "\\", b\\\\']


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a", "invalid_column"),
        (b'a,"b" c', "invalid_column"),
        (b"a,b\rc", "invalid_column"),
        (b'a,"b', "invalid_column"),
        (b'a,"b\\"', "invalid_column"),
        (b"a,\xff", "invalid_utf8"),
    ],
)
def test_a_bad_row_of_an_escaped_file_is_rejected_alone(line: bytes, reason: str) -> None:
    data = b"id,text\n1,one\n" + line + b"\n2,two\n3,three\n"
    rows = read(data, id_column="id", csv={"escape": "\\"})
    assert [row["reason"] for row in rows] == [None, reason, None, None]
    assert [row["text"] for row in rows] == ["one", None, "two", "three"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5))
def test_what_a_writer_of_backslashes_wrote_is_read_back(rows: list[tuple[str, str]]) -> None:
    escaped = [
        ['"' + field.replace("\\", "\\\\").replace('"', '\\"') + '"' for field in row]
        for row in [("id", "text"), *rows]
    ]
    data = "".join(",".join(row) + "\n" for row in escaped).encode()
    read_rows = read(data, id_column="id", csv={"escape": "\\"})
    assert [(row["doc_id"], row["text"]) for row in read_rows] == rows


def test_columns_of_the_spec_stand_for_a_missing_header() -> None:
    settings = {"csv": {"columns": ["id", "text"]}, "id_column": "id"}
    rows = read(b"7\tfirst\n8\tsecond\n", uri="collection.tsv", **settings)
    assert [(row["doc_id"], row["text"], row["source_record"]) for row in rows] == [
        ("7", "first", 0),
        ("8", "second", 1),
    ]
    assert texts(b"7;first\n8;second\n", **settings) == ["first", "second"]
    with pytest.raises(InputError, match=r"If the first row is no header.*set input\.csv\."):
        read(b"7\tfirst\n", uri="collection.tsv")
    with pytest.raises(InputError, match=r"'text' not found; columns are id, body"):
        read(b"7,first\n", csv={"columns": ["id", "body"]})


@pytest.mark.parametrize(
    "csv_settings",
    [
        {"delimiter": ""},
        {"delimiter": "::"},
        {"delimiter": "\n"},
        {"delimiter": "none"},
        {"delimiter": "|", "quote": "|"},
        {"columns": []},
        {"encoding": "utf-16"},
        {"encoding": "cp037"},
        {"encoding": "hex"},
        {"encoding": "nonsense"},
        {"header": False},
    ],
)
def test_a_dialect_without_a_clear_meaning_is_refused(csv_settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="csv"):
        input_spec(csv=csv_settings)


@pytest.mark.parametrize("encoding", ["cp932", "shift_jis", "euc_jp", "gb18030", "iso2022_jp"])
def test_the_charset_of_a_file_can_be_set(encoding: str) -> None:
    values = ["表示、ソ", 'a "引用" b', "二行\r\n目"]
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([("id", "text"), *enumerate(values)])
    data = sink.getvalue().encode(encoding)
    assert texts(data, csv={"encoding": encoding}) == values
    rows = read(data + b"7,a\xff\x81\n8,b\n", csv={"encoding": encoding})
    assert [row["reason"] for row in rows[3:]] == ["invalid_utf8", None]
    assert rows[3]["detail"] == f"not {encoding.upper()}"


def test_only_settings_that_differ_are_part_of_the_identity() -> None:
    assert "csv" not in input_spec().identity()
    assert input_spec(csv={"delimiter": ";"}).identity()["csv"] == {"delimiter": ";"}


@pytest.mark.faults
def test_a_truncated_shard_keeps_its_whole_rows_and_gives_one_reject() -> None:
    body = "id,text\n" + "".join(
        f'{i},"line one {i * 7919 % 1000}\nline two"\n' for i in range(5000)
    )
    rows = read(gzip.compress(body.encode())[:-3000], uri="a.csv.gz", id_column="id")
    n_good = len(rows) - 1
    assert 1000 < n_good < 5000
    assert [row["doc_id"] for row in rows[:-1]] == [str(i) for i in range(n_good)]
    assert all(row["text"].endswith("line two") for row in rows[:-1])
    assert (rows[-1]["reason"], rows[-1]["source_record"]) == ("damaged_shard", n_good)
