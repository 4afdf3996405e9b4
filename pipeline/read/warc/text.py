"""The text of one WARC record: its payload, its HTTP body, or the visible text of its HTML page.

`warc` has read the whole record. `http_body` removes HTTP, `charsets` decodes, and resiliparse
(extra "html") extracts the text of a page; it is imported only when a record needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from pipeline.errors import SpecError
from pipeline.read.records import NoText
from pipeline.read.warc.charsets import decoded_page, decoded_text, encoding_of, is_mostly_replaced
from pipeline.read.warc.http_body import http_response

_HTML_TYPES = {"text/html", "application/xhtml+xml"}


def text_of(payload: bytes, headers: dict[str, str], max_bytes: int) -> bytes:
    """The document's text as UTF-8, not checked where a record without HTTP declares it as UTF-8.

    headers: those of the WARC record, by name in lower case. max_bytes: the limit for an HTTP body
    after decoding. Raises NoText, and SpecError for a missing extra.
    """
    content_type = headers.get("content-type", "")
    is_response = headers.get("warc-type", "").lower() == "response"
    if is_response:
        payload, http_headers = http_response(payload, max_bytes)
        content_type = http_headers.get("content-type", "")
    kind, label = parse_content_type(content_type)
    if not kind:
        kind = parse_content_type(headers.get("warc-identified-payload-type", ""))[0]
    if kind in _HTML_TYPES:
        return _checked(*_visible_text(payload, label))
    if kind != "text/plain":
        raise NoText("text_not_a_string", f"the content type is {kind or 'not given'}")
    if not is_response and label in (None, "utf-8", "utf8", "us-ascii"):
        return payload
    if label and encoding_of(label) is None:
        raise NoText("invalid_utf8", f"the charset {label} is not known")
    return _checked(*decoded_text(payload, label))


def parse_content_type(value: str) -> tuple[str, str | None]:
    """'text/plain; charset="EUC-JP"' -> ('text/plain', 'euc-jp'). Of several values, as a header
    that was sent twice has, the last one counts, and keeps the charset of its like before it.

    Source: Fetch Standard, "extract a MIME type".
    """
    kind = ""
    label = None
    for item in value.lower().split(","):
        name, *parameters = item.split(";")
        if "/" not in name:
            continue
        if name.strip() != kind:
            kind = name.strip()
            label = None
        for parameter in parameters:
            key, _, setting = parameter.partition("=")
            if key.strip() == "charset" and setting.strip(' "'):
                label = setting.strip(' "')
                break
    return kind, label


def _checked(text: str, origin: str) -> bytes:
    """The text as UTF-8. Raises NoText for one that is to a large part U+FFFD."""
    if is_mostly_replaced(text):
        n_replaced = text.count("\ufffd")
        detail = f"{n_replaced} of {len(text)} characters are U+FFFD, although {origin}"
        raise NoText("invalid_utf8", detail)
    return text.encode("utf-8", "surrogatepass")


def _visible_text(html: bytes, label: str | None) -> tuple[str, str]:
    """What a person sees of the page, boilerplate included, and how its charset is known."""
    extract = _extractor()
    source, origin = decoded_page(html, label)
    return extract(source), origin


@functools.cache
def _extractor() -> Callable[[str], str]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError as error:
        raise SpecError(
            "WARC records of type text/html need resiliparse to extract their text. Install "
            "corpus-embed[html], or read WET shards."
        ) from error
    return extract_plain_text
