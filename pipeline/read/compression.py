"""Decompression by the suffix of the shard's URI: the raw file in, blocks of decompressed bytes out.

Multi-member gzip, multi-frame zstd, multi-stream bzip2 and xz are read to their end, zero padding between or after
members is skipped. Whatever can be decoded is delivered before `ShardDamaged` tells the decompressed position at
which the data breaks off; Python's own file classes raise first and lose the bytes of the failing call. Errors of
`file.read` itself (network) pass through untouched, because nothing around them is caught.

Memory: one compressed and one decompressed block. gzip, bzip2 and xz bound the output of a call; zstd cannot, so its
input comes in pieces of 512 bytes, which is at most 16 MiB of output (a block of 128 KiB takes at least 4 bytes).
Cost: that of the libraries.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import zstandard

from pipeline.errors import ShardDamaged

COMPRESSION_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

BLOCK_BYTES = 1 << 20
"""Most bytes of one block that goes out, and of one read of the raw file."""

_ZSTD_PIECE_BYTES = 512
_SMALL_PIECE_BYTES = 8 << 10  # bz2 and xz lose the output of the call that fails: keep that call small


class TrailingGarbage(ShardDamaged):
    """The data was complete and checked, but something that is not compressed data follows it."""


class _Member(Protocol):
    """Decoder of one gzip member, zstd frame, bzip2 or xz stream."""

    @property
    def ended(self) -> bool: ...

    @property
    def rest(self) -> bytes: ...  # input after the end of the member

    def decode(self, data: bytes) -> Iterator[bytes]: ...


def compression_of(uri: str) -> str | None:
    """gzip, zstd, bz2, xz, or None, by the last suffix of `uri`."""
    lowered = uri.lower()
    return next((name for suffix, name in COMPRESSION_SUFFIXES.items() if lowered.endswith(suffix)), None)


def without_compression_suffix(uri: str) -> str:
    """`a.jsonl.gz` -> `a.jsonl`."""
    return uri.rpartition(".")[0] if compression_of(uri) else uri


def decompressed_blocks(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """The decompressed content of `file` from its current position, in non-empty blocks; as it is when `uri` has no
    compression suffix.

    Raises ShardDamaged when compressed data is truncated or corrupt, after everything before was delivered.
    """
    name = compression_of(uri)
    raw_blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
    return raw_blocks if name is None else _joined(_decode_members(raw_blocks, _MEMBERS[name], name, uri))


def _joined(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Small blocks put together, because each becomes a table; what is there when the data breaks off goes out first."""
    pieces: list[bytes] = []
    n_bytes = 0
    damage: ShardDamaged | None = None
    while True:
        try:
            block = next(blocks, None)
        except ShardDamaged as error:
            block, damage = None, error
        if pieces and (block is None or n_bytes + len(block) > BLOCK_BYTES):
            yield b"".join(pieces)
            pieces, n_bytes = [], 0
        if block is None:
            break
        pieces.append(block)
        n_bytes += len(block)
    if damage is not None:
        raise damage


def _decode_members(
    raw_blocks: Iterator[bytes], new_member: Callable[[], _Member], name: str, uri: str
) -> Iterator[bytes]:
    member: _Member | None = None
    n_out = n_members = 0
    for raw in raw_blocks:
        while raw:
            if member is None:
                raw = raw.lstrip(b"\0")
                if not raw:
                    break
                if n_members and not any(raw.startswith(magic[: len(raw)]) for magic in _MAGIC[name]):
                    message = f"{uri}: no {name} data after the end of it, at decompressed byte {n_out}"
                    raise TrailingGarbage(message, n_out)
                member = new_member()
            try:
                for block in member.decode(raw):
                    n_out += len(block)
                    yield block
            except _Corrupt as error:
                message = f"{uri}: corrupt {name} data at decompressed byte {n_out}: {error}"
                raise ShardDamaged(message, n_out) from error
            raw = b""
            if member.ended:
                raw, member, n_members = member.rest, None, n_members + 1
    if member is not None:
        raise ShardDamaged(f"{uri}: the {name} data ends in the middle, at decompressed byte {n_out}", n_out)


class _Corrupt(Exception):
    """The library refuses the data."""


class _GzipMember:
    """zlib drops the output of a call that fails, so each call starts from a copy that can be replayed in steps."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    @property
    def rest(self) -> bytes:
        return self._decoder.unused_data

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data and not self._decoder.eof:
            before = self._decoder.copy()
            try:
                block = self._decoder.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                yield from _replay(before, data)
                raise _Corrupt(str(error)) from error
            if block:
                yield block
            data = self._decoder.unconsumed_tail
        if not self._decoder.eof and (block := self._decoder.decompress(b"", BLOCK_BYTES)):
            yield block


def _replay(decoder: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What `decoder` can make of `data` before it fails: in pieces, and the piece that fails byte by byte."""
    step = _SMALL_PIECE_BYTES
    start = 0
    while start < len(data):
        before = decoder.copy()
        try:
            block = decoder.decompress(data[start : start + step])
        except zlib.error:
            if step == 1:
                return
            decoder, step = before, 1
            continue
        if block:
            yield block
        start += step


class _LimitedMember:
    """bzip2 and xz: the decoder keeps its own input, and says when it needs more."""

    def __init__(self, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decoder = decoder
        self.rest = b""

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), _SMALL_PIECE_BYTES):
                piece = data[start : start + _SMALL_PIECE_BYTES]
                while True:
                    if block := self._decoder.decompress(piece, BLOCK_BYTES):
                        yield block
                    if self._decoder.eof:
                        self.rest = self._decoder.unused_data + data[start + _SMALL_PIECE_BYTES :]
                        return
                    if self._decoder.needs_input:
                        break
                    piece = b""
        except (OSError, lzma.LZMAError, ValueError) as error:  # bz2 says OSError; no file is read in here
            raise _Corrupt(str(error)) from error


class _ZstdMember:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor().decompressobj()
        self.rest = b""

    @property
    def ended(self) -> bool:
        return self._decoder.eof

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_PIECE_BYTES):
            try:
                out = self._decoder.decompress(data[start : start + _ZSTD_PIECE_BYTES])
            except zstandard.ZstdError as error:
                raise _Corrupt(str(error)) from error
            for at in range(0, len(out), BLOCK_BYTES):
                yield out[at : at + BLOCK_BYTES]
            if self._decoder.eof:
                self.rest = self._decoder.unused_data + data[start + _ZSTD_PIECE_BYTES :]
                return


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "gzip": _GzipMember,
    "zstd": _ZstdMember,
    "bz2": lambda: _LimitedMember(bz2.BZ2Decompressor()),
    "xz": lambda: _LimitedMember(lzma.LZMADecompressor(memlimit=1 << 30)),
}

_MAGIC = {
    "gzip": [b"\x1f\x8b"],
    "zstd": [b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))],
    "bz2": [b"BZh"],
    "xz": [b"\xfd7zXZ\0"],
}
