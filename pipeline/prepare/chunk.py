"""Cuts documents into windows of whole sentences, each of at most `max_tokens` tokens.

Sentences end after 。！？ and . ! ? (with the brackets and quotation marks that close after them;
the Latin ones only before white space) and after a line end. They are packed greedily; a window
begins with the last sentences of the one before, up to `overlap_tokens`. A sentence over
`max_tokens` is cut by characters, at white space where some is near. Every character that is not
white space is in at least one chunk, and `text[char_start:char_end]` is the chunk.

Tokens are counted, never guessed, and always for a whole batch: the documents, then the sentences
of the long ones, then the finished windows. The tokens of a window can differ from the sum over its
sentences (a tokenizer can merge over the border), so a window that turns out too long is halved.
Cost: a long document is tokenized about three times; the cutting itself runs at about 10 MB/s.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CountTokens = Callable[[list[str]], npt.NDArray[np.int64]]
"""Takes N texts and returns their token counts (N,), without special tokens."""

_CLOSING = r"""」』）】〕〉》”’"')\]"""
_SENTENCE_END = re.compile(
    rf"(?:(?<![。！？｡])[。！？｡]++|．(?!\d))[{_CLOSING}]*+\s*+"
    rf"|(?<![.!?])[.!?]++[{_CLOSING}]*+\s++"  # looks at a run of stops once, however long it is
    r"|[\n\r\u2028\u2029]\s*+"
)
_WORD_END = re.compile(r"\S{1,8}+\s*+")

_FILL = 0.9
"""A sentence over the limit is cut into pieces of about this share of the limit, because tokens are
not spread evenly."""


class Chunks(NamedTuple):
    """M chunks, sorted by document and then by position.

    doc_index: (M,) row of the document. char_start, char_end: (M,) in code points, end exclusive.
    texts: (M,) string.
    """

    doc_index: npt.NDArray[np.int64]
    char_start: npt.NDArray[np.int64]
    char_end: npt.NDArray[np.int64]
    texts: pa.StringArray


_Piece = tuple[int, int, int]
"""A sentence or a piece of one: document, first character, end. A plain tuple, because a corpus has
millions."""


def chunk(
    texts: pa.StringArray | pa.ChunkedArray,
    count_tokens: CountTokens,
    *,
    max_tokens: int,
    overlap_tokens: int,
    boundary: str = "sentence",
) -> Chunks:
    """Cut N texts (no nulls) into windows of at most `max_tokens` tokens.

    A text that fits is one chunk (0, its length); the others give windows without outer white
    space. `overlap_tokens` is below `max_tokens`. boundary "token" packs words (or 8 characters of
    a script without spaces) instead of sentences. Every document has at least one chunk. Only a
    single character can be over `max_tokens`.
    """
    documents: list[str] = texts.to_pylist()
    is_long = np.asarray(count_tokens(documents)) > max_tokens if documents else np.zeros(0, bool)
    ends = _SENTENCE_END if boundary == "sentence" else _WORD_END
    pieces = [
        piece
        for doc in np.flatnonzero(is_long).tolist()
        for piece in _split(doc, documents[doc], ends)
    ]
    pieces, counts = _cut_long(documents, pieces, count_tokens, max_tokens)
    windows = _pack(pieces, counts, max_tokens, overlap_tokens)
    spans = _fitting(documents, pieces, windows, count_tokens, max_tokens)
    cut = {doc for doc, _, _ in spans}
    whole = ((doc, 0, len(text)) for doc, text in enumerate(documents) if doc not in cut)
    spans = sorted([*spans, *whole])
    doc_index, char_start, char_end = np.array(spans, np.int64).reshape(-1, 3).T
    chunk_texts = pa.array([documents[doc][start:end] for doc, start, end in spans], pa.string())
    return Chunks(doc_index, char_start, char_end, chunk_texts)


def _split(doc: int, text: str, pattern: re.Pattern[str]) -> list[_Piece]:
    """Pieces that lie end to end over the whole text, each up to the end of a match."""
    cuts = [0, *(match.end() for match in pattern.finditer(text))]
    if cuts[-1] < len(text):
        cuts.append(len(text))
    return [(doc, start, end) for start, end in itertools.pairwise(cuts)]


