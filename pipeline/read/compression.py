"""Decompression by the suffix of the shard's URI: the raw file in, blocks of decompressed bytes
out.

Multi-member gzip, multi-frame zstd, multi-stream bzip2 and xz are read to their end, zero padding
between or after members is skipped. Whatever can be decoded is delivered before `ShardDamaged`
tells the decompressed position at which the data breaks off; Python's own file classes raise first
and lose the bytes of the failing call. Errors of `file.read` itself (network) pass through
untouched, because nothing around them is caught.

Memory: one compressed and one decompressed block, and the window of zstd or xz, WINDOW_BYTES at
most. gzip, bzip2 and xz bound the output of a call; zstd cannot, so its input comes in pieces of
512 bytes, which is at most 16 MiB of output (a block of 128 KiB takes at least 4 bytes). Bombs: a
shard gives MAX_RATIO times its own size, and MAX_BYTES, and is damaged at that position. Cost: that
of the libraries.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from pipeline.errors import ShardDamaged

COMPRESSION_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

BLOCK_BYTES = 1 << 20
"""Most bytes of one block that goes out."""

WINDOW_BYTES = 128 << 20
"""Most that a zstd or xz decoder may look back. `zstd --long=27` is the most that zstd itself reads
unasked, `xz -9` needs half of it; a header can claim gigabytes."""

MAX_RATIO = 200
"""Decompressed bytes a compressed byte. Text has 2 to 10, machine-made records up to about 50; gzip
can 1,029, zstd 32,000."""

MAX_BYTES = 1 << 40
"""Decompressed bytes of one shard: at 300 MB/s one reader is busy with it for an hour."""

_FREE_BYTES = 64 << 20
"""Under this the ratio does not count: it takes a fraction of a second, and tiny shards may well be
all alike."""

# a member that ends hands the rest of this back, as a copy: shards can have a member a record
_READ_BYTES = 1 << 16
_ZSTD_PIECE_BYTES = 512
# bz2 and xz lose the output of the call that fails: keep that call small
_SMALL_PIECE_BYTES = 8 << 10


class TrailingGarbage(ShardDamaged):
    """The data was complete and checked, but something that is not compressed data follows it."""


def compression_of(uri: str) -> str | None:
    """gzip, zstd, bz2, xz, or None, by the last suffix of `uri`."""
    lowered = uri.lower()
    return next(
        (name for suffix, name in COMPRESSION_SUFFIXES.items() if lowered.endswith(suffix)), None
    )


def without_compression_suffix(uri: str) -> str:
    """`a.jsonl.gz` -> `a.jsonl`."""
    return uri.rpartition(".")[0] if compression_of(uri) else uri


def decompressed_blocks(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """The decompressed content of `file` from its current position, in non-empty blocks; as it is
    when `uri` has no compression suffix.

    Raises ShardDamaged when compressed data is truncated, corrupt or a bomb, after everything
    before was delivered.
    """
    name = compression_of(uri)
    if name is None:
        return iter(lambda: file.read(BLOCK_BYTES), b"")
    start = file.tell()
    n_raw = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    raw_blocks = iter(lambda: file.read(_READ_BYTES), b"")
    return _joined(_decode_members(raw_blocks, _MEMBERS[name], name, uri), n_raw, uri)


def _joined(blocks: Iterator[bytes], n_raw: int, uri: str) -> Iterator[bytes]:
    """Small blocks put together, because each becomes a table, up to what `n_raw` bytes may give;
    what is there when the data breaks off goes out first."""
    limit = min(MAX_BYTES, max(_FREE_BYTES, MAX_RATIO * n_raw))
    pieces: list[bytes] = []
    n_bytes = n_out = 0
    damage: ShardDamaged | None = None
    while True:
        try:
            block = next(blocks, b"")
        except ShardDamaged as error:
            block, damage = b"", error
        if n_out + len(block) > limit:
            message = f"{uri}: a bomb? {n_raw} bytes give more than {limit}. If the data is real, split or recompress it"
            block, damage = block[: limit - n_out], ShardDamaged(message, limit)
        n_out += len(block)
        if pieces and (not block or n_bytes + len(block) > BLOCK_BYTES):
            yield b"".join(pieces)
            pieces, n_bytes = [], 0
        if damage is not None:
            if block:
                yield block
            raise damage
        if not block:
            return
        pieces.append(block)
        n_bytes += len(block)


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
                if n_members and not any(
                    raw.startswith(magic[: len(raw)]) for magic in _MAGIC[name]
                ):
                    message = (
                        f"{uri}: no {name} data after the end of it, at decompressed byte {n_out}"
                    )
                    raise TrailingGarbage(message, n_out)
                member = new_member()
            try:
                for block in member.decode(raw):
                    n_out += len(block)
                    yield block
            except _Corrupt as error:
                message = f"{uri}: corrupt {name} data at decompressed byte {n_out}: {error}"
                raise ShardDamaged(message, n_out) from error
            raw = member.rest or b""
            if member.rest is not None:
                member, n_members = None, n_members + 1
    if member is not None:
        raise ShardDamaged(
            f"{uri}: the {name} data ends in the middle, at decompressed byte {n_out}", n_out
        )


class _Corrupt(Exception):
    """The library refuses the data."""


class _Member(ABC):
    """Decoder of one gzip member, zstd frame, bzip2 or xz stream. `rest`: the input after its end,
    None before it."""

    rest: bytes | None = None

    @abstractmethod
    def decode(self, data: bytes) -> Iterator[bytes]: ...


class _GzipMember(_Member):
    """zlib drops the output of a call that fails, so each call starts from a copy that can be
    replayed in steps."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    def decode(self, data: bytes) -> Iterator[bytes]:
        block = b"more"
        # without input: what the last call held back
        while (data or block) and not self._decoder.eof:
            before = self._decoder.copy()
            try:
                block = self._decoder.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                yield from _replay(before, data)
                raise _Corrupt(str(error)) from error
            if block:
                yield block
            data = self._decoder.unconsumed_tail
        if self._decoder.eof:
            self.rest = self._decoder.unused_data


