"""The dictionary at the start of a zstd file, as `.warc.zst` files have one for all their records.

It is in a skippable frame of magic number 0x184D2A5D, as it is or compressed as one zstd frame.
Source: "Zstandard Compression for WARC Files", IIPC, version 1.0, section 3.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import zstandard

from pipeline.read.decoders import DECODERS, CorruptData

MAX_DICTIONARY_BYTES = 16 << 20
"""The largest dictionary, in bytes, compressed or not. Those of web archives have up to 1 MiB."""

_FRAME = struct.pack("<I", 0x184D2A5D)
_DICTIONARY = struct.pack("<I", 0xEC30A437)
_COMPRESSED = struct.pack("<I", 0xFD2FB528)


def zstd_dictionary(file: BinaryIO) -> zstandard.ZstdCompressionDict | None:
    """The dictionary that starts at the position of `file`, which is moved; None where there is
    none. A frame that only looks like one stays a frame to skip."""
    head = file.read(8)
    if len(head) < 8 or not head.startswith(_FRAME):
        return None
    n_bytes = struct.unpack_from("<I", head, 4)[0]
    if n_bytes > MAX_DICTIONARY_BYTES:
        return None
    content = file.read(n_bytes)
    if content.startswith(_COMPRESSED):
        content = _decompressed(content)
    if not content.startswith(_DICTIONARY):
        return None
    try:
        dictionary = zstandard.ZstdCompressionDict(content, zstandard.DICT_TYPE_FULLDICT)
        zstandard.ZstdDecompressor(dictionary).decompressobj()  # the first use checks it
    except (ValueError, zstandard.ZstdError):
        return None
    return dictionary


def _decompressed(content: bytes) -> bytes:
    pieces: list[bytes] = []
    n_bytes = 0
    try:
        for block in DECODERS["zstd"]().decode(content):
            n_bytes += len(block)
            if n_bytes > MAX_DICTIONARY_BYTES:
                return b""
            pieces.append(block)
    except CorruptData:
        return b""
    return b"".join(pieces)
