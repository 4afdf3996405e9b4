"""Decompression by the suffix of the shard's URI: a raw file becomes blocks of decompressed bytes.

Multi-member gzip, multi-frame zstd, multi-stream bzip2 and xz are read to their end, and zero
padding between or after members is skipped. A zstd file may start with the dictionary of its
frames, as `.warc.zst` files do. Everything that can be decoded is delivered before `ShardDamaged`
reports the decompressed position at which the data breaks off. Errors of `file.read` itself (the
network) pass through untouched, because no call to it is inside a `try`.

Memory: one compressed and one decompressed block, and what `decoders` needs. Decompression bombs:
a shard yields at most MAX_RATIO times its own size, and at most MAX_BYTES; beyond that it counts as
damaged. Cost: that of the libraries.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import ShardDamaged
from pipeline.read.containers import problem_of
from pipeline.read.decoders import (
    BLOCK_BYTES,
    DECODERS,
    MAGIC,
    CorruptData,
    Decoder,
    Decoders,
    zstd_decoders,
)
from pipeline.read.warc.zstd_dictionary import zstd_dictionary

COMPRESSION_SUFFIXES = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
}

MAX_RATIO = 200
"""The most decompressed bytes per compressed byte. Text has 2 to 10, machine-made records up to
about 50. gzip can reach 1,029 and zstd 32,000."""

MAX_BYTES = 1 << 40
"""The most decompressed bytes of one shard: at 300 MB/s one reader needs an hour for them."""

_FREE_BYTES = 64 << 20
"""Decompressed bytes below which MAX_RATIO does not apply: they take a fraction of a second, and
the records of a tiny shard may all be alike."""

_READ_BYTES = 1 << 16
"""How much is read at a time. A member that ends returns the rest of this as a copy, and a shard
can have one member per record."""


class TrailingGarbage(ShardDamaged):
    """The data was complete and verified, but what follows it is not compressed data."""


def path_of(uri: str) -> str:
    """A URI up to its object's name: a web address without query and fragment. Elsewhere `?` and
    `#` belong to the name."""
    is_web = uri.lower().startswith(("http://", "https://"))
    return re.split("[?#]", uri, maxsplit=1)[0] if is_web else uri


def compression_of(uri: str) -> str | None:
    """gzip, zstd, bz2, xz, or None, by the last suffix of the path of `uri`."""
    lowered = path_of(uri).lower()
    return next(
        (name for suffix, name in COMPRESSION_SUFFIXES.items() if lowered.endswith(suffix)), None
    )


def without_compression_suffix(uri: str) -> str:
    """The path of `uri` before its compression suffix: `a.jsonl.gz` -> `a.jsonl`."""
    path = path_of(uri)
    return path.rpartition(".")[0] if compression_of(path) else path


def decompressed_blocks(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """The decompressed content of `file` from its current position, in non-empty blocks of at most
    BLOCK_BYTES; the content as it is when `uri` has no compression suffix.

    Raises ShardDamaged where compressed data is truncated, corrupt or a bomb, after everything
    before that position was delivered, and at once where the data is not what the suffix says.
    """
    compression = compression_of(uri)
    if compression is None:
        return iter(lambda: file.read(BLOCK_BYTES), b"")
    start = file.tell()
    compressed_bytes = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    decoders = DECODERS[compression]
    if compression == "zstd":
        decoders = zstd_decoders(zstd_dictionary(file))
        file.seek(start)
    blocks = _decoded(file, compression, decoders, uri, start + compressed_bytes)
    return _joined(blocks, compressed_bytes, uri)


def _joined(blocks: Iterator[bytes], compressed_bytes: int, uri: str) -> Iterator[bytes]:
    """Small blocks put together, because each becomes a table, up to the limit for a shard of
    `compressed_bytes`. Blocks before damage are delivered first."""
    max_bytes = min(MAX_BYTES, max(_FREE_BYTES, MAX_RATIO * compressed_bytes))
    pieces: list[bytes] = []
    piece_bytes = 0
    total_bytes = 0
    damage: ShardDamaged | None = None
    while True:
        block = b""
        try:
            block = next(blocks, b"")
        except ShardDamaged as error:
            damage = error
        if total_bytes + len(block) > max_bytes:
            block = block[: max_bytes - total_bytes]
            damage = ShardDamaged(
                f"{uri}: this may be a decompression bomb: {compressed_bytes} bytes decompress to "
                f"more than {max_bytes}. If the data is real, split or recompress it.",
                max_bytes,
            )
        total_bytes += len(block)
        if pieces and (damage or not block or piece_bytes + len(block) > BLOCK_BYTES):
            yield b"".join(pieces)
            pieces = []
            piece_bytes = 0
        if damage is not None:
            if block:
                yield block
            raise damage
        if not block:
            return
        pieces.append(block)
        piece_bytes += len(block)


def _decoded(
    file: BinaryIO, compression: str, decoders: Decoders, uri: str, end: int
) -> Iterator[bytes]:
    """The blocks of all members of `file`, as small as they come. end: its length in bytes."""
    decoder: Decoder | None = None
    total_bytes = 0
    n_members = 0
    while data := file.read(_READ_BYTES):
        # what cannot be decoded begins somewhere in these bytes
        unread_bytes = end - file.tell() + len(data)
        while data:
            if decoder is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                if not _starts_member(data, compression):
                    if not n_members:
                        raise ShardDamaged(f"{uri}: {_not_compressed(data, compression)}", 0)
                    raise TrailingGarbage(
                        f"{uri}: the {compression} data is complete, but what follows decompressed "
                        f"byte {total_bytes} is not {compression} data",
                        total_bytes,
                        end - file.tell() + len(data),
                    )
                decoder = decoders()
            try:
                for block in decoder.decode(data):
                    total_bytes += len(block)
                    yield block
            except CorruptData as error:
                raise ShardDamaged(
                    f"{uri}: corrupt {compression} data at decompressed byte {total_bytes}: "
                    f"{error}",
                    total_bytes,
                    # a checksum at the end of a member does not say which of its bytes are wrong
                    None if "check" in str(error) else unread_bytes,
                ) from error
            data = decoder.rest or b""
            if decoder.rest is not None:
                decoder = None
                n_members += 1
    if decoder is not None:
        raise ShardDamaged(
            f"{uri}: the {compression} data ends in the middle, at decompressed byte {total_bytes}",
            total_bytes,
        )


def _starts_member(data: bytes, compression: str) -> bool:
    """Whether `data`, which may be shorter than a magic number, can be the start of a member."""
    return any(data.startswith(magic[: len(data)]) for magic in MAGIC[compression])


def _not_compressed(data: bytes, compression: str) -> str:
    """What a shard is that should be compressed, and does not start so."""
    problem = (
        problem_of(data)
        or "is not compressed, or damaged at its start; if its lines can be "
        "read, take the suffix of the compression off its name"
    )
    return f"the shard is not {compression} data; it {problem}"
