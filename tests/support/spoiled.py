"""Shards with known documents, and ways to spoil them, for the fuzzer of the readers.

Everything is a function of a seed. A `Spoiled` shard states how many of its first documents no
change has reached: the writer knows where each record ends, and the standard decompressors show how
much of the data lies before the first changed byte. A reader must yield those documents first,
equal, and good.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.support import thrift
from tests.support.spoiled_warc import document_record, page_record

FORMATS = ("jsonl", "text", "csv", "warc", "parquet")
SUFFIXES = {
    "jsonl": ".jsonl",
    "text": ".txt",
    "csv": ".csv",
    "warc": ".warc",
    "parquet": ".parquet",
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, 1, mtime=0),
    ".zst": zstandard.ZstdCompressor(level=1, write_checksum=True).compress,
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
}
LOST_BYTES = {".zst": 512, ".bz2": 8192, ".xz": 8192}
"""How many compressed bytes before a corrupt one can lose their output in the decoders
(pipeline/read/decoders.py)."""

_DICTIONARY = zstandard.train_dictionary(2000, [b"word %d of a text" % n for n in range(2000)])
DICTIONARY_FRAME = (
    b"\x5d\x2a\x4d\x18" + len(_DICTIONARY).to_bytes(4, "little") + _DICTIONARY.as_bytes()
)
"""A dictionary that no frame behind it needs."""

# fmt: off
WORDS = [
    "plain", "良い文書", "naïve", "🦉", "a,b", '"quoted"', "line\u2028sep", "tab\t", "back\\slash",
    "\ufeff", "\u200b", "e\u0301", "x" * 300, "'", "{", "[", "</p>", "WARC/1.0",
    "Content-Length: 3", "=", "%2F", "..", "null", "0012", "\x0b\x0c",
]
NASTY = [
    b"\0", b"\xff\xfe", b'"', b"\n", b"\r", b"\r\n\r\n", b",", b"{", b"}", b"[" * 3000,
    b'{"a":' * 2000, b"9" * 5000, b"1e999", b"\\ud800", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"NaN", b"-", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: -5\r\n", b"Content-Type: text/plain; charset=punycode\r\n",
    b"Content-Type: text/plain; charset=a\0b\r\n", b"WARC/1.0\r\n", b"WARC-Type: response\r\n",
    b"HTTP/1.1 200 OK\r\n", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"PAR1",
    b"\xfd7zXZ\0", b"\x7f" * 9, b"\x80" * 40, b"\n" * 5000, b'x","y\n' * 50, b'"id":1e30,',
    b'"id":"b",', b" " * 999,
]
# fmt: on
KINDS = [
    "whole",
    "cut",
    "flip",
    "flip",
    "insert",
    "insert",
    "delete",
    "repeat",
    "zeros",
    "noise",
    "tail",
]


@dataclass(frozen=True)
class Spoiled:
    """Raw bytes under a name. The first `n_sure` of `documents` (id, text) lie before every change.
    how: the kind of change."""

    format: str
    uri: str
    data: bytes
    documents: list[tuple[str, str]]
    n_sure: int
    how: str


def spoiled(seed: int) -> Spoiled:
    """The shard of one seed."""
    dice = random.Random(seed)
    format = dice.choice(FORMATS)
    documents = [(f"id{n}", _text(dice, format)) for n in range(dice.randrange(40))]
    if format == "parquet":
        data, how = _spoil_parquet(dice, _parquet(dice, documents))
        return Spoiled(
            format, "a.parquet", data, documents, 0 if how else len(documents), how or "whole"
        )
    suffix = dice.choice(list(COMPRESSORS))
    plain, ends = WRITERS[format](documents)
    uri = "a" + SUFFIXES[format] + suffix
    if dice.random() < 0.45:  # behind the compression
        content, first, how = _spoil(dice, plain)
        data, n_clean = COMPRESSORS[suffix](content), first
    else:
        # WARC: a member a record
        edges = [0, *ends] if format == "warc" and suffix == ".gz" else [0]
        pairs = itertools.pairwise([*edges, len(plain)])
        packed = b"".join(COMPRESSORS[suffix](plain[a:b]) for a, b in pairs)
        if suffix == ".zst" and dice.random() < 0.5:
            packed = DICTIONARY_FRAME + packed
        data, first, how = _spoil(dice, packed)
        lost = 0 if how == "cut" else LOST_BYTES.get(suffix, 0)
        n_clean = len(decoded(data[: max(0, first - lost)] if how != "whole" else packed, suffix))
    n_sure = sum(end <= n_clean for end in ends)
    if format == "csv" and n_clean < len(b"id,text\r\n"):
        n_sure = 0
    return Spoiled(format, uri, data, documents, n_sure, how)


def decoded(packed: bytes, suffix: str) -> bytes:
    """The output of the standard decompressors for all members of complete or cut data."""
    new: dict[str, Callable[[], object]] = {
        ".gz": lambda: zlib.decompressobj(31),
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lzma.LZMADecompressor,
        ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    }
    out = b"" if suffix else packed
    while suffix and packed:
        decoder: object = new[suffix]()
        out += decoder.decompress(packed)  # type: ignore[attr-defined]
        packed = decoder.unused_data if decoder.eof else b""  # type: ignore[attr-defined]
    return out


def _text(dice: random.Random, format: str) -> str:
    text = "t" + " ".join(dice.choices(WORDS, k=dice.randrange(1, 30)))
    if format != "text" and dice.random() < 0.3:
        text += "\nsecond line\n\n" + text
    return text * dice.choice([1, 1, 1, 1, 1, 20])


def _jsonl(documents: list[tuple[str, str]]) -> tuple[bytes, list[int]]:
    lines = [
        json.dumps({"id": a, "text": b, "n": len(b)}, ensure_ascii=len(b) % 2 == 0)
        for a, b in documents
    ]
    return _with_ends([(line + "\n").encode() for line in lines])


def _lines(documents: list[tuple[str, str]]) -> tuple[bytes, list[int]]:
    return _with_ends([(text + "\n").encode() for _, text in documents])


def _csv(documents: list[tuple[str, str]]) -> tuple[bytes, list[int]]:
    def row(*fields: str) -> bytes:
        sink = io.StringIO(newline="")
        csv.writer(
            sink, quoting=csv.QUOTE_ALL if len(fields[1]) % 2 else csv.QUOTE_MINIMAL
        ).writerow(fields)
        return sink.getvalue().encode()

    plain, ends = _with_ends([b"id,text\r\n", *(row(*document) for document in documents)])
    return plain, ends[1:]


def _warc(documents: list[tuple[str, str]]) -> tuple[bytes, list[int]]:
    plain, ends = _with_ends([document_record(*document) for document in documents])
    pages = [page_record(number, text) for number, (_, text) in enumerate(documents[:9])]
    return plain + b"".join(pages), ends


def _with_ends(records: list[bytes]) -> tuple[bytes, list[int]]:
    ends = [0]
    for record in records:
        ends.append(ends[-1] + len(record))
    return b"".join(records), ends[1:]


WRITERS = {"jsonl": _jsonl, "text": _lines, "csv": _csv, "warc": _warc}


def _parquet(dice: random.Random, documents: list[tuple[str, str]]) -> bytes:
    table = pa.table(
        {
            "id": pa.array([name for name, _ in documents], pa.string()),
            "text": pa.array(
                [text for _, text in documents], dice.choice([pa.string(), pa.large_string()])
            ),
            "n": pa.array([len(text) for _, text in documents], pa.int64()),
            "tags": pa.array([[name, None] for name, _ in documents], pa.list_(pa.string())),
        }
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=dice.choice([3, 100]),
        compression=dice.choice(["none", "snappy", "zstd", "gzip"]),
        use_dictionary=dice.random() < 0.5,
        write_page_checksum=dice.random() < 0.3,
        data_page_size=500,
        data_page_version=dice.choice(["1.0", "2.0"]),
        store_schema=dice.random() < 0.5,
    )
    return sink.getvalue()


def _spoil_parquet(dice: random.Random, data: bytes) -> tuple[bytes, str]:
    if dice.random() < 0.5:
        return thrift.lie(dice, data), "lying numbers"
    if dice.random() < 0.5:
        changed, _, how = _spoil(dice, data)
        return changed, "" if how == "whole" else how
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # the footer, of the same length
    footer, _, _ = _spoil(dice, data[start:-8], ["flip"])
    return data[:start] + footer + data[-8:], "footer"


def _spoil(
    dice: random.Random, data: bytes, kinds: list[str] | None = None
) -> tuple[bytes, int, str]:
    """(changed data, first byte that a change has reached, kind)."""
    kind = dice.choice(kinds or KINDS)
    at = dice.randrange(len(data) + 1)
    n_bytes = dice.choice([1, 2, 10, 500, 20_000])
    noise = dice.choice([dice.choice(NASTY), dice.randbytes(n_bytes)])
    if kind == "cut":
        return data[:at], at, kind
    if kind == "flip":
        changed = bytearray(data)
        places = (
            [dice.randrange(len(data)) for _ in range(dice.choice([1, 1, 2, 8]))] if data else []
        )
        for place in places:
            changed[place] ^= 1 << dice.randrange(8)
        return bytes(changed), min(places, default=0), kind
    if kind == "tail":
        return data + noise, len(data), kind
    if kind == "noise":
        return noise, 0, kind
    new = {
        "whole": (0, b""),
        "insert": (0, noise),
        "delete": (n_bytes, b""),
        "zeros": (n_bytes, bytes(n_bytes)),
        "repeat": (0, data[max(0, at - n_bytes) : at]),
    }
    n_removed, added = new[kind]
    return data[:at] + added + data[at + n_removed :], len(data) if kind == "whole" else at, kind
