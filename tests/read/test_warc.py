"""WARC and WET: whole records only, damage told. Fixtures are written by warcio, which is not the
reader under test."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import SpecError
from pipeline.read import READERS, read_span
from pipeline.read.records import BATCH_RECORDS
from pipeline.storage.lineage import Shard, Span
from tests.support.specs import input_spec

pytest.importorskip("turbohtml", reason="extra warc")
StatusAndHeaders = pytest.importorskip(
    "warcio.statusandheaders", reason="writes the fixtures"
).StatusAndHeaders
WARCWriter = pytest.importorskip("warcio.warcwriter", reason="writes the fixtures").WARCWriter


def read(
    data: bytes,
    *,
    uri: str = "a.warc",
    id_column: str | None = "WARC-Record-ID",
    keep: dict[str, pa.DataType] | None = None,
    max_record_bytes: int = 1 << 20,
) -> list[dict[str, Any]]:
    span = Span(shard=Shard(uri=uri, etag="e", size_bytes=len(data)))
    spec = input_spec("text", id_column, keep or {}, max_record_bytes)
    tables = list(read_span(READERS["warc"], io.BytesIO(data), span, spec))
    assert all(0 < table.num_rows <= BATCH_RECORDS for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def wet(texts: list[str], *, packed: bool = False) -> bytes:
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=packed)
    writer.write_record(writer.create_warcinfo_record("a.wet", {"software": "test"}))
    for number, text in enumerate(texts):
        record = writer.create_warc_record(
            f"http://example.org/{number}",
            "conversion",
            payload=io.BytesIO(text.encode()),
            warc_content_type="text/plain",
            warc_headers_dict={
                "WARC-Record-ID": f"<urn:{number}>",
                "WARC-Identified-Content-Language": "jpn",
            },
        )
        writer.write_record(record)
    return sink.getvalue()


def response(body: bytes, headers: list[tuple[str, str]]) -> bytes:
    sink = io.BytesIO()
    writer = WARCWriter(sink, gzip=False)
    http = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
    for record_type in ("request", "response", "metadata"):
        writer.write_record(
            writer.create_warc_record(
                "http://example.org/", record_type, payload=io.BytesIO(body), http_headers=http
            )
            if record_type != "metadata"
            else writer.create_warc_record(
                "http://example.org/", "metadata", payload=io.BytesIO(b"a: b")
            )
        )
    return sink.getvalue()


TEXTS = ["良い\n二行", "", "a\r\n\r\nWARC/1.0\r\n", "last" * 100]


@pytest.mark.parametrize("packed", [False, True])
def test_wet_records_are_documents_with_their_headers(packed: bool) -> None:
    data = wet(TEXTS, packed=packed)
    uri = "a.warc.wet.gz" if packed else "a.wet"
    keep = {
        "WARC-Target-URI": pa.string(),
        "warc-date": pa.timestamp("us", tz="UTC"),
        "x": pa.string(),
    }
    rows = read(data, uri=uri, keep=keep)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["doc_id"] for row in rows] == [f"<urn:{i}>" for i in range(4)]
    assert [row["WARC-Target-URI"] for row in rows] == [f"http://example.org/{i}" for i in range(4)]
    assert all(row["warc-date"].tzinfo for row in rows)
    assert all(row["x"] is None for row in rows)
    plain = gzip.decompress(data) if packed else data
    for row in rows:
        record = plain[row["source_record"] :][: row["record_bytes"]]
        assert record.startswith(b"WARC/1.")
        assert record.endswith(row["text"].encode())


def test_the_identifier_is_a_header_or_nothing() -> None:
    data = wet(["a"])
    assert read(data, id_column="WARC-Target-URI")[0]["doc_id"] == "http://example.org/0"
    assert read(data, id_column=None)[0]["doc_id"] is None
    assert read(data, id_column="WARC-Nothing")[0]["reason"] == "invalid_id"


@pytest.mark.parametrize(
    ("body", "headers", "text", "reason"),
    [
        (b"plain", [("Content-Type", "text/plain")], "plain", None),
        ("日本".encode("euc-jp"), [("Content-Type", 'text/plain; charset="EUC-JP"')], "日本", None),
        (b"\xff", [("Content-Type", "text/plain; charset=utf-8")], None, "invalid_utf8"),
        (b"x", [("Content-Type", "text/plain; charset=klingon")], None, "invalid_utf8"),
        (b"GIF89a", [("Content-Type", "image/gif")], None, "text_not_a_string"),
        (b"?", [], None, "text_not_a_string"),
        (
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            [("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")],
            "abcde",
            None,
        ),
        (
            gzip.compress(b"packed", mtime=0),
            [("Content-Type", "text/plain"), ("Content-Encoding", "gzip")],
            "packed",
            None,
        ),
    ],
)
def test_the_body_of_a_response_is_its_text(
    body: bytes, headers: list[tuple[str, str]], text: str | None, reason: str | None
) -> None:
    rows = read(response(body, headers))
    assert [(row["text"], row["reason"]) for row in rows] == [(text, reason)]


def record(
    payload: bytes,
    *headers: str,
    version: str = "WARC/1.0",
    line_end: str = "\r\n",
    type: str = "conversion",
) -> bytes:
    lines = [version, f"WARC-Type: {type}", *headers, f"Content-Length: {len(payload)}", "", ""]
    return line_end.join(lines).encode() + payload + line_end.encode() * 2


@pytest.mark.parametrize("version", ["WARC/0.17", "WARC/0.18", "WARC/1.0", "WARC/1.1"])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize("text", ["one", "two\r\n\r\nlines", "\r\n\r\nWARC/0.18\nx", "\n\n", ""])
def test_all_versions_and_line_ends_are_read(version: str, line_end: str, text: str) -> None:
    plain = "Content-Type: text/plain"
    texts = [text, "last", text]
    data = b"".join(
        record(text.encode(), plain, version=version, line_end=line_end) for text in texts
    )
    rows = read(data, id_column=None)
    assert [row["text"] for row in rows] == texts
    assert [data[row["source_record"] :][: len(version)].decode() for row in rows] == [version] * 3
    assert sum(row["record_bytes"] + 2 * len(line_end) for row in rows) == len(data)


def test_a_response_of_clueweb09_is_read() -> None:
    page = b"HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 11\n\n<p>text</p>"
    kind = "Content-Type: application/http;msgtype=response"
    data = record(page, kind, version="WARC/0.18", line_end="\n", type="response")
    assert [row["text"] for row in read(data * 2, id_column=None)] == ["text", "text"]


@pytest.mark.parametrize(
    ("header", "identified", "text"),
    [
        ("", "text/html", "text"),
        ("Content-Type:", "text/html", "text"),
        ("Content-Type: html", "application/xhtml+xml", "text"),
        ("Content-Type: html", "image/png", None),
        ("Content-Type: text/html, text/html", "image/png", "text"),
        ("Content-Type: image/png\r\nContent-Type: text/html", "", "text"),
        ("Content-Type: TEXT/HTML;charset", "", "text"),
        ("", "", None),
    ],
)
def test_the_identified_type_counts_where_the_server_names_none(
    header: str, identified: str, text: str | None
) -> None:
    page = f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n<p>text</p>".replace("\r\n\r\n\r\n", "\r\n\r\n")
    headers = ["Content-Type: application/http", f"WARC-Identified-Payload-Type: {identified}"]
    rows = read(record(page.encode(), *headers, type="response"), id_column=None)
    assert [row["text"] for row in rows] == [text]
    assert text or "content type" in rows[0]["detail"]


@pytest.mark.faults
def test_a_shard_that_is_no_warc_is_one_reject_that_says_what_it_is() -> None:
    data = gzip.compress(wet(TEXTS))
    for uri, shard, cause in [
        ("a.warc", data, "compressed with gzip"),
        ("a.warc.zst", data, "not zstd data; it is compressed with gzip"),
        ("a.warc.gz", wet(TEXTS), "not gzip data; it is not compressed"),
        ("a.warc", "WARC/1.0".encode("utf-16"), "UTF-16"),
    ]:
        rows = read(shard, uri=uri)
        assert [row["reason"] for row in rows] == ["damaged_shard"]
        assert cause in rows[0]["detail"]


def test_html_gives_its_visible_text_or_names_the_extra() -> None:
    html = (
        "<html><head><title>t</title><script>no()</script></head><body><p>見える</p></body></html>"
    )
    data = response(html.encode(), [("Content-Type", "text/html; charset=utf-8")])
    try:
        import resiliparse  # noqa: F401
    except ImportError:
        with pytest.raises(SpecError, match=r"corpus-embed\[html\]"):
            read(data)
    else:
        assert read(data)[0]["text"].strip() == "見える"


def test_bad_records_are_rejected_alone() -> None:
    good = wet(["good"])
    data = wet(["a\0b"]) + wet(["x" * 5000]) + good
    rows = read(data, max_record_bytes=1000)
    assert [row["reason"] for row in rows] == ["nul_character", "record_too_large", None]


@pytest.mark.faults
@pytest.mark.parametrize("n_lost", [1, 20, 60, 300])
def test_a_truncated_member_is_told_and_costs_its_record_only(n_lost: int) -> None:
    texts = [f"text {i} " * 30 for i in range(50)]
    data = wet(texts, packed=True)
    rows = read(data[:-n_lost], uri="a.wet.gz")
    assert rows[-1]["reason"] == "damaged_shard"
    kept_texts = [row["text"] for row in rows[:-1]]
    assert kept_texts == texts[: len(kept_texts)]
    # the cut lies in the last two records; a record counts when all its bytes are there
    assert len(kept_texts) >= 48


@pytest.mark.faults
def test_a_record_without_all_its_bytes_is_never_a_document() -> None:
    data = wet(["first", "second"])
    rows = read(data[:-10])
    assert [(row["text"], row["reason"]) for row in rows] == [
        ("first", None),
        (None, "damaged_shard"),
    ]
    assert data[rows[1]["source_record"] :].startswith(b"WARC/1.")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Content-Length: 6\r\n", b"Content-Length: 2\r\n"),
        (b"Content-Length: 6\r\n", b"Content-Lengxx: 6\r\n"),
        (b"Content-Length: 6\r\n", b"Content-Length: -\r\n"),
        (b"second", b"second\r\n\r\nJUNK JUNK"),
    ],
)
def test_where_no_record_starts_one_reject_says_so_and_the_next_record_is_read(
    old: bytes, new: bytes
) -> None:
    data = wet(["first", "second", "third"])
    assert data.count(old) == 1
    rows = read(data.replace(old, new))
    reasons = [row["reason"] for row in rows]
    assert reasons.count("damaged_shard") == 1
    assert rows[0]["text"] == "first"
    assert rows[-1]["text"] == "third"


@pytest.mark.faults
def test_what_is_no_warc_at_all_is_one_reject() -> None:
    rows = read(b"<html>" * 400_000)
    assert [(row["reason"], row["source_record"]) for row in rows] == [("damaged_shard", 0)]
    assert read(b"") == []
