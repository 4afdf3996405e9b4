"""Bad input, generated: whatever lies in a shard, the process lives, memory is bounded, and what is
lost is said.

Oracles: the writer knows its documents; the process's own peak memory; the size that a decompressor
must stop at.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import multiprocessing
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import InputError
from pipeline.read import READERS, compression, read_span
from pipeline.storage.lineage import Shard, Span
from pipeline.storage.schema import KEPT_TYPES
from tests.support.fuzz_readers import Peak, fuzz
from tests.support.specs import input_spec

pytestmark = pytest.mark.faults
MIB = 1 << 20


def read(
    uri: str,
    data: bytes,
    *,
    format: str = "",
    id_column: str | None = None,
    keep: dict[str, pa.DataType] | None = None,
    max_record_bytes: int = MIB,
) -> list[dict[str, Any]]:
    formats = {"jsonl": "jsonl", "txt": "text", "csv": "csv", "warc": "warc", "parquet": "parquet"}
    span = Span(shard=Shard(uri=uri, etag="e", size_bytes=len(data)))
    spec = input_spec("text", id_column, keep or {}, max_record_bytes)
    tables = read_span(READERS[format or formats[uri.split(".")[1]]], io.BytesIO(data), span, spec)
    return [row for table in tables for row in table.to_pylist()]


def outcomes(rows: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    return [(row["text"], row["reason"]) for row in rows]


def measured(
    uri: str, data: bytes, max_record_bytes: int
) -> tuple[list[tuple[int, int, str | None]], int, float]:
    """(position, characters, reason) of each row; growth of the peak of memory; seconds of CPU. Run
    in a process of its own."""
    start = time.process_time()
    with Peak() as peak:
        rows = [
            (r["source_record"], len(r["text"] or ""), r["reason"])
            for r in read(uri, data, max_record_bytes=max_record_bytes)
        ]
    return rows, peak.grown_bytes, time.process_time() - start


@pytest.fixture(scope="module")
def child() -> Iterator[ProcessPoolExecutor]:
    """A fresh process: its peak of memory is that of reading, and its death is an error here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(measured, "a.jsonl.gz", gzip.compress(b'{"text": "warm"}'), MIB).result(
            timeout=120
        )
        yield pool


def test_a_run_of_spoiled_shards_keeps_every_promise() -> None:
    reports = list(fuzz(1, 251, cpu_s=120))
    assert reports[-1] == {"tried": 250}
    assert reports[:-1] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_spoiled_shards_keep_every_promise() -> None:
    reports = list(fuzz(10_000, 20_000, cpu_s=1000))
    assert reports[-1] == {"tried": 10_000}
    assert reports[:-1] == []


# Bombs


