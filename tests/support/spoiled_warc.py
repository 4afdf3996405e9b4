"""WARC records for `spoiled`, of all kinds that `pipeline/read/warc/text.py` takes a text from:
codings and chunks that are there or were removed, versions, line ends, charsets, pages."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

import brotli
import zstandard

from tests.support.crawled_pages import PAGES
from tests.support.web_encodings import LABELS

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=1),
    "zstd": zstandard.compress,
}
MARKUP = [
    "<p>", "</p>", "<b>", "<div>" * 500, "<table>", "<!--", "<script>", "<meta charset=sjis>",
    "&#0;", "&#xD800;", "&nbsp;", "<br>", "<?xml encoding='euc-jp'?>", "<textarea>", "<svg>", "\0",
]  # fmt: skip


def document_record(name: str, text: str) -> bytes:
    """A record whose text a reader must give back as it is."""
    dice = random.Random(name + text)
    if dice.random() < 0.5:
        return _record(dice, "conversion", name, "text/plain", text.encode())
    return _response(dice, name, "text/plain; charset=utf-8", text.encode())


def page_record(number: int, text: str) -> bytes:
    """A page of HTML, whose text is another than `text`."""
    dice = random.Random(f"{number}{text}")
    if dice.random() < 0.3:
        page = dice.choice(PAGES)
        return _response(dice, page.name, page.content_type, page.body)
    source = "".join(
        piece + dice.choice(MARKUP) for piece in text.split(" ") for _ in range(dice.randrange(3))
    )
    charset = dice.choice(["utf-8", "cp932", "euc-jp", "gb18030", "utf-16", "cp1251"])
    label = dice.choice([charset, *LABELS])
    content_type = dice.choice(["text/html", f"text/html; charset={label}", "", "text/plain"])
    return _response(dice, f"page {number}", content_type, source.encode(charset, "replace"))


def _response(dice: random.Random, name: str, content_type: str, body: bytes) -> bytes:
    coding = dice.choice(list(CODINGS))
    is_chunked = dice.random() < 0.4
    if dice.random() < 0.8:  # otherwise a crawler has removed it
        body = CODINGS[coding](body)
    if is_chunked and dice.random() < 0.8:
        size = dice.choice([1000, len(body) + 1])
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    end = dice.choice(["\r\n", "\n"])
    head = ["HTTP/1.1 200 OK", f"Content-Encoding: {coding}", f"Content-Type: {content_type}"]
    if is_chunked:
        head.append("Transfer-Encoding: chunked")
    payload = end.join([*head, "", ""]).encode() + body
    return _record(dice, "response", name, "application/http; msgtype=response", payload)


def _record(dice: random.Random, kind: str, name: str, content_type: str, payload: bytes) -> bytes:
    end = dice.choice(["\r\n", "\r\n", "\n"])
    version = dice.choice(["WARC/1.0", "WARC/1.1", "WARC/0.18"])
    lines = [version, f"WARC-Type: {kind}", f"WARC-Record-ID: {name}"]
    lines += [f"Content-Type: {content_type}", f"Content-Length: {len(payload)}", "", ""]
    return end.join(lines).encode() + payload + 2 * end.encode()
