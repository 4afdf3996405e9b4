"""Slices of texts as an Arrow column that copies none of them: views into the texts' own bytes.

In: texts, and ranges of their characters. Out: a string_view array, 16 bytes a slice. Source: the
Arrow columnar format, "Variable-size Binary View Layout". Cost: one look at each byte; memory for
the slices alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ranges = npt.NDArray[np.int32]
"""(M, 2) first positions and ends of M slices."""

_INLINE_BYTES = 12
"""Slices up to this length lie in the view itself."""
_BLOCK = 1 << 16
"""How many bytes, or slices, are looked at together."""


class TextSlices:
    """The bytes of N texts (string, without nulls), of which slices are taken."""

    def __init__(self, texts: pa.StringArray) -> None:
        _, offsets, data = texts.buffers()
        first = texts.offset
        self._data = pa.py_buffer(b"") if data is None else data
        self._bytes = np.frombuffer(self._data, np.uint8)
        self._offsets = np.frombuffer(offsets, np.int32)[first : first + len(texts) + 1]

    def byte_ranges(self, text: int, chars: Ranges) -> Ranges:
        """Positions in the data buffer of slices of one text, given in characters; neither their
        starts nor their ends go back."""
        first, stop = self._offsets[text : text + 2].tolist()
        positions = np.full_like(chars, stop)
        n_chars = 0
        for start in range(first, stop, _BLOCK):
            block = self._bytes[start : min(start + _BLOCK, stop)]
            # a byte that does not continue a character begins one
            begins = np.flatnonzero((block & 0xC0) != 0x80)
            for column in (0, 1):
                low, high = np.searchsorted(chars[:, column], [n_chars, n_chars + len(begins)])
                of_block = chars[low:high, column] - n_chars
                positions[low:high, column] = start + begins[of_block]
            n_chars += len(begins)
        return positions

    def views(self, ranges: Ranges) -> pa.StringViewArray:
        """(M,) string_view over ranges of the data buffer."""
        views = np.zeros((len(ranges), 16), np.uint8)
        for first in range(0, len(ranges), _BLOCK):
            self._fill(views[first : first + _BLOCK], ranges[first : first + _BLOCK])
        buffers = [None, pa.py_buffer(views), self._data]
        return pa.Array.from_buffers(pa.string_view(), len(ranges), buffers)

    def _fill(self, views: npt.NDArray[np.uint8], ranges: Ranges) -> None:
        """views: (M, 16) zeros: the length; then a short slice itself, or the first four bytes of a
        long one, the number of its buffer, which is 0, and its position there."""
        starts = ranges[:, 0]
        lengths = ranges[:, 1] - starts
        views[:, :4] = _four_bytes(lengths)
        is_short = lengths <= _INLINE_BYTES
        for index in range(_INLINE_BYTES):
            has_byte = (lengths > index) & (is_short | (index < 4))
            views[has_byte, 4 + index] = self._bytes[starts[has_byte] + index]
        views[~is_short, 12:] = _four_bytes(starts[~is_short])


def _four_bytes(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 4)