def packed_zeros(suffix: str, n_bytes: int, fill: bytes = b"\0") -> bytes:
    """`n_bytes` of one byte, compressed piece by piece: none of it is ever in memory whole."""
    new: dict[str, Callable[[], Any]] = {
        ".gz": lambda: zlib.compressobj(6, wbits=31),
        ".bz2": bz2.BZ2Compressor,
        ".xz": lambda: lzma.LZMACompressor(preset=0),
        ".zst": zstandard.ZstdCompressor(level=1).compressobj,
    }
    packer, piece = new[suffix](), fill * MIB
    return b"".join([*(packer.compress(piece) for _ in range(n_bytes // MIB)), packer.flush()])


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("name", "fill"), [("a.jsonl", b"\0"), ("a.warc", b"\n"), ("a.csv", b'"'), ("a.txt", b"x")]
)
def test_a_bomb_is_one_damaged_shard_in_bounded_memory(
    child: ProcessPoolExecutor, suffix: str, name: str, fill: bytes
) -> None:
    if suffix in (".bz2", ".xz") and name != "a.jsonl":
        pytest.skip("one format is enough for the slow compressors")
    n_bytes = 256 * MIB
    data = packed_zeros(suffix, n_bytes, fill)
    stops_at = max(64 * MIB, 200 * len(data))
    assert stops_at < n_bytes
    rows, grown, _ = child.submit(measured, name + suffix, data, MIB).result(timeout=120)
    assert rows[-1][2] == "damaged_shard"
    assert name.endswith("csv") or rows[-1][0] == stops_at  # CSV counts rows
    assert sum(reason == "damaged_shard" for _, _, reason in rows) == 1
    assert grown < 128 * MIB, grown  # a block of 1 MiB of line ends is a million Python strings


def test_documents_before_a_bomb_are_read(child: ProcessPoolExecutor) -> None:
    data = gzip.compress(b'{"text": "one"}\n{"text": "two"}\n') + packed_zeros(".gz", 128 * MIB)
    rows, _, _ = child.submit(measured, "a.jsonl.gz", data, MIB).result(timeout=120)
    assert [(n_chars, reason) for _, n_chars, reason in rows] == [
        (3, None),
        (3, None),
        (0, "damaged_shard"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_ten_gigabytes_of_zeros_cost_seconds_and_no_memory(
    child: ProcessPoolExecutor, suffix: str
) -> None:
    data = packed_zeros(suffix, 10_000 * MIB)
    assert len(data) < 11 * MIB
    rows, grown, seconds = child.submit(measured, "a.jsonl" + suffix, data, 16 * MIB).result(
        timeout=600
    )
    assert [reason for _, _, reason in rows] == ["damaged_shard"]
    assert grown < 128 * MIB
    assert seconds < 60


def test_what_compresses_well_and_is_no_bomb_is_read_whole() -> None:
    lines = b"".join(
        json.dumps({"n": n, "text": "the same again " * 20}).encode() + b"\n"
        for n in range(300_000)
    )
    data = gzip.compress(lines, 6)
    assert len(lines) > 64 * MIB
    assert 40 < len(lines) / len(data) < 200
    assert sum(map(len, compression.decompressed_blocks(io.BytesIO(data), "a.jsonl.gz"))) == len(
        lines
    )


def test_a_window_of_gigabytes_is_refused_and_one_of_128_mib_is_read(
    child: ProcessPoolExecutor,
) -> None:
    text = b'{"text": "good"}\n'
    for window_log, reason in ((27, None), (31, "damaged_shard")):
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
        # no size in the header
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        data = packer.compress(text) + packer.flush()
        rows, grown, _ = child.submit(measured, "a.jsonl.zst", data, MIB).result(timeout=120)
        assert [row[2] for row in rows] == [reason]
        assert grown < 160 * MIB


def test_an_xz_dictionary_of_gigabytes_is_refused_and_that_of_the_highest_preset_is_read(
    child: ProcessPoolExecutor,
) -> None:
    data = bytearray(lzma.compress(b'{"text": "good"}\n', preset=9))
    assert data[16] == 28  # the dictionary size in the block header: 64 MiB; 40 is 4 GiB
    for size, reason in ((28, None), (40, "damaged_shard")):
        data[16] = size
        n_header = (data[12] + 1) * 4
        data[12 + n_header - 4 : 12 + n_header] = zlib.crc32(data[12 : 12 + n_header - 4]).to_bytes(
            4, "little"
        )
        rows, grown, _ = child.submit(measured, "a.jsonl.xz", bytes(data), MIB).result(timeout=120)
        assert [row[2] for row in rows] == [reason]
        assert grown < 160 * MIB


def test_a_hundred_megabyte_record_is_skipped_or_read_by_its_limit(
    child: ProcessPoolExecutor,
) -> None:
    data = b'{"text": "one"}\n{"text": "' + b"x" * (100 * MIB) + b'"}\n{"text": "two"}\n'
    rows, grown, _ = child.submit(measured, "a.jsonl", data, 16 * MIB).result(timeout=120)
    assert [reason for _, _, reason in rows] == [None, "record_too_large", None]
    assert grown < 120 * MIB + 64 * MIB  # the shard itself arrives in the child as one argument
    rows, _, _ = child.submit(measured, "a.jsonl", data, 128 * MIB).result(timeout=120)
    assert [n_chars for _, n_chars, _ in rows] == [3, 100 * MIB, 3]


@pytest.mark.parametrize("mib", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_quote_that_is_never_closed_costs_its_line(child: ProcessPoolExecutor, mib: int) -> None:
    line = b"plain " * 170 + b"\n"
    n_lines = mib * MIB // len(line)
    rows, grown, seconds = child.submit(
        measured, "a.csv", b'text\n"open\n' + line * n_lines, 4 * MIB
    ).result(timeout=120)
    assert rows[0][2] == "record_too_large"
    assert [reason for _, _, reason in rows[1:]] == [None] * n_lines
    assert grown < 128 * MIB + 4 * mib * MIB  # the rows of the test
    assert seconds < 60


def test_a_quoted_field_of_empty_lines_is_bounded_too(child: ProcessPoolExecutor) -> None:
    rows, grown, _ = child.submit(
        measured, "a.csv", b'text\n"open\n' + b"\n" * 600_000 + b"end\n", 16 * MIB
    ).result(timeout=120)
    assert [reason for _, _, reason in rows] == ["record_too_large", None]
    assert grown < 160 * MIB


def test_lines_that_each_seem_to_open_a_quote_cost_linear_time() -> None:
    def seconds(n_lines: int) -> float:
        start = time.process_time()
        rows = read("a.csv", b"text,b\n" + b'x","y\n' * n_lines, max_record_bytes=16 * MIB)
        assert len(rows) == n_lines
        return time.process_time() - start

    seconds(100)
    # 8 times the lines; the square would be 64 times
    assert seconds(32_000) < 20 * seconds(4_000) + 0.5


# WARC


def warc(
    body: bytes, content_type: bytes, kind: bytes = b"resource", length: bytes | None = None
) -> bytes:
    head = b"WARC/1.0\r\nWARC-Type: " + kind + b"\r\nContent-Type: " + content_type + b"\r\n"
    return (
        head
        + b"Content-Length: "
        + (length or b"%d" % len(body))
        + b"\r\n\r\n"
        + body
        + b"\r\n\r\n"
    )


GOOD = warc(b"good", b"text/plain")


@pytest.mark.parametrize(
    "length", [b"9" * 5000, b"9" * 19, b"-4", b"+4", b"0x4", b"4.0", "４".encode(), b"1_0"]
)
def test_a_length_that_is_none_costs_its_record_only(length: bytes) -> None:
    rows = read("a.warc", GOOD + warc(b"lost", b"text/plain", length=length) + GOOD)
    assert outcomes(rows) == [("good", None), (None, "damaged_shard"), ("good", None)]


def test_a_length_beyond_the_shard_ends_it_at_the_record() -> None:
    rows = read("a.warc", GOOD + warc(b"lost", b"text/plain", length=b"9" * 18))
    assert outcomes(rows) == [("good", None), (None, "damaged_shard")]
    assert rows[1]["source_record"] == len(GOOD)


@pytest.mark.parametrize(
    "charset",
    [b"klingon", b"a\0b", b"punycode", b"idna", b"unicode_escape", b"base64", b"\xff", b"utf-7"],
)
def test_a_charset_that_is_none_rejects_its_record(charset: bytes) -> None:
    rows = read("a.warc", warc(b"\\ud800", b"text/plain; charset=" + charset) + GOOD)
    assert outcomes(rows) == [(None, "invalid_utf8"), ("good", None)]


@pytest.mark.parametrize("charset", [b"klingon", b"a\0b", b"punycode"])
def test_html_of_a_charset_that_is_none_is_read_as_what_it_looks_like(charset: bytes) -> None:
    pytest.importorskip("resiliparse")
    rows = read("a.warc", warc("<p>見える</p>".encode(), b"text/html; charset=" + charset))
    assert outcomes(rows) == [("見える", None)]


def test_a_compressed_http_body_is_bounded_by_the_record_limit(child: ProcessPoolExecutor) -> None:
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n"
    data = warc(body + packed_zeros(".gz", 512 * MIB), b"application/http", b"response") + GOOD
    rows, grown, _ = child.submit(measured, "a.warc", data, 4 * MIB).result(timeout=120)
    assert [reason for _, _, reason in rows] == ["record_too_large", None]
    assert grown < 64 * MIB


def test_records_of_nothing_but_headers_are_given_out_before_they_fill_memory(
    child: ProcessPoolExecutor,
) -> None:
    data = GOOD.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * (900 << 10) + b"\r\n\r\n", 1) * 100
    rows, grown, _ = child.submit(measured, "a.warc", data, MIB).result(timeout=120)
    assert [reason for _, _, reason in rows] == [None] * 100
    assert grown < 24 * MIB


def test_a_stretch_without_records_is_one_reject_in_linear_time() -> None:
    data = GOOD + b"WARC/1.\n" * 40_000 + GOOD
    start = time.process_time()
    assert outcomes(read("a.warc", data)) == [
        ("good", None),
        (None, "damaged_shard"),
        ("good", None),
    ]
    # 1 s; with a search of the rest for each of the lines 12 s
    assert time.process_time() - start < 6


# JSON


@pytest.mark.parametrize("depth", [900, 1000])
def test_a_long_number_beside_deep_nesting_keeps_its_digits(depth: int) -> None:
    line = (
        b'{"text": "a", "x": ' + b"[" * depth + b"]" * depth + b', "id": 12345678901234567890123}\n'
    )
    row = read("a.jsonl", line, id_column="id", keep={"id": pa.string()})[0]
    assert (row["reason"], row["doc_id"], row["id"]) == (
        None,
        "12345678901234567890123",
        "12345678901234567890123",
    )


@pytest.mark.parametrize("depth", [5_000, 1_000_000])
def test_json_that_is_too_deep_is_malformed(depth: int) -> None:
    lines = (
        b'{"text": "a", "x": '
        + b"[" * depth
        + b"]" * depth
        + b"}\n"
        + b'{"a":' * depth
        + b'\n{"text": "b"}'
    )
    rows = read("a.jsonl", lines, max_record_bytes=16 * MIB)
    assert outcomes(rows) == [(None, "malformed_json")] * 2 + [("b", None)]


@pytest.mark.parametrize(
    "number", ["1e999", "9" * 400, "-" + "9" * 5000, "0." + "9" * 5000, "1" + "0" * 4299]
)
def test_huge_numbers_are_a_value_or_a_reject(number: str) -> None:
    lines = f'{{"text": "a", "id": {number}}}\n{{"text": "b", "id": 1}}\n'.encode()
    rows = read("a.jsonl", lines, id_column="id", keep={"id": pa.int64()})
    assert rows[0]["reason"] in {"malformed_json", "invalid_id", "invalid_column"}
    assert (rows[1]["reason"], rows[1]["doc_id"], rows[1]["id"]) == (None, "1", 1)


# Parquet


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), sink)
    return sink.getvalue()


def unchecked(values: list[bytes]) -> pa.Array:
    data = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(data), data.buffers()[1], data.buffers()[2])


@pytest.mark.parametrize(
    ("column", "type_name"),
    [
        (
            pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), unchecked([b"\xff", b"ok"])),
            "string",
        ),
        (pa.array([[2**60], [1]], pa.list_(pa.timestamp("ms"))), "string"),
        (pa.array([2**60, 1], pa.timestamp("ms")), "timestamp"),
        (pa.array([2**60, 1], pa.timestamp("ms")), "date"),
        (pa.array([2**60 + 1, 1000], pa.timestamp("ns")), "timestamp"),
    ],
    ids=str,
)
def test_a_kept_value_that_has_no_form_rejects_its_row_alone(
    column: pa.Array, type_name: str
) -> None:
    rows = read("a.parquet", parquet(k=column), keep={"k": KEPT_TYPES[type_name]})
    assert outcomes(rows) == [(None, "invalid_column"), ("b", None)]


