"""What a shard is when it is not what its name says, by its first bytes.

The lines of such a shard would all be rejected, each for a symptom, and some would even be read: of
a JSON array with an object a line, the last one. So line formats look at the first block, and
refuse the whole shard with the cause and the way out.
"""

from __future__ import annotations

import orjson

_MAGIC = {
    b"\x1f\x8b\x08": "is compressed with gzip; give its name the suffix .gz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; give its name the suffix .zst",
    b"\xfd7zXZ\0": "is compressed with xz; give its name the suffix .xz",
    b"PK\x03\x04": "is a ZIP archive (or an Office document); unpack it",
    b"PAR1": "is a Parquet file; give its name the suffix .parquet, or set input.format",
    b"Obj\x01": "is an Avro file; convert it to Parquet",
    b"ARROW1\0\0": "is an Arrow (Feather) file; convert it to Parquet",
    b"SQLite format 3\0": "is a SQLite database; export it to Parquet",
    b"%PDF-": "is a PDF document; extract its text first",
    b"version https://git-lfs.github.com/spec/": (
        "is a pointer of Git LFS and not the data; run git lfs pull where it was cloned"
    ),
    b"\xff\xfe\0\0": "is UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "is UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
}
"""First bytes of other kinds of files, the longer before its prefix."""

_BZIP2_BLOCK = b"1AY&SY"
_UTF16_BYTES = 64
_BRACKETS = b"[{ \t\r"


def other_kind(head: bytes) -> str | None:
    """What a shard of UTF-8 text is instead; None where nothing contradicts its name.

    head: its first bytes after decompression, 1 MiB unless it is shorter.
    """
    for magic, problem in _MAGIC.items():
        if head.startswith(magic):
            return problem
    if head.startswith(b"BZh") and head[4:10] == _BZIP2_BLOCK:
        return "is compressed with bzip2; give its name the suffix .bz2"
    start = head[:_UTF16_BYTES]
    if len(start) >= 4 and any(start[::2]) != any(start[1::2]):
        return "is UTF-16 without a byte-order mark; convert it: iconv -f UTF-16LE -t UTF-8"
    return None


def problem_of(head: bytes) -> str | None:
    """The same for a shard of lines."""
    if problem := other_kind(head):
        return problem
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        return "has lines that end in a bare CR; convert the line ends: tr '\\r' '\\n'"
    return None


def json_problem_of(head: bytes) -> str | None:
    """The same for a shard of JSON Lines, which must hold one object a line."""
    if problem := problem_of(head):
        return problem
    content = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if content.startswith(b"<"):
        return "is HTML or XML and not JSON; perhaps it is the error page of a download"
    if not content.startswith((b"[", b"{")) or not _extends_over_lines(content):
        return None
    if content.startswith(b"["):
        return "is one JSON array and not one object a line; convert it: jq -c '.[]'"
    return "is JSON with objects of several lines; write one object a line: jq -c ."


def _extends_over_lines(content: bytes) -> bool:
    """Whether the first value does not end with its line, or is an array of objects that is alone.

    A line that was cut off is unfinished too, but no value with the line after it.
    """
    first, line_end, rest = content.partition(b"\n")
    second = rest.lstrip(b" \t\r\n").partition(b"\n")[0]
    if not line_end and first.startswith(b"["):
        # one line, or the start of one of more than a block
        return first[1:].lstrip(b" \t\r").startswith(b"{")
    if _is_whole(first):
        return first.startswith(b"[") and not rest.strip() and b"{" in first
    if not _is_unfinished(first):
        return False
    if not second:
        return bool(line_end) and not first.strip(_BRACKETS)
    both = first + b"\n" + second
    return _is_whole(both) or _is_unfinished(both)


def _is_whole(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_unfinished(data: bytes) -> bool:
    """Whether more data could make it JSON."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # orjson gives no document where the bytes are not UTF-8
        return bool(error.doc) and error.pos >= len(error.doc.rstrip())
    return False
