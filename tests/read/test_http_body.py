"""HTTP bodies as crawlers store them: with their codings, without them, damaged, cut. Oracle: the
body before it was encoded by the standard compressors."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from pipeline.read.records import NoText
from pipeline.read.warc.http_body import http_response

brotli: Any = pytest.importorskip("brotli", reason="extra warc")

LIMIT = 1 << 20
PAGE = ("<!DOCTYPE html>\n<html><body>\n" + "<p>文字 text of the page</p>\n" * 200).encode()
NOISE = random.Random(1).randbytes(4000)


def chunked(data: bytes, n_bytes: int = 1000, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [data[start : start + n_bytes] for start in range(0, len(data), n_bytes)]
    return b"".join(b"%X\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    '"gzip"': gzip.compress,
    "deflate": zlib.compress,
    "x-deflate": raw_deflate,
    " deflate ": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "none": bytes,
    "identity": bytes,
    "": bytes,
    "UTF-8": bytes,
    "text/html": bytes,
}
CODINGS = pytest.mark.parametrize("coding", ENCODERS)
COMPRESSED = pytest.mark.parametrize("coding", list(ENCODERS)[:9])


def body(data: bytes, *headers: str, line_end: str = "\r\n", limit: int = LIMIT) -> bytes:
    head = line_end.join(["HTTP/1.1 200 OK", *headers, "", ""])
    return http_response(head.encode() + data, limit)[0]


@CODINGS
def test_a_body_is_decoded(coding: str) -> None:
    data = ENCODERS[coding](PAGE)
    assert body(data, f"Content-Encoding: {coding}") == PAGE
    assert body(data, f"content-encoding:{coding}", line_end="\n") == PAGE
    both = ("Transfer-Encoding: chunked", f"Content-Encoding: {coding}")
    assert body(chunked(data), *both) == PAGE


@CODINGS
@pytest.mark.parametrize("page", [PAGE, b"", b"x", b"8O", b"Hello", "文字".encode()])
def test_a_body_that_was_decoded_already_is_taken_as_it_is(coding: str, page: bytes) -> None:
    headers = (f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
    assert body(page, *headers) == page
    assert body(chunked(page, end=b"0\r\n\r\n"), *headers) == page


@COMPRESSED
def test_a_body_whose_chunks_alone_were_removed_is_decoded(coding: str) -> None:
    headers = (f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
    assert body(ENCODERS[coding](PAGE), *headers) == PAGE


@COMPRESSED
def test_a_body_that_ends_early_gives_what_was_received(coding: str) -> None:
    page = PAGE + random.Random(2).randbytes(200_000).hex().encode()  # zstd: blocks of 128 KiB
    data = ENCODERS[coding](page)[:-200]
    cuts = (data, chunked(data), chunked(data, 9000)[:-10_000], chunked(data, end=b""))
    for stored in cuts:
        text = body(stored, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked")
        assert page.startswith(text)
        assert len(text) > len(PAGE)


@pytest.mark.parametrize(("coding", "place"), [("gzip", -8), ("deflate", -4), ("zstd", 9)])
@pytest.mark.faults
def test_a_damaged_body_is_a_reject_with_the_cause(coding: str, place: int) -> None:
    data = bytearray(ENCODERS[coding](PAGE + NOISE))
    data[place] ^= 0xFF
    with pytest.raises(NoText, match=f"damaged .*{coding.replace('deflate', 'zlib')} data"):
        body(bytes(data), f"Content-Encoding: {coding}")


@pytest.mark.faults
def test_a_chunk_that_does_not_start_is_a_reject() -> None:
    with pytest.raises(NoText, match="no chunk starts at its byte"):
        body(chunked(PAGE, end=b"zz\r\n"), "Transfer-Encoding: chunked")
    with pytest.raises(NoText, match="longer than it says"):
        body(chunked(PAGE, end=b"3\r\nabcd\r\n"), "Transfer-Encoding: chunked")


def test_chunks_may_have_extensions_and_trailers() -> None:
    data = b"5;name=value\r\nhello\r\n01  \r\n!\r\n000\r\nTrailer: x\r\n\r\n"
    assert body(data, "Transfer-Encoding: chunked") == b"hello!"


def test_several_codings_are_removed_in_reverse() -> None:
    data = brotli.compress(gzip.compress(zlib.compress(PAGE)))
    assert body(data, "Content-Encoding: deflate, gzip, br") == PAGE
    with pytest.raises(NoText, match="6 content codings"):
        body(data, "Content-Encoding: gzip, gzip, gzip, gzip, gzip, gzip")


@pytest.mark.parametrize(
    ("data", "headers", "cause"),
    [
        (gzip.compress(PAGE), [], "gzip data, and the response names no Content-Encoding"),
        (NOISE, ["Content-Encoding: compress"], "Content-Encoding compress"),
        (NOISE, ["Content-Encoding: br"], "damaged br data"),
    ],
)
def test_what_cannot_be_decoded_is_named(data: bytes, headers: list[str], cause: str) -> None:
    with pytest.raises(NoText, match=cause):
        body(data, *headers)


@COMPRESSED
def test_a_body_over_the_limit_is_a_reject(coding: str) -> None:
    zeros = ENCODERS[coding](b"x" * (3 * LIMIT))
    with pytest.raises(NoText) as error:
        body(zeros, f"Content-Encoding: {coding}")
    assert error.value.reason == "record_too_large"
    assert body(ENCODERS[coding](b"x" * LIMIT), f"Content-Encoding: {coding}") == b"x" * LIMIT


def test_a_payload_without_http_is_a_reject() -> None:
    with pytest.raises(NoText, match="no HTTP headers"):
        http_response(PAGE, LIMIT)
    assert http_response(b"HTTP/1.1 200 OK\r\nContent-Type: text/html", LIMIT) == (
        b"",
        {"content-type": "text/html"},
    )
