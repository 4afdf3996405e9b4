"""Blocks of bytes as a stream with a position, for `warc`, whose records state their length."""

from __future__ import annotations

from collections.abc import Iterator


class ByteStream:
    """Bytes with a position, over blocks. It holds one block more than a caller asks for.

    position: offset of the next byte, from the start of the stream.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._buffer = bytearray()
        # needle -> position before which it does not start: no byte is searched twice
        self._clear: dict[bytes, int] = {}
        self.position = 0

    def fill(self, n_bytes: int) -> bool:
        """Load `n_bytes` into the buffer; False when the data ends before that."""
        while len(self._buffer) < n_bytes:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._buffer += block
        return True

    def peek(self, n_bytes: int) -> bytes:
        self.fill(n_bytes)
        return bytes(self._buffer[:n_bytes])

    def take(self, n_bytes: int) -> bytes:
        data = self.peek(n_bytes)
        self._drop(len(data))
        return data

    def skip(self, n_bytes: int) -> bool:
        """Skip `n_bytes`; False when the data ends before that."""
        while n_bytes:
            if not self.fill(1):
                return False
            step = min(n_bytes, len(self._buffer))
            self._drop(step)
            n_bytes -= step
        return True

    def skip_any(self, unwanted: bytes) -> None:
        """Skip the next bytes as long as each is one of `unwanted`."""
        while self.fill(1):
            n_kept = len(self._buffer.lstrip(unwanted))
            self._drop(len(self._buffer) - n_kept)
            if n_kept:
                return

    def find(self, needle: bytes, limit: int) -> int:
        """Index of `needle` within the next `limit` bytes, or -1."""
        start = max(0, self._clear.get(needle, 0) - self.position)
        while (index := self._buffer.find(needle, start, limit)) < 0:
            start = max(start, min(len(self._buffer), limit) - len(needle) + 1)
            self._clear[needle] = self.position + start
            if len(self._buffer) >= limit or not self.fill(len(self._buffer) + 1):
                break
        return index

    def skip_to_line(self, first_bytes: bytes, step: int) -> None:
        """Skip to the next line that starts with `first_bytes`, or to the end of the data, in steps
        of `step` bytes."""
        needle = b"\n" + first_bytes
        while (index := self.find(needle, step)) < 0:
            if not self.skip(step - len(needle)):
                return
        self._drop(index + 1)

    def _drop(self, n_bytes: int) -> None:
        del self._buffer[:n_bytes]
        self.position += n_bytes