def _cut_long(
    documents: Sequence[str], pieces: list[_Piece], count_tokens: CountTokens, max_tokens: int
) -> tuple[list[_Piece], list[int]]:
    """Cut the pieces over `max_tokens` until none is, and give the tokens of each, counted without
    the outer white space, as it would be on its own."""
    counts = _count([documents[doc][start:end].strip() for doc, start, end in pieces], count_tokens)
    if not any(n_tokens > max_tokens for n_tokens in counts):
        return pieces, counts
    cut_pieces: list[_Piece] = []
    cut_counts: list[int] = []
    for piece, n_tokens in zip(pieces, counts, strict=True):
        shorter = [piece]
        shorter_counts = [n_tokens]
        if n_tokens > max_tokens and piece[2] - piece[1] > 1:
            shorter = _cut(documents[piece[0]], piece, n_tokens, max_tokens)
            shorter, shorter_counts = _cut_long(documents, shorter, count_tokens, max_tokens)
        cut_pieces += shorter
        cut_counts += shorter_counts
    return cut_pieces, cut_counts


def _count(texts: list[str], count_tokens: CountTokens) -> list[int]:
    counts: list[int] = np.asarray(count_tokens(texts)).tolist() if texts else []
    return counts


def _cut(text: str, piece: _Piece, n_tokens: int, max_tokens: int) -> list[_Piece]:
    """Pieces of equal length in characters, each moved back to a space when one is near."""
    doc, first, stop = piece
    n_chars = stop - first
    n_pieces = min(n_chars, max(2, math.ceil(n_tokens / (_FILL * max_tokens))))
    near = n_chars // n_pieces // 4
    cuts = [first]
    for number in range(1, n_pieces):
        cut = first + n_chars * number // n_pieces
        space = text.rfind(" ", cut - near, cut)
        cuts.append(cut if space < 0 else space + 1)
    return [(doc, start, end) for start, end in itertools.pairwise([*cuts, stop])]


def _pack(
    pieces: Sequence[_Piece], counts: Sequence[int], max_tokens: int, overlap_tokens: int
) -> list[tuple[int, int]]:
    """Ranges [first, stop) of pieces of one document, greedily filled, with overlap."""
    windows = []
    first = 0
    while first < len(pieces):
        doc = pieces[first][0]
        stop = first + 1
        total = counts[first]
        while stop < len(pieces) and pieces[stop][0] == doc and total + counts[stop] <= max_tokens:
            total += counts[stop]
            stop += 1
        windows.append((first, stop))
        last_first = first
        first = stop
        if stop == len(pieces) or pieces[stop][0] != doc:
            continue
        shared = 0
        while first - 1 > last_first and (more := shared + counts[first - 1]) <= overlap_tokens:
            if (
                more + counts[stop] > max_tokens
            ):  # the next window has to reach further than this one
                break
            first -= 1
            shared = more
    return windows


def _fitting(
    documents: Sequence[str],
    pieces: Sequence[_Piece],
    windows: list[tuple[int, int]],
    count_tokens: CountTokens,
    max_tokens: int,
) -> list[_Piece]:
    """The windows as characters, without outer white space; those over the limit halved, the blank
    ones dropped."""
    fitting: list[_Piece] = []
    while windows:
        spans = []
        texts = []
        for first, stop in windows:
            doc, start, _ = pieces[first]
            text = documents[doc][start : pieces[stop - 1][2]]
            texts.append(text.strip())
            start += len(text) - len(text.lstrip())
            spans.append((doc, start, start + len(texts[-1])))
        halves = []
        for (first, stop), span, n_tokens in zip(
            windows, spans, _count(texts, count_tokens), strict=True
        ):
            if n_tokens > max_tokens and stop - first > 1:
                middle = (first + stop) // 2
                halves += [(first, middle), (middle, stop)]
            elif span[1] < span[2]:
                fitting.append(span)
        windows = halves
    fitting.sort(key=lambda span: (span[0], span[1], -span[2]))
    distinct: list[_Piece] = []
    for span in fitting:  # a half can lie within the overlap of its neighbour
        if not distinct or distinct[-1][0] != span[0] or span[2] > distinct[-1][2]:
            distinct.append(span)
    return distinct
