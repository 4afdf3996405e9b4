"""The characters of a crawled page: its bytes and the label of its HTTP header become the string
that a browser shows.

The order is that of the HTML Standard (section 13.2.3, "The input byte stream"): a byte-order mark,
the label of HTTP, `<meta>` in the page. Labels and decoders are those of the Encoding Standard:
`shift_jis` is windows-31j, `iso-8859-1` is windows-1252. turbohtml (extra "warc") has both. A byte
that does not fit is one U+FFFD, and the decoder goes on where the standard says.

Without any label, browsers guess, and differently. Here bytes that are UTF-8 are UTF-8. Others are
what the detector of Firefox says, if there is enough to go by (EVIDENCE_BYTES). Otherwise the page
is rejected, since a wrong guess is another text. Latin letters among ASCII are an exception,
because few bytes of them are usual: below LATIN_EVIDENCE_BYTES they are windows-1252, the default
of the standard.

Rejected are also pages whose text is to a large part U+FFFD (`is_mostly_replaced`): their label is
wrong.
"""

from __future__ import annotations

import codecs
import re
from types import ModuleType

from pipeline.errors import SpecError
from pipeline.read.records import NoText

EVIDENCE_BYTES = 32
"""How many bytes above ASCII a guess of a charset with one byte a character needs. Measured with a
text cut at random: with 32 characters in Cyrillic, Greek, Thai, Arabic or Hebrew 593 of 600 guesses
are right, with 8 of them 439 of 600."""

MULTIBYTE_EVIDENCE_BYTES = 16
"""The same for Chinese, Japanese and Korean, whose bytes must also fit. Measured: of 6,163 pieces
of the Japanese in `jobs/sample`, 8 to 24 characters long, one was taken for another of them."""

LATIN_EVIDENCE_BYTES = 8
"""The same for text in Latin letters, where the detector takes `naïve` for Latvian."""

MAX_REPLACED = 0.02
"""The largest share of a text's characters that may be U+FFFD. Two of them are always allowed
beside other text: an odd byte, and the character at which a crawler cut the page."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16le",
    codecs.BOM_UTF16_BE: "utf-16be",
}
_HEAD_BYTES = 1 << 16
"""How far a `<meta>` is looked for. The standard requires 1,024 bytes, and browsers look further,
up to the end of the head."""

_LATIN = {
    *("windows-1252", "windows-1250", "windows-1254", "windows-1257", "windows-1258"),
    *("iso-8859-2", "iso-8859-4", "iso-8859-13", "iso-8859-15", "iso-8859-16"),
}
_MULTIBYTE = {"shift_jis", "euc-jp", "iso-2022-jp", "gbk", "gb18030", "big5", "euc-kr"}
_NOT_ASCII = bytes(range(128, 256))
_NO_LATIN = re.compile(rb"[\x80-\xff]{4}")
"""Four letters above ASCII in a row, which text in Latin letters does not have."""


def decoded_page(html: bytes, label: str | None) -> tuple[str, str]:
    """The source of a page as a string, and how its charset is known, for messages.

    label: that of the HTTP header. Raises NoText for a page whose charset is unknown or one that
    browsers refuse, and SpecError if turbohtml is missing.
    """
    name, origin = _labelled(html, label)
    if name is None:
        document = _turbohtml().parse(html[:_HEAD_BYTES], positions=False)
        if document.encoding_confidence == "certain":
            name = document.encoding
            origin = f"<meta> says {name}"
    return _decoded(html, name, origin)


def decoded_text(data: bytes, label: str | None) -> tuple[str, str]:
    """The same for text that is no HTML."""
    return _decoded(data, *_labelled(data, label))


def is_mostly_replaced(text: str) -> bool:
    """Whether more of a text is U+FFFD than MAX_REPLACED allows."""
    n_replaced = text.count("\ufffd")
    if n_replaced == 0:
        return False
    n_others = len("".join(text.split())) - n_replaced
    return n_replaced > max(2, MAX_REPLACED * (n_others + n_replaced)) or n_others == 0


def encoding_of(label: str) -> str | None:
    """The name of the encoding that browsers mean by a label; None for one they do not know."""
    if not label.isascii():
        return None
    if label.lower() in ("utf-8", "utf8"):
        return "utf-8"
    try:
        return str(_turbohtml().parse(b"", encoding=label).encoding).lower()
    except LookupError:
        return None


def _labelled(data: bytes, label: str | None) -> tuple[str | None, str]:
    """The encoding by mark or label, and how it is known."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name, f"the byte-order mark says {name}"
    return encoding_of(label) if label else None, f"HTTP says {label}"


def _decoded(data: bytes, encoding: str | None, origin: str) -> tuple[str, str]:
    if encoding is None:
        encoding, origin = _guessed(data)
    name = encoding.lower()
    if name == "replacement":
        raise NoText("invalid_utf8", f"{origin}, a charset that browsers refuse to decode")
    if name == "utf-8":
        text = data.decode("utf-8", "replace")
    else:
        _turbohtml()  # has the codecs
        text = data.decode(f"whatwg-{name}")
    return text.removeprefix("\ufeff"), origin


def _guessed(data: bytes) -> tuple[str, str]:
    """The encoding of data without a label. Raises NoText where it is not sure."""
    origin = "there is no label, and the bytes look like"
    if b"\x1b" not in data and _is_utf8(data):
        return "utf-8", f"{origin} UTF-8"
    detect = _turbohtml().detect.detect
    name = str(detect(data).encoding).lower()
    # The character at which a page is cut excludes its charset: tried without it as well.
    for n_cut in range(1, 4):
        if name in _MULTIBYTE or data[-n_cut:].isascii():
            break
        without_cut = str(detect(data[:-n_cut]).encoding).lower()
        if without_cut in _MULTIBYTE:
            name = without_cut
    n_bytes = len(data) - len(data.translate(None, _NOT_ASCII))
    is_latin = name in _LATIN and not _NO_LATIN.search(data)
    n_needed = MULTIBYTE_EVIDENCE_BYTES if name in _MULTIBYTE else EVIDENCE_BYTES
    if is_latin and n_bytes < LATIN_EVIDENCE_BYTES:
        name = "windows-1252"
    elif n_bytes < n_needed and not is_latin and name != "iso-2022-jp":
        detail = f"there is no label of a charset, and {n_bytes} bytes are too few to guess it"
        raise NoText("invalid_utf8", detail)
    return name, f"{origin} {name}"


def _is_utf8(data: bytes) -> bool:
    """Whether nearly all that is not ASCII is UTF-8, up to a character that is cut at the end.
    Text in another charset has hardly any such sequence."""
    text = data.decode("utf-8", "replace")
    n_bad = text.count("\ufffd") - data.count("\ufffd".encode())
    if n_bad == 0:
        return True
    n_good = len(text) - len(text.encode("ascii", "ignore")) - n_bad
    is_cut = n_bad == 1 and n_good > 0 and text.endswith("\ufffd")
    return is_cut or n_good >= 20 * n_bad


def _turbohtml() -> ModuleType:
    try:
        import turbohtml.detect
    except ImportError as error:
        raise SpecError(
            "WARC records that do not declare UTF-8 need turbohtml to decode them. Install "
            "corpus-embed[warc], or read WET shards."
        ) from error
    return turbohtml
