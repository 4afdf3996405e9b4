"""A shard that is not what its name says is one reject with the cause, wherever it is cut."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.read import READERS, read_span
from pipeline.storage.lineage import Shard, Span
from tests.support.specs import input_spec

OBJECTS = [{"text": f"text {number}", "tags": ["a"], "n": {"m": number}} for number in range(20)]
LINES = "".join(json.dumps(value) + "\n" for value in OBJECTS).encode()
TEXT = "".join(value["text"] + "\n" for value in OBJECTS).encode()
CSV = b"id,text\n" + b"".join(b"%d,text %d\n" % (number, number) for number in range(20))


def read(format: str, data: bytes, *spans: tuple[int, int | None]) -> list[dict[str, Any]]:
    shard = Shard(uri=f"a.{format}", etag="e", size_bytes=len(data))
    rows: list[dict[str, Any]] = []
    for start, stop in spans or [(0, None)]:
        span = Span(shard=shard, start=start, stop=stop)
        for table in read_span(READERS[format], io.BytesIO(data), span, input_spec()):
            rows += table.to_pylist()
    return rows


def zipped(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", data)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(OBJECTS), sink)
    return sink.getvalue()


ARRAY_OF_LINES = b"[\n" + LINES.rstrip().replace(b"\n", b",\n") + b"\n]\n"

WRONG = [
    ("jsonl", gzip.compress(LINES, mtime=0), "compressed with gzip"),
    ("jsonl", bz2.compress(LINES), "compressed with bzip2"),
    ("csv", lzma.compress(CSV), "compressed with xz"),
    ("text", zstandard.compress(TEXT), "compressed with zstd"),
    ("csv", zipped(CSV), "ZIP archive"),
    ("jsonl", parquet(), "Parquet file"),
    ("text", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n", "PDF document"),
    ("text", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS"),
    ("jsonl", LINES.decode().encode("utf-16"), "UTF-16"),
    ("jsonl", LINES.decode().encode("utf-16-be"), "UTF-16"),
    ("text", ("良い" * 40 + "\n").encode("utf-16"), "UTF-16"),
    ("csv", CSV.decode().encode("utf-16-le"), "UTF-16"),
    ("csv", CSV.decode().encode("utf-32"), "UTF-32"),
    ("csv", CSV.replace(b"\n", b"\r"), "line ends"),
    ("text", TEXT.replace(b"\n", b"\r"), "line ends"),
    ("jsonl", LINES.replace(b"\n", b"\r"), "line ends"),
    ("jsonl", json.dumps(OBJECTS).encode(), "one JSON array"),
    ("jsonl", json.dumps(OBJECTS[:1]).encode() + b"\n", "one JSON array"),
    ("jsonl", json.dumps(OBJECTS, indent=2).encode(), "one JSON array"),
    ("jsonl", ARRAY_OF_LINES, "one JSON array"),
    ("jsonl", ARRAY_OF_LINES.replace(b"[\n", b"[", 1), "one JSON array"),
    ("jsonl", b"\xef\xbb\xbf" + ARRAY_OF_LINES.replace(b"\n", b"\r\n"), "one JSON array"),
    ("jsonl", json.dumps(OBJECTS[0], indent=2).encode(), "several lines"),
    ("jsonl", b"".join(json.dumps(v, indent=1).encode() + b"\n" for v in OBJECTS), "several lines"),
    ("jsonl", b'{\n"text": "' + b"x" * (2 << 20) + b'"\n}\n', "several lines"),
    ("jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "HTML"),
]


@pytest.mark.parametrize(("format", "data", "cause"), WRONG, ids=lambda value: str(value)[:24])
def test_another_container_is_one_reject_that_names_it(
    format: str, data: bytes, cause: str
) -> None:
    (row,) = read(format, data)
    assert (row["reason"], row["source_record"]) == ("damaged_shard", 0)
    assert cause in row["detail"]
    if format == "jsonl":
        # many cuts of a record of megabytes would only read it many times
        for cut in range(1, min(len(data), 3000), 7 if len(data) < 1 << 20 else 500):
            assert read(format, data, (0, cut), (cut, None)) == [row]


@pytest.mark.parametrize(
    ("format", "data", "n_good"),
    [
        ("jsonl", b'{"text": "cut\n' + LINES, 20),
        ("jsonl", b'{"text": "cut"\n' + LINES, 20),
        ("jsonl", b'{"text": "cut", "n": {\n' + LINES, 20),
        ("jsonl", b'[1, 2]\n[{"text": "a"}]\n' + LINES, 20),
        ("jsonl", b'["cut"\n' + LINES, 20),
        ("jsonl", b"{\xff\n" + LINES, 20),
        ("jsonl", b'{"text": "one"}\r', 1),
        ("text", b"one line\r", 1),
        ("text", b"PK, and no archive\nBZh\nPARIS\n", 3),
        ("text", b"\0" * 99 + b"\ntwo\n", 1),
    ],
)
def test_a_bad_first_line_is_no_other_container(format: str, data: bytes, n_good: int) -> None:
    rows = read(format, data)
    assert [row["reason"] for row in rows].count(None) == n_good
    assert "damaged_shard" not in {row["reason"] for row in rows}


def test_a_file_that_is_no_parquet_says_what_it_is() -> None:
    for data, cause in ((gzip.compress(LINES), "gzip"), (WRONG[7][1], "Git LFS")):
        (row,) = read("parquet", data)
        assert row["reason"] == "damaged_shard"
        assert cause in row["detail"]
