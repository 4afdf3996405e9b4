"""The windows of one long document, as ranges of its characters.

In: a text, and where its sentences end. Out: windows of at most `max_tokens` tokens. Sentences are
packed greedily by the sums of their tokens, and the finished windows counted again. Everything that
there is of each piece of the text lies in an array; strings exist only for the few thousand that
are being counted. Cost: a document is tokenized about twice here; at most 16 bytes a piece.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.prepare.text_slices import Ranges

CountTokens = Callable[[list[str]], npt.NDArray[np.int64]]
"""Takes N texts and returns their token counts (N,), without special tokens."""

_FILL = 0.9
"""A sentence over the limit is cut into pieces of about this share of the limit, because tokens are
not spread evenly."""

_COUNTED_TEXTS = 8192
_COUNTED_CHARS = 1 << 18
"""How many texts, and about how many characters, are counted at once: each is a string."""

_BLOCK = 1 << 16
"""How many numbers of an array are Python objects at once."""

Numbers = npt.NDArray[np.int32]
Cuts = Numbers
"""(K + 1,) characters at which the K pieces of a document begin, and its end."""


def windows_of(
    text: str,
    count_tokens: CountTokens,
    sentence_end: re.Pattern[str],
    max_tokens: int,
    overlap_tokens: int,
) -> Ranges:
    """The windows of a document; none where it is blank."""
    ends = (match.end() for match in sentence_end.finditer(text))
    cuts = _array(itertools.chain([0], ends))
    if cuts[-1] < len(text):
        cuts = np.append(cuts, np.int32(len(text)))
    cuts, counts = _cut_long(text, cuts, count_tokens, max_tokens)
    windows = _array(itertools.chain.from_iterable(_packed(counts, max_tokens, overlap_tokens)))
    del counts
    return _fitting(text, cuts, windows.reshape(-1, 2), count_tokens, max_tokens)


def joined(arrays: Sequence[Ranges]) -> Ranges:
    """Arrays one after the other; a copy only where more than one has rows."""
    filled = [array for array in arrays if len(array)]
    return filled[0] if len(filled) == 1 else np.concatenate(arrays)


def counts_of(texts: Iterable[str], count_tokens: CountTokens) -> Numbers:
    """(N,) tokens of texts, counted in batches of a bounded number of texts and characters."""
    counts = [np.zeros(0, np.int32)]
    batch: list[str] = []
    n_chars = 0
    for text in texts:
        batch.append(text)
        n_chars += len(text)
        if n_chars >= _COUNTED_CHARS or len(batch) == _COUNTED_TEXTS:
            counts.append(np.asarray(count_tokens(batch)).astype(np.int32))
            batch = []
            n_chars = 0
    if batch:
        counts.append(np.asarray(count_tokens(batch)).astype(np.int32))
    return np.concatenate(counts)


def _array(numbers: Iterable[int]) -> Numbers:
    """(N,) int32 from an iterator, without a Python object for each of its numbers."""
    return np.asarray(memoryview(array("i", numbers)), np.int32)


def _integers(numbers: Numbers) -> Iterator[int]:
    for first in range(0, len(numbers), _BLOCK):
        yield from numbers[first : first + _BLOCK].tolist()


def _pairs(starts: Numbers, ends: Numbers) -> Iterator[tuple[int, int]]:
    return zip(_integers(starts), _integers(ends), strict=True)


def _count_pieces(text: str, starts: Numbers, ends: Numbers, count_tokens: CountTokens) -> Numbers:
    """The tokens of some pieces, each without outer white space, as it would be on its own."""
    stripped = (text[start:end].strip() for start, end in _pairs(starts, ends))
    return counts_of(stripped, count_tokens)


def _cut_long(
    text: str, cuts: Cuts, count_tokens: CountTokens, max_tokens: int
) -> tuple[Cuts, Numbers]:
    """Cut the pieces over `max_tokens` until none is, and give the tokens of each."""
    counts = _count_pieces(text, cuts[:-1], cuts[1:], count_tokens)
    while True:
        is_long = (counts > max_tokens) & (np.diff(cuts) > 1)
        if not is_long.any():
            return cuts, counts
        bounds = (cuts[:-1][is_long], cuts[1:][is_long])
        n_pieces = np.ones(len(counts), np.int32)
        n_pieces[is_long] = _n_pieces(bounds[1] - bounds[0], counts[is_long], max_tokens)
        pieces = zip(_pairs(*bounds), _integers(n_pieces[is_long]), strict=True)
        inner = _array(
            itertools.chain.from_iterable(
                _inner_cuts(text, first, stop, number) for (first, stop), number in pieces
            )
        )
        del bounds
        cuts = np.concatenate([cuts, inner])
        del inner
        cuts.sort()  # each lies within its piece
        counts = np.repeat(counts, n_pieces)
        is_new = np.repeat(is_long, n_pieces)
        counts[is_new] = _count_pieces(text, cuts[:-1][is_new], cuts[1:][is_new], count_tokens)


def _n_pieces(n_chars: Numbers, n_tokens: Numbers, max_tokens: int) -> Numbers:
    """(K,) into how many pieces each of K long ones is cut."""
    n_pieces = np.maximum(2, np.ceil(n_tokens / (_FILL * max_tokens)))
    return np.minimum(n_chars, n_pieces).astype(np.int32)


def _inner_cuts(text: str, first: int, stop: int, n_pieces: int) -> Iterator[int]:
    """Where a piece is cut into `n_pieces` of equal length in characters, each cut moved back to a
    space when one is near."""
    n_chars = stop - first
    near = n_chars // n_pieces // 4
    for number in range(1, n_pieces):
        cut = first + n_chars * number // n_pieces
        space = text.rfind(" ", cut - near, cut)
        yield cut if space < 0 else space + 1


def _packed(counts: Numbers, max_tokens: int, overlap_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of pieces, greedily filled, with overlap; each reaches further than the one before.
    counts: (K,) tokens of the pieces."""
    n_pieces = len(counts)
    is_small = counts.sum(dtype=np.int64) < np.iinfo(np.int32).max
    sums = np.zeros(n_pieces + 1, np.int32 if is_small else np.int64)  # tokens before each piece
    np.cumsum(counts, out=sums[1:])

    def place(n_tokens: int, side: Literal["left", "right"]) -> int:
        # of the type of `sums`, which numpy would otherwise copy to another one for each search
        return int(np.searchsorted(sums, sums.dtype.type(min(n_tokens, sums[-1])), side))

    first = 0
    while first < n_pieces:
        stop = max(first + 1, place(int(sums[first]) + max_tokens, "right") - 1)
        yield first, stop
        if stop == n_pieces:
            return
        # the next window has to reach further than this one
        shared = min(overlap_tokens, max_tokens - int(counts[stop]))
        first = min(stop, max(first + 1, place(int(sums[stop]) - shared, "left")))