def test_a_struct_with_one_name_twice_rejects_its_rows() -> None:
    twice = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"])
    assert (
        outcomes(read("a.parquet", parquet(k=twice), keep={"k": pa.string()}))
        == [(None, "invalid_column")] * 2
    )


def test_a_column_name_that_is_not_utf8_damages_the_shard() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "kkkk": ["b"]}), sink, store_schema=False)
    assert outcomes(read("a.parquet", sink.getvalue().replace(b"kkkk", b"k\xff\xfek"))) == [
        (None, "damaged_shard")
    ]


def test_a_footer_that_would_abort_the_process_is_read_or_told(child: ProcessPoolExecutor) -> None:
    data = parquet(tags=pa.array([["x"], []], pa.list_(pa.string())))
    metadata = pq.read_metadata(io.BytesIO(data))
    assert metadata.row_group(0).num_columns == 2
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(start, len(data) - 8):  # every byte of the footer, one after the other
        broken = bytearray(data)
        broken[place] ^= 0x04
        child.submit(measured_or_refused, "a.parquet", bytes(broken)).result(timeout=120)


def measured_or_refused(uri: str, data: bytes) -> None:
    shard = Shard(uri=uri, etag="e", size_bytes=len(data))
    READERS["parquet"].spans(shard, lambda _: io.BytesIO(data), 1)
    with contextlib.suppress(InputError):  # the text column has another name now
        read(uri, data, keep={"tags": pa.string()})


def test_a_dictionary_that_expands_a_thousandfold_is_decoded_in_bounded_memory(
    child: ProcessPoolExecutor,
) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), ["x" * (MIB // 4)])
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": text}), sink, store_schema=False)
    data = sink.getvalue()
    assert len(data) < MIB
    n_chars, grown = child.submit(measured_lengths, data).result(timeout=120)
    assert n_chars == 4000 * (MIB // 4)
    assert grown < 160 * MIB  # the whole batch would be 1,000


def measured_lengths(data: bytes) -> tuple[int, int]:
    n_chars = 0
    span = Span(shard=Shard(uri="a.parquet", etag="e", size_bytes=len(data)))
    with Peak() as peak:
        for table in read_span(
            READERS["parquet"], io.BytesIO(data), span, input_spec("text", None, {}, MIB)
        ):
            n_chars += pa.compute.sum(pa.compute.binary_length(table["text"])).as_py()
    return n_chars, peak.grown_bytes
