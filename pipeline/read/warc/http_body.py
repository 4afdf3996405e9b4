"""The body of an HTTP response in a WARC record, without its transfer and content codings.

Crawlers store what the server sent, and also bodies they have decoded under headers that still name
the coding (all of CC-NEWS before May 2019; proxies that remove chunks). So a coding is removed
where the body has it, and a body that plainly does not have it is taken as it is. A body that has
the coding and is damaged is rejected; one that only ends early gives what was received, as pages
that a crawler cut do.

Memory: the body before and after one coding, each at most `input.max_record_bytes`.
"""

from __future__ import annotations

import codecs
import re

from pipeline.read.decoders import DECODERS, MAGIC, CorruptData
from pipeline.read.records import NoText

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile("\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")

_CODINGS = {
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "x-deflate": "deflate",
    "br": "br",
    "zstd": "zstd",
}
"""Names in Content-Encoding -> the coding. `deflate` is zlib by RFC 9110 and raw in practice. Other
names change nothing: `identity`, `none`, and mistakes such as `UTF-8`."""

_MAX_CODINGS = 4
"""A body with more codings than this was made to be expensive."""

_CONTROLS = bytes({*range(32)} - set(b"\t\n\f\r\x1b"))
"""What text does not hold. Source: MIME Sniffing Standard, "binary data byte"."""
_SNIFFED_BYTES = 1445


def parse_headers(head: bytes) -> dict[str, str]:
    """The values of header lines by name in lower case; the first line is not one of them."""
    headers: dict[str, str] = {}
    name = ""
    for line in _LINE_END.split(head.decode("utf-8", "surrogateescape"))[1:]:
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            headers[name] = value.strip()
    return headers


def http_response(payload: bytes, max_bytes: int) -> tuple[bytes, dict[str, str]]:
    """The decoded body of a response, and its headers.

    payload: status line, headers, body. max_bytes: the limit for the body after decoding, because
    16 KB of gzip can be 16 MB. Raises NoText.
    """
    if not payload[:5].upper() == b"HTTP/":
        raise NoText("text_not_a_string", "the response has no HTTP headers")
    end = _HEAD_END.search(payload)
    head = payload[: end.start()] if end else payload
    body = payload[end.end() :] if end else b""
    headers = parse_headers(head)
    codings = _names(headers.get("content-encoding")) + _names(headers.get("transfer-encoding"))
    if len(codings) > _MAX_CODINGS:
        raise NoText("text_not_a_string", f"the body has {len(codings)} content codings")
    for name in reversed(codings):  # the last one was applied last
        if name == "chunked":
            body = _without_chunks(body)
        elif name in _CODINGS:
            body = _without_coding(body, _CODINGS[name], max_bytes)
        elif not _is_text(body):
            detail = f"Content-Encoding {name} is not one that can be decoded"
            raise NoText("text_not_a_string", detail)
    if not codings and body.startswith(MAGIC["gzip"][0]):
        detail = "the HTTP body is gzip data, and the response names no Content-Encoding"
        raise NoText("text_not_a_string", detail)
    return body, headers


def _is_text(body: bytes) -> bool:
    """Whether the first bytes are UTF-8, or hold hardly a control character. Of compressed data,
    one byte in ten is one."""
    head = body[:_SNIFFED_BYTES]
    n_controls = len(head) - len(head.translate(None, _CONTROLS))
    if 50 * n_controls <= len(head):
        return True
    try:
        return bool(codecs.utf_8_decode(head, "strict", False))  # it may end in a character
    except UnicodeDecodeError:
        return False


def _names(value: str | None) -> list[str]:
    names = [name.strip(" \t\"'").lower() for name in (value or "").split(",")]
    return [name for name in names if name not in ("", "identity", "none")]


def _without_chunks(body: bytes) -> bytes:
    pieces: list[bytes] = []
    position = 0
    while position < len(body):
        chunk = _CHUNK.match(body, position)
        if chunk is None:
            if not pieces:
                return body  # the crawler has removed the chunks
            detail = f"the HTTP body is damaged: no chunk starts at its byte {position}"
            raise NoText("text_not_a_string", detail)
        n_bytes = int(chunk[1], 16)
        if n_bytes == 0:
            break
        start = chunk.end()
        position = start + n_bytes
        line_end = body[position : position + 2]
        if line_end != b"\r\n"[: len(line_end)]:
            if not pieces:
                return body  # text that only starts like a chunk
            detail = f"the HTTP body is damaged: its chunk at byte {start} is longer than it says"
            raise NoText("text_not_a_string", detail)
        pieces.append(body[start:position])
        position += 2
    return b"".join(pieces)


def _without_coding(body: bytes, coding: str, max_bytes: int) -> bytes:
    if coding in MAGIC and not any(map(body.startswith, MAGIC[coding])):
        return body  # the crawler has decoded it
    if coding == "deflate":
        coding = "zlib" if _is_zlib(body) else "raw deflate"
    decoded, damage, is_whole = _decoded(body, coding, max_bytes)
    if not is_whole and coding not in MAGIC and _is_text(body):
        return body  # zlib, raw deflate and br have no magic number, so they are tried
    if body and not is_whole and not decoded:
        damage = damage or "it ends before anything can be decoded"
    if damage:
        detail = f"the HTTP body is damaged {coding} data: {damage}"
        raise NoText("text_not_a_string", detail)
    return decoded


def _is_zlib(body: bytes) -> bool:
    """Whether the body starts with a header of zlib (RFC 1950, section 2.2)."""
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _decoded(body: bytes, coding: str, max_bytes: int) -> tuple[bytes, str, bool]:
    """What can be decoded, the damage behind it, and whether the data came to its end."""
    pieces: list[bytes] = []
    n_bytes = 0
    damage = ""
    decoder = DECODERS[coding]()
    rest: bytes | None = body
    while rest:
        try:
            for block in decoder.decode(rest):
                pieces.append(block)
                n_bytes += len(block)
                if n_bytes > max_bytes:
                    detail = f"the decoded HTTP body is over input.max_record_bytes, {max_bytes}"
                    raise NoText("record_too_large", detail)
        except CorruptData as error:
            damage = str(error)
            break
        rest = decoder.rest
        if rest is None or not any(map(rest.startswith, MAGIC.get(coding, []))):
            break  # cut, or the end; what is no further member is dropped, as by browsers
        decoder = DECODERS[coding]()
    return b"".join(pieces), damage, not damage and decoder.rest is not None