def _replay(decoder: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What `decoder` can make of `data` before it fails: in pieces, and the piece that fails byte
    by byte."""
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


class _PiecewiseMember(_Member):
    """zstd, bzip2 and xz lose the output of the call that fails: small pieces of input keep that
    call small.

    bzip2 and xz take a limit on the output, keep their own input, and say when they need more; zstd
    does not.
    """

    def __init__(self, decoder: Any, piece_bytes: int) -> None:
        self._decoder, self._piece_bytes = decoder, piece_bytes
        self._limit = (BLOCK_BYTES,) if hasattr(decoder, "needs_input") else ()

    def decode(self, data: bytes) -> Iterator[bytes]:
        decoder = self._decoder
        for start in range(0, len(data), self._piece_bytes):
            piece = data[start : start + self._piece_bytes]
            while True:
                try:
                    out = decoder.decompress(piece, *self._limit)
                # bz2 says OSError
                except (OSError, ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
                    raise _Corrupt(str(error)) from error
                for at in range(0, len(out), BLOCK_BYTES):
                    yield out[at : at + BLOCK_BYTES]
                if decoder.eof:
                    self.rest = decoder.unused_data + data[start + self._piece_bytes :]
                    return
                if not self._limit or decoder.needs_input:
                    break
                piece = b""


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "gzip": _GzipMember,
    "zstd": lambda: _PiecewiseMember(
        zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj(), _ZSTD_PIECE_BYTES
    ),
    "bz2": lambda: _PiecewiseMember(bz2.BZ2Decompressor(), _SMALL_PIECE_BYTES),
    "xz": lambda: _PiecewiseMember(
        lzma.LZMADecompressor(lzma.FORMAT_XZ, WINDOW_BYTES + (1 << 20)), _SMALL_PIECE_BYTES
    ),
}

_MAGIC = {
    "gzip": [b"\x1f\x8b"],
    "zstd": [b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))],
    "bz2": [b"BZh"],
    "xz": [b"\xfd7zXZ\0"],
}
