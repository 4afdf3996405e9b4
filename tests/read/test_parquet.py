"""Parquet: what a column can be, what a bad row or page costs, and row-group spans. Files are
written by pyarrow."""

from __future__ import annotations

import datetime
import io
import resource
import uuid
from decimal import Decimal as D
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.read import READERS, read_span
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import KEPT_TYPES, records_schema
from tests.support.specs import input_spec

READER = READERS["parquet"]
UUID_2 = uuid.UUID(int=2**128 - 2)
day = datetime.date(2024, 2, 29)
noon = datetime.datetime(2024, 2, 29, 12)
TEXTS = ["良い", None, "a\0b", "ok"]
OUTCOMES = [None, "null_text", "nul_character", None]


def written(table: pa.Table, **settings: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **settings)
    return sink.getvalue()


def shard(data: bytes) -> Shard:
    return Shard(uri="a.parquet", etag="e", size_bytes=len(data))


def read(
    data: bytes,
    *,
    id_column: str | None = None,
    keep: dict[str, pa.DataType] | None = None,
    max_record_bytes: int = 1 << 20,
    span: Span | None = None,
) -> list[dict[str, Any]]:
    spec = input_spec("text", id_column, keep or {}, max_record_bytes)
    rows = []
    for table in read_span(READER, io.BytesIO(data), span or Span(shard=shard(data)), spec):
        assert 0 < table.num_rows <= 4096
        assert table.schema == records_schema(spec.keep)
        table.validate(full=True)
        rows += table.to_pylist()
    for row in rows:
        assert (row["text"] is None) == (row["reason"] is not None)
    return rows


def unchecked_strings(values: list[bytes]) -> pa.Array:
    data = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(data), data.buffers()[1], data.buffers()[2])


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_read(type_: pa.DataType) -> None:
    if pa.types.is_dictionary(type_):
        column = pa.array(TEXTS).dictionary_encode()
    elif "binary" in str(type_):
        column = pa.array([text and text.encode() for text in TEXTS], type_)
    else:
        column = pa.array(TEXTS, type_)
    rows = read(written(pa.table({"text": column})))
    assert [row["reason"] for row in rows] == OUTCOMES
    assert [row["text"] for row in rows] == ["良い", None, None, "ok"]
    assert [row["source_record"] for row in rows] == [0, 1, 2, 3]
    assert [row["record_bytes"] for row in rows] == [6, 0, 3, 2]


def test_a_column_of_another_type_is_an_error_before_any_row_is_read() -> None:
    table = pa.table({"text": [1, None], "body": ["a", "b"], "ok": [True, False]})
    with pytest.raises(InputError, match=r"'text' is of type int64 and not a text.* body\. Set"):
        read(written(table))
    table = table.rename_columns(["year", "text", "ok"])
    with pytest.raises(InputError, match=r"'ok' is of type bool.*Set input\.id_column"):
        read(written(table), id_column="ok")
    with pytest.raises(InputError, match=r"'year' is of type int64 and not date32.*keep_columns"):
        read(written(table), keep={"year": KEPT_TYPES["date"]})
    rows = read(written(pa.table({"text": pa.nulls(2)})))
    assert [row["reason"] for row in rows] == ["null_text"] * 2


