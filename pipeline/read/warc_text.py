"""The text of one WARC record: its payload, its HTTP body, or the visible text of its HTML page.

`warc` has read the whole record. fastwarc (extra "warc") decodes HTTP, and resiliparse (extra
"html") extracts the text of a page; both are imported only when a record needs them.
"""

from __future__ import annotations

import codecs
import io

from pipeline.errors import SpecError

_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
"""Python codecs that no page is written in. Two of them take time quadratic in the length."""


class NoText(Exception):
    """The record has no text; `reason` is one of `schema.REASONS`, the message its detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def text_of(
    head: bytes, payload: bytes, record_type: str, content_type: str, max_bytes: int
) -> bytes:
    """The document's text as UTF-8, not checked where the record declares it to be UTF-8.

    head: the record's version and header lines with the empty line. max_bytes: the limit for an
    HTTP body after decoding, because 16 KB of gzip can be 16 MB. Raises NoText, and SpecError for a
    missing extra.
    """
    if record_type == "response":
        payload, content_type = _http_body(head + payload + b"\r\n\r\n", max_bytes)
    kind, charset = _parse_content_type(content_type)
    if kind in ("text/html", "application/xhtml+xml"):
        return _visible_text(payload, charset)
    if kind != "text/plain":
        raise NoText("text_not_a_string", f"the content type is {kind or 'not given'}")
    if charset in (None, "utf-8", "utf8", "us-ascii"):
        return payload
    try:
        if _codec(charset) in _NO_CHARSETS:
            raise LookupError("not used for text on the web")
        return payload.decode(charset).encode()
    # ValueError: a NUL in the name, or bytes that do not fit
    except (LookupError, ValueError) as error:
        raise NoText("invalid_utf8", f"charset {charset}: {error}") from error


def _parse_content_type(value: str) -> tuple[str, str | None]:
    """'text/plain; charset="EUC-JP"' -> ('text/plain', 'euc-jp')."""
    kind, *parameters = value.lower().split(";")
    for parameter in parameters:
        name, _, setting = parameter.partition("=")
        if name.strip() == "charset" and setting.strip(" \"'"):
            return kind.strip(), setting.strip(" \"'")
    return kind.strip(), None


def _codec(charset: str) -> str:
    return codecs.lookup(charset).name


def _http_body(record: bytes, max_bytes: int) -> tuple[bytes, str]:
    """Body of an HTTP response without transfer and content encoding, and its content type."""
    try:
        from fastwarc.warc import ArchiveIterator
    except ImportError as error:
        raise SpecError(
            "WARC response records need fastwarc to read HTTP. Install corpus-embed[warc], or read "
            "WET shards."
        ) from error
    try:
        parsed = next(
            iter(ArchiveIterator(io.BytesIO(record), parse_http=True, auto_decode="all")), None
        )
        if parsed is None or parsed.http_headers is None:
            raise NoText("text_not_a_string", "the response has no HTTP headers")
        body = parsed.reader.read(max_bytes + 1)
        if len(body) > max_bytes:
            detail = f"the decoded HTTP body is over input.max_record_bytes, {max_bytes}"
            raise NoText("record_too_large", detail)
        return body, parsed.http_headers.get("Content-Type") or ""
    except (OSError, ValueError) as error:  # never of the network: the record is in memory
        detail = f"the HTTP response cannot be decoded: {error}"
        raise NoText("text_not_a_string", detail) from error


def _visible_text(html: bytes, charset: str | None) -> bytes:
    """What a person sees of the page, boilerplate included."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError as error:
        raise SpecError(
            "WARC records of type text/html need resiliparse to extract their text. Install "
            "corpus-embed[html], or read WET shards."
        ) from error
    try:
        known = charset is not None and _codec(charset) not in _NO_CHARSETS
    except (LookupError, ValueError):
        known = False
    encoding: str = charset if known and charset else str(detect_encoding(html))
    text: str = extract_plain_text(bytes_to_str(html, encoding))
    return text.encode("utf-8", "surrogatepass")
