"""Decoders of one gzip member, zstd frame, bzip2 stream or xz stream, for `compression`, and of the
content codings of HTTP, for `http_body`.

Compressed bytes go in as they are read, and every byte that can be decoded comes out before
`CorruptData` is raised. Python's own file classes raise first and lose the output of the call that
fails.

Memory: one block of output, and the window of zstd or xz, WINDOW_BYTES at most. All but zstd bound
the output of a call. zstd cannot, so it is given 512 bytes at a time, which is at most 16 MiB of
output (a block of 128 KiB takes at least 4 bytes).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from pipeline.errors import SpecError

BLOCK_BYTES = 1 << 20
"""The largest block, in bytes, that a decoder yields."""

WINDOW_BYTES = 128 << 20
"""How far back, in bytes, a zstd or xz decoder may refer. 128 MiB is what `zstd --long=27` needs
and the most that zstd itself accepts by default; `xz -9` needs half of it. A header can claim
gigabytes."""

_ZSTD_PIECE_BYTES = 512
_PIECE_BYTES = 8 << 10
"""How much input a call of bzip2 or xz gets, and one of gzip when it is replayed. The call that
fails loses its output, so it is kept small."""


class CorruptData(Exception):
    """The library rejects the data. Its message is that of the library."""


class Decoder(ABC):
    """Decodes one member from its first byte.

    rest: the input behind the end of the member; None until the end is reached.
    """

    rest: bytes | None = None

    @abstractmethod
    def decode(self, data: bytes) -> Iterator[bytes]:
        """The output of the next piece of input, in non-empty blocks. Raises CorruptData after
        everything that can be decoded."""
        ...


Decoders = Callable[[], Decoder]


class _DeflateDecoder(Decoder):
    """zlib drops the output of a call that fails, so each call starts from a copy that can be
    replayed in small steps. wbits: the container, as zlib counts them."""

    def __init__(self, wbits: int) -> None:
        self._decoder = zlib.decompressobj(wbits)

    def decode(self, data: bytes) -> Iterator[bytes]:
        block = b"more"
        # A call without input gives what the previous call held back.
        while (data or block) and not self._decoder.eof:
            before = self._decoder.copy()
            try:
                block = self._decoder.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                yield from _replayed(before, data)
                raise CorruptData(str(error)) from error
            if block:
                yield block
            data = self._decoder.unconsumed_tail
        if self._decoder.eof:
            self.rest = self._decoder.unused_data


def _replayed(decoder: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What `decoder` makes of `data` before it fails: in pieces, and the piece that fails byte by
    byte."""
    piece_bytes = _PIECE_BYTES
    start = 0
    while start < len(data):
        before = decoder.copy()
        try:
            block = decoder.decompress(data[start : start + piece_bytes])
        except zlib.error:
            if piece_bytes == 1:
                return
            decoder = before
            piece_bytes = 1
            continue
        if block:
            yield block
        start += piece_bytes


class _PiecewiseDecoder(Decoder):
    """zstd, bzip2 and xz lose the output of the call that fails, so each call gets little input.

    bzip2 and xz accept a limit on their output, keep the input they have not used, and report when
    they need more. zstd does none of this.
    """

    def __init__(self, decoder: Any, piece_bytes: int) -> None:
        self._decoder = decoder
        self._piece_bytes = piece_bytes
        self._output_limit = (BLOCK_BYTES,) if hasattr(decoder, "needs_input") else ()

    def decode(self, data: bytes) -> Iterator[bytes]:
        decoder = self._decoder
        for start in range(0, len(data), self._piece_bytes):
            stop = start + self._piece_bytes
            piece = data[start:stop]
            while True:
                try:
                    output = decoder.decompress(piece, *self._output_limit)
                # bz2 raises OSError for corrupt data
                except (OSError, ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
                    raise CorruptData(str(error)) from error
                for block_start in range(0, len(output), BLOCK_BYTES):
                    yield output[block_start : block_start + BLOCK_BYTES]
                if decoder.eof:
                    self.rest = decoder.unused_data + data[stop:]
                    return
                if not self._output_limit or decoder.needs_input:
                    break
                piece = b""


class _BrotliDecoder(Decoder):
    """brotli takes no input while it holds output back, and does not return what follows its data:
    that is dropped."""

    def __init__(self) -> None:
        try:
            import brotli
        except ImportError as error:
            raise SpecError(
                "a WARC response has Content-Encoding br, and brotli is not installed. Install "
                "corpus-embed[warc], or read WET shards."
            ) from error
        self._decoder = brotli.Decompressor()
        self._error = brotli.error

    def decode(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            while piece or not self._decoder.can_accept_more_data():
                try:
                    block = self._decoder.process(piece, output_buffer_limit=BLOCK_BYTES)
                except self._error as error:
                    raise CorruptData(f"brotli: {error}") from error
                if block:
                    yield block
                if self._decoder.is_finished():
                    self.rest = b""
                    return
                piece = b""


def zstd_decoders(dictionary: zstandard.ZstdCompressionDict | None = None) -> Decoders:
    """A new decoder for each frame of a shard whose frames may need `dictionary`."""

    def decoder() -> Decoder:
        decompressor = zstandard.ZstdDecompressor(dictionary, max_window_size=WINDOW_BYTES)
        return _PiecewiseDecoder(decompressor.decompressobj(), _ZSTD_PIECE_BYTES)

    return decoder


def _bz2_decoder() -> Decoder:
    return _PiecewiseDecoder(bz2.BZ2Decompressor(), _PIECE_BYTES)


def _xz_decoder() -> Decoder:
    # The limit is on all of the decoder's memory, of which the window is nearly everything.
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, WINDOW_BYTES + (1 << 20))
    return _PiecewiseDecoder(decompressor, _PIECE_BYTES)


DECODERS: dict[str, Decoders] = {
    "gzip": lambda: _DeflateDecoder(31),
    "zlib": lambda: _DeflateDecoder(15),
    "raw deflate": lambda: _DeflateDecoder(-15),
    "br": _BrotliDecoder,
    "zstd": zstd_decoders(),
    "bz2": _bz2_decoder,
    "xz": _xz_decoder,
}
"""A new decoder for each compression; zlib, raw deflate and br are found in HTTP only."""

MAGIC = {
    "gzip": [b"\x1f\x8b"],
    "zstd": [b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))],
    "bz2": [b"BZh"],
    "xz": [b"\xfd7zXZ\0"],
}
"""The first bytes of a member of each compression; zstd has 16 more for frames to skip."""