def _fitting(
    text: str, cuts: Cuts, windows: Ranges, count_tokens: CountTokens, max_tokens: int
) -> Ranges:
    """The windows (ranges of pieces) as characters, without outer white space; those over the limit
    halved, the blank ones dropped."""
    fitting = [np.zeros((0, 2), np.int32)]
    while len(windows):
        bounds = _pairs(cuts[windows[:, 0]], cuts[windows[:, 1]])
        trimmed = _array(itertools.chain.from_iterable(_trimmed(text, *pair) for pair in bounds))
        trimmed = trimmed.reshape(-1, 2)
        texts = (text[start:end] for start, end in _pairs(trimmed[:, 0], trimmed[:, 1]))
        is_long = counts_of(texts, count_tokens) > max_tokens
        is_long &= np.diff(windows)[:, 0] > 1
        fitting.append(trimmed[~is_long & (trimmed[:, 0] < trimmed[:, 1])])
        windows = _halves(windows[is_long])
        del trimmed
    spans = joined(fitting)
    del fitting
    is_in_order = (spans[1:, 0] > spans[:-1, 0]) | (
        (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] <= spans[:-1, 1])
    )
    if not is_in_order.all():  # a half can lie within the overlap of its neighbour
        spans = spans[np.lexsort((-spans[:, 1], spans[:, 0]))]
    reached = np.maximum.accumulate(np.append(np.int32(-1), spans[:-1, 1]))[: len(spans)]
    is_further = spans[:, 1] > reached
    return spans if is_further.all() else spans[is_further]


def _halves(windows: Ranges) -> Ranges:
    middles = windows.sum(axis=1, dtype=np.int32) // 2
    columns = [windows[:, 0], middles, middles, windows[:, 1]]
    return np.stack(columns, axis=1).reshape(-1, 2)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without outer white space; empty where it is blank."""
    window = text[start:end]
    start += len(window) - len(window.lstrip())
    return start, start + len(window.strip())
