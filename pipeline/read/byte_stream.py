"""Blocks of bytes as a stream with a position, for formats whose records say how long they are.
Used by `warc`."""

from __future__ import annotations

from collections.abc import Iterator


class ByteStream:
    """Bytes with a position, over blocks; holds no more than it is asked for and one block."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._buffer = bytearray()
        # needle -> position before which it is not: no byte is searched twice
        self._clear: dict[bytes, int] = {}
        self.position = 0

    def fill(self, n_bytes: int) -> bool:
        """Have `n_bytes` in the buffer; False at the end of the data."""
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
        """Pass over `n_bytes`; False when the data ends before."""
        while n_bytes:
            if not self.fill(1):
                return False
            step = min(n_bytes, len(self._buffer))
            self._drop(step)
            n_bytes -= step
        return True

    def skip_any(self, unwanted: bytes) -> None:
        """Pass over all bytes that are one of `unwanted`."""
        while self.fill(1):
            n_left = len(self._buffer.lstrip(unwanted))
            self._drop(len(self._buffer) - n_left)
            if n_left:
                return

    def find(self, needle: bytes, limit: int) -> int:
        """Place of `needle` within the next `limit` bytes, or -1."""
        at = max(0, self._clear.get(needle, 0) - self.position)
        while (found := self._buffer.find(needle, at, limit)) < 0:
            at = max(at, min(len(self._buffer), limit) - len(needle) + 1)
            self._clear[needle] = self.position + at
            if len(self._buffer) >= limit or not self.fill(len(self._buffer) + 1):
                break
        return found

    def skip_to_line(self, first_bytes: bytes, step: int) -> None:
        """On to the next line that starts with `first_bytes`, or to the end, looking at `step`
        bytes at a time."""
        needle = b"\n" + first_bytes
        while (found := self.find(needle, step)) < 0:
            if not self.skip(step - len(needle)):
                return
        self._drop(found + 1)

    def _drop(self, n_bytes: int) -> None:
        del self._buffer[:n_bytes]
        self.position += n_bytes
