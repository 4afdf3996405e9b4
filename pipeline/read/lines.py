r"""Lines of a shard with their byte offsets, in batches, for JSONL, text and CSV.

A line ends at \n and nowhere else (U+2028, form feed and a lone \r are text); a \r before the \n is
not part of the line. A byte-order mark at offset 0 belongs to the first line's bytes and not to its
content. A line of more than `max_record_bytes` is skipped block by block and reported by its length
alone.

Spans: a line belongs to the span that holds its first byte. A reader that starts in the middle
therefore looks one byte back, and skips to the first line that starts inside; a reader that stops
in the middle reads its last line to the end. The spans of a shard give exactly its lines, wherever
it is cut.

Method: one `bytes.split` per block of 1 MiB, offsets by cumulative sum; no Python per line. Memory:
a block, plus a line of up to `max_record_bytes` while its pieces are collected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import ShardDamaged
from pipeline.read.compression import TrailingGarbage, compression_of, decompressed_blocks
from pipeline.read.containers import problem_of
from pipeline.storage.lineage import Shard, Span

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBatch:
    """N lines in order.

    lines: their content; b"" for a line over the limit. starts: (N,) offset of the first byte of
    each in the decompressed shard. n_bytes: (N,) true length of each, without the line end.
    """

    lines: list[bytes]
    starts: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]

    def select(self, keep: npt.NDArray[np.bool_]) -> LineBatch:
        lines = [line for line, kept in zip(self.lines, keep.tolist(), strict=True) if kept]
        return LineBatch(lines, self.starts[keep], self.n_bytes[keep])

    def without_blank(self) -> LineBatch:
        """Without the lines that are only ASCII white space, which are not records."""
        # An empty line with a length is a byte-order mark alone (3 bytes) or over the limit.
        is_long = (self.n_bytes > len(BYTE_ORDER_MARK)).tolist()
        pairs = zip(self.lines, is_long, strict=True)
        return self.select(
            np.array([not line.isspace() if line else long for line, long in pairs], bool)
        )


def line_spans(shard: Shard, part_bytes: int) -> list[Span]:
    """Byte ranges of `part_bytes`, the last one open-ended; the whole shard when it is small or
    compressed."""
    if compression_of(shard.uri) or shard.size_bytes <= part_bytes:
        return [Span(shard=shard)]
    cuts = [*range(0, shard.size_bytes, part_bytes), None]
    return [
        Span(shard=shard, start=start or 0, stop=stop) for start, stop in itertools.pairwise(cuts)
    ]


def read_lines(
    file: BinaryIO,
    span: Span,
    max_record_bytes: int,
    problem_of: Callable[[bytes], str | None] = problem_of,
    keeps_returns: bool = False,
) -> Iterator[LineBatch]:
    """The lines that start in `span`, in non-empty batches of about 1 MiB.

    file: raw and seekable. problem_of: what is wrong with a shard by its first block.
    keeps_returns: whether the content of a line keeps the \\r of its end. Raises
    ShardDamaged after every whole line before the damage, and at once for a shard with such a
    problem, if the span starts with it (see `starts_wrong` for the others).
    """
    start = max(span.start - 1, 0)
    file.seek(start)
    lines = _Lines(max_record_bytes, start, span.start > 0, keeps_returns)
    blocks = decompressed_blocks(file, span.shard.uri)
    garbage: TrailingGarbage | None = None
    is_start = span.start == 0
    while span.stop is None or lines.next_start < span.stop:
        block = None
        try:
            block = next(blocks, None)
        except TrailingGarbage as error:
            garbage = error  # the data before it is complete, and so is its last line
        if block is not None and is_start and (problem := problem_of(block)):
            raise ShardDamaged(f"{span.shard.uri}: the shard {problem}", 0)
        is_start = False
        batch = lines.last() if block is None else lines.add(block)
        if span.stop is not None and len(batch.starts) and batch.starts[-1] >= span.stop:
            batch = batch.select(batch.starts < span.stop)
        if batch.lines:
            yield batch
        if block is None:
            break
    if garbage is not None:
        raise garbage


def starts_wrong(
    file: BinaryIO, span: Span, problem_of: Callable[[bytes], str | None] = problem_of
) -> bool:
    """Whether a span that starts in the middle belongs to a shard that `read_lines` refuses.

    A reader asks it when it meets bad lines in its first batch. Cost: one block read again.
    """
    if span.start == 0:
        return False
    position = file.tell()
    file.seek(0)
    first_block = next(decompressed_blocks(file, span.shard.uri), b"")
    file.seek(position)
    return problem_of(first_block) is not None


class _Lines:
    """Joins the pieces of lines that extend over several blocks.

    next_start: offset of the first line that `add` has not returned yet.
    """

    def __init__(
        self, max_record_bytes: int, start: int, skip_first: bool, keeps_returns: bool
    ) -> None:
        self._max_bytes = max_record_bytes
        # Of the line that is not finished yet; empty once it is over the limit.
        self._pieces: list[bytes] = []
        self._n_pending = 0
        self._skip_first = skip_first
        self._keeps_returns = keeps_returns
        self._saw_return = False
        self.next_start = start

    def add(self, block: bytes) -> LineBatch:
        """The lines that end in `block`."""
        self._saw_return = self._saw_return or b"\r" in block
        first_end = block.find(b"\n")
        if first_end < 0:
            self._keep(block)
            return _batch([], [], self.next_start)
        last_end = block.rfind(b"\n")
        self._keep(block[:first_end])
        lines = [b"".join(self._pieces)]
        lengths = [self._n_pending]
        if last_end > first_end:
            whole = block[first_end + 1 : last_end].split(b"\n")
            lines += whole
            lengths += map(len, whole)
        self._pieces = []
        self._n_pending = 0
        return self._finish(lines, lengths, block[last_end + 1 :])

    def last(self) -> LineBatch:
        """The unfinished line at the end of the shard, if any."""
        return self.add(b"\n") if self._n_pending else _batch([], [], self.next_start)

    def _keep(self, piece: bytes) -> None:
        self._n_pending += len(piece)
        # One byte more than the limit: the \r of a line end does not count.
        self._pieces = [*self._pieces, piece] if self._n_pending <= self._max_bytes + 1 else []

    def _finish(self, lines: list[bytes], lengths: list[int], rest: bytes) -> LineBatch:
        start = self.next_start
        self.next_start += sum(lengths) + len(lines)
        self._keep(rest)
        if self._skip_first:
            start += lengths[0] + 1
            self._skip_first = False
            lines = lines[1:]
            lengths = lengths[1:]
        return self._cleaned(_batch(lines, lengths, start))

    def _cleaned(self, batch: LineBatch) -> LineBatch:
        """The batch without \r, unless it is kept, without the byte-order mark and the content of
        lines over the limit."""
        lines = batch.lines
        n_bytes = batch.n_bytes
        if self._saw_return:
            n_bytes = n_bytes - np.fromiter(
                (line.endswith(b"\r") for line in lines), np.int64, len(lines)
            )
            if not self._keeps_returns:
                lines = [line.removesuffix(b"\r") for line in lines]
        if len(lines) and batch.starts[0] == 0:
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        for row in np.flatnonzero(n_bytes > self._max_bytes):
            lines[row] = b""
        return LineBatch(lines, batch.starts, n_bytes)


def _batch(lines: list[bytes], lengths: list[int], start: int) -> LineBatch:
    n_bytes = np.array(lengths, np.int64)
    ends = np.cumsum(n_bytes + 1)
    return LineBatch(lines, start + ends - n_bytes - 1, n_bytes)