def test_invalid_utf8_in_a_string_column_rejects_only_its_rows() -> None:
    bad = unchecked_strings([b"a", b"\xff\xfe", b"c"])
    rows = read(written(pa.table({"text": bad})))
    assert [row["reason"] for row in rows] == [None, "invalid_utf8", None]
    table = pa.table({"text": ["x", "y", "z"], "id": bad, "lang": bad})
    assert [row["reason"] for row in read(written(table), id_column="id")] == [
        None,
        "invalid_id",
        None,
    ]
    rows = read(written(table), keep={"lang": pa.string()})
    assert [(row["reason"], row["lang"]) for row in rows] == [
        (None, "a"),
        ("invalid_column", None),
        (None, "c"),
    ]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array(["0012", "", None]), ["0012", "", None]),
        (pa.array([12, -1, None], pa.int32()), ["12", "-1", None]),
        (pa.array([2**64 - 1, 0, None], pa.uint64()), [str(2**64 - 1), "0", None]),
        (pa.array([1.5, 2.0, None]), [None, "2", None]),
        (pa.array([float("nan"), 2.0**53, 2.0**53 + 2]), [None, str(2**53), None]),
        (pa.array([2.0**24, 2.0**24 + 2, -0.0], pa.float32()), [str(2**24), None, "0"]),
        (pa.array([2048, 2050, 1], pa.float16()), ["2048", None, "1"]),
        (pa.array([D(5), D(10**38 - 1), None], pa.decimal128(38, 0)), ["5", "9" * 38, None]),
        (pa.array([D("5.00"), D("5.25"), D("-7")], pa.decimal128(38, 2)), ["5", None, "-7"]),
        (pa.array([D(5), D(10**60), None], pa.decimal256(76, 0)), ["5", str(10**60), None]),
        (pa.array([D(5), None, D(1)], pa.decimal64(18, 0)), ["5", None, "1"]),
        (pa.array([day, None, None], pa.date32()), ["2024-02-29", None, None]),
        (pa.array([noon] * 3, pa.timestamp("us")), ["2024-02-29 12:00:00.000000"] * 3),
        (pa.array([noon] * 3, pa.timestamp("ms", "UTC")), ["2024-02-29 12:00:00.000Z"] * 3),
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array(["a", "b", None], pa.large_string()), ["a", "b", None]),
        (pa.array(["a", "b", None], pa.string_view()), ["a", "b", None]),
        (pa.array([b"ab", b"\0\1", b"\xff\xff"], pa.binary(2)), ["ab", None, None]),
        (
            pa.array([uuid.UUID(int=5).bytes, UUID_2.bytes, None], pa.uuid()),
            [
                "00000000-0000-0000-0000-000000000005",
                str(UUID_2),
                None,
            ],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_identifiers_are_what_has_an_exact_text(ids: pa.Array, expected: list[str | None]) -> None:
    rows = read(written(pa.table({"text": ["a", "b", "c"], "id": ids})), id_column="id")
    assert [row["doc_id"] for row in rows] == expected
    assert [row["reason"] == "invalid_id" for row in rows] == [value is None for value in expected]


def test_kept_columns_are_cast_to_their_declared_type_or_reject_their_row() -> None:
    columns = {
        "text": ["a", "b", "c"],
        "k": pa.array(["1", "x", None]),
    }
    rows = read(written(pa.table(columns)), keep={"k": pa.int64()})
    assert [(row["reason"], row["k"]) for row in rows] == [
        (None, 1),
        ("invalid_column", None),
        (None, None),
    ]
    columns["k"] = pa.array([[1, 2], None, []])
    rows = read(written(pa.table(columns)), keep={"k": pa.string()})
    assert [(row["reason"], row["k"]) for row in rows] == [
        (None, "[1,2]"),
        (None, None),
        (None, "[]"),
    ]
    columns["k"] = pa.array([1, 0, 1], pa.int8())
    for type_name in ("string", "float64"):
        rows = read(written(pa.table(columns)), keep={"k": KEPT_TYPES[type_name]})
        assert [row["reason"] for row in rows] == [None] * 3
    columns["k"] = pa.array([UUID_2.bytes, None, UUID_2.bytes], pa.uuid())
    rows = read(written(pa.table(columns)), keep={"k": pa.string()})
    assert [row["k"] for row in rows] == [str(UUID_2), None, str(UUID_2)]
    columns["k"] = pa.array([b"ab", b"\0\1", None], pa.binary(2))
    rows = read(written(pa.table(columns)), keep={"k": pa.string()})
    assert [(row["reason"], row["k"]) for row in rows] == [
        (None, "ab"),
        ("invalid_column", None),
        (None, None),
    ]
    columns["k"] = pa.array([0, 1, 2], pa.timestamp("ms"))
    rows = read(written(pa.table(columns)), keep={"k": KEPT_TYPES["timestamp"]})
    assert [row["reason"] for row in rows] == [None] * 3


def test_one_column_can_be_text_and_identifier() -> None:
    rows = read(written(pa.table({"text": ["a"], "unused": [1]})), id_column="text")
    assert (rows[0]["doc_id"], rows[0]["text"]) == ("a", "a")


def test_a_missing_column_names_those_that_are_there() -> None:
    data = written(pa.table({"body": ["a"], "lang": ["ja"]}))
    with pytest.raises(
        InputError, match=r"'text' not found; columns are body, lang\. Set input\.text_column"
    ):
        read(data)


def test_a_record_over_the_limit_is_rejected() -> None:
    rows = read(written(pa.table({"text": ["a" * 10, "b" * 11]})), max_record_bytes=10)
    assert [(row["reason"], row["record_bytes"]) for row in rows] == [
        (None, 10),
        ("record_too_large", 11),
    ]


def numbered(n_rows: int, **settings: Any) -> bytes:
    texts = [f"row {i} " + "x" * 90 for i in range(n_rows)]
    return written(
        pa.table({"text": texts, "n": range(n_rows)}),
        compression="none",
        use_dictionary=False,
        **settings,
    )


@pytest.mark.parametrize("part_bytes", [1, 5_000, 25_000, 90_000])
def test_row_group_spans_give_each_row_once(part_bytes: int) -> None:
    data = numbered(1000, row_group_size=100)
    spans = READER.spans(shard(data), lambda _: io.BytesIO(data), part_bytes)
    assert len(spans) > 1
    assert spans[-1].stop is None
    rows = [row for span in spans for row in read(data, span=span)]
    assert [row["source_record"] for row in rows] == list(range(1000))
    assert [int(row["text"].split()[1]) for row in rows] == list(range(1000))


def test_a_small_shard_is_planned_without_opening_it() -> None:
    def refuse(_: Shard) -> io.BytesIO:
        raise AssertionError("opened")

    assert READER.spans(Shard(uri="a.parquet", etag="e", size_bytes=9), refuse, 10)[0].stop is None


def test_an_empty_file_has_no_records() -> None:
    assert read(written(pa.table({"text": pa.array([], pa.string())}))) == []


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut", "magic", "empty"])
def test_a_broken_footer_is_planned_whole_and_read_as_one_reject(damage: str) -> None:
    data = numbered(100)
    data = {"cut": data[:-20], "magic": data[:-4] + b"XXXX", "empty": b""}[damage]
    big = Shard(uri="a.parquet", etag="e", size_bytes=10**6)
    assert READER.spans(big, lambda _: io.BytesIO(data), 10) == [Span(shard=big)]
    assert [(row["reason"], row["source_record"]) for row in read(data)] == [("damaged_shard", 0)]


@pytest.mark.faults
def test_a_damaged_page_costs_the_rows_after_it_in_its_row_group_only() -> None:
    data = bytearray(
        numbered(
            3000,
            row_group_size=1000,
            write_page_checksum=True,
            data_page_size=10_000,
            write_batch_size=50,
        )
    )
    place = data.index(b"row 1510 ")  # the second row group, somewhere in a page of about 100 rows
    data[place] ^= 0xFF
    rows = read(bytes(data))
    rejected = [row for row in rows if row["reason"]]
    assert [row["reason"] for row in rejected] == ["damaged_shard"]
    first_lost = rejected[0]["source_record"]
    assert 1350 < first_lost <= 1510
    good = [row["source_record"] for row in rows if not row["reason"]]
    assert good == [*range(first_lost), *range(2000, 3000)]
    assert f"rows {first_lost} to 1999" in rejected[0]["detail"]


@pytest.mark.faults
def test_errors_of_the_file_pass_through_and_are_not_taken_for_damage() -> None:
    class Flaky(io.BytesIO):
        n_reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.n_reads += 1
            if self.n_reads > n_good:
                raise ConnectionResetError("peer")
            return super().read(size)

    data = numbered(1000, row_group_size=100)
    spec = input_spec("text", None, {}, 999)
    for n_good in range(6):  # noqa: B007 - read by Flaky
        with pytest.raises(ConnectionResetError, match="peer"):
            list(read_span(READER, Flaky(data), Span(shard=shard(data)), spec))


def test_a_page_that_claims_two_gigabytes_costs_its_rows_and_no_memory() -> None:
    data = written(
        pa.table({"text": ["ab" * 40] * 5}),
        row_group_size=3,
        compression="zstd",
        use_dictionary=False,
    )
    # a page header in Thrift: type 0, then the uncompressed size as an integer of variable length
    place = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0).data_page_offset + 3
    assert data[place - 3 : place] == b"\x15\x00\x15"
    claim = b"\xfe\xff\xff\xff\x0f"
    end = next(n for n in range(place, len(data)) if data[n] < 0x80) + 1
    longer = len(claim) - (end - place)
    # the compressed size: the page is cut, so that the chunk keeps its length
    assert data[end] == 0x15
    lying = data[:place] + claim + bytes([0x15, data[end + 1] - 2 * longer]) + data[end + 2 :]
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    rows = read(lying)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert [row["reason"] for row in rows] == [None, None, None, "damaged_shard"]
    assert "rows 3 to 4 cannot be read" in rows[3]["detail"]
    assert "decoding takes too much memory" in rows[3]["detail"]
