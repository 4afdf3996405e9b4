"""Chunking: documents in, windows of whole sentences out, each of at most `max_tokens` tokens.

Sentences end after 。！？ and . ! ? (with the brackets and quotation marks that close after them; the Latin ones only
before white space) and after a line end. They are packed greedily; a window begins with the last sentences of the one
before, up to `overlap_tokens`. A sentence over `max_tokens` is cut by characters, at white space where there is some
near. Every character that is not white space is in at least one chunk, and `text[char_start:char_end]` is the chunk.

Tokens are counted, never guessed, and always for a whole batch: the documents, then the sentences of the long ones, then
the finished windows. The tokens of a window can differ from the sum over its sentences (a tokenizer may merge over the
border), so a window that turns out too long is halved. Cost: a long document is tokenized about three times.
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
"""Texts to (N,) token counts without special tokens."""

_CLOSING = r"""」』）】〕〉》”’"')\]"""
_SENTENCE_END = re.compile(
    rf"(?:(?<![。！？｡])[。！？｡]++|．(?!\d))[{_CLOSING}]*+\s*+"
    rf"|(?<![.!?])[.!?]++[{_CLOSING}]*+\s++"  # looks at a run of stops once, however long it is
    r"|[\n\r\u2028\u2029]\s*+"
)
_WORD_END = re.compile(r"\S{1,8}+\s*+")

_FILL = 0.9
"""A sentence over the limit is cut into pieces of about this share of it, because tokens are not spread evenly."""


class Chunks(NamedTuple):
    """M chunks in the order of their documents, then of their place. doc_index: (M,) row of the document; char_start,
    char_end: (M,) code points, end exclusive; texts: (M,) string."""

    doc_index: npt.NDArray[np.int64]
    char_start: npt.NDArray[np.int64]
    char_end: npt.NDArray[np.int64]
    texts: pa.StringArray


class _Piece(NamedTuple):
    """A sentence, or a part of one: characters [start, end) of document `doc`."""

    doc: int
    start: int
    end: int


def chunk(
    texts: pa.StringArray | pa.ChunkedArray,
    count_tokens: CountTokens,
    *,
    max_tokens: int,
    overlap_tokens: int,
    boundary: str = "sentence",
) -> Chunks:
    """Cut N texts (no nulls) into windows of at most `max_tokens` tokens.

    A text that fits is one chunk (0, its length); the others give windows without outer white space. `overlap_tokens` is
    below `max_tokens`. boundary "token" packs words (or 8 characters of a script without spaces) instead of sentences.
    Every document has at least one chunk. Only a single character can be over `max_tokens`.
    """
    documents: list[str] = texts.to_pylist()
    is_long = np.asarray(count_tokens(documents)) > max_tokens if documents else np.zeros(0, bool)
    ends = _SENTENCE_END if boundary == "sentence" else _WORD_END
    pieces = [
        piece for doc in np.flatnonzero(is_long).tolist() for piece in _split(doc, documents[doc], ends)
    ]
    pieces, counts = _cut_long(documents, pieces, count_tokens, max_tokens)
    windows = _pack(pieces, counts, max_tokens, overlap_tokens)
    spans = _fitting(documents, pieces, windows, count_tokens, max_tokens)
    whole = [_Piece(doc, 0, len(documents[doc])) for doc in range(len(documents))]
    cut = {span.doc for span in spans}
    spans = sorted([*spans, *(piece for piece in whole if piece.doc not in cut)])
    doc_index, char_start, char_end = np.array(spans, np.int64).reshape(-1, 3).T
    chunk_texts = pa.array([_text(documents, span) for span in spans], pa.string())
    return Chunks(doc_index, char_start, char_end, chunk_texts)


def _text(documents: Sequence[str], piece: _Piece) -> str:
    return documents[piece.doc][piece.start : piece.end]


def _split(doc: int, text: str, pattern: re.Pattern[str]) -> list[_Piece]:
    """Pieces that lie end to end over the whole text, each up to the end of a match."""
    cuts = [0, *(match.end() for match in pattern.finditer(text))]
    if cuts[-1] < len(text):
        cuts.append(len(text))
    return [_Piece(doc, start, end) for start, end in itertools.pairwise(cuts)]


def _cut_long(
    documents: Sequence[str], pieces: list[_Piece], count_tokens: CountTokens, max_tokens: int
) -> tuple[list[_Piece], list[int]]:
    """Cut the pieces over `max_tokens` until none is, and give the tokens of each."""
    counts: dict[_Piece, int] = {}
    while new := [piece for piece in pieces if piece not in counts]:
        counts |= zip(new, _count(documents, new, count_tokens), strict=True)
        pieces = [part for piece in pieces for part in _cut(documents, piece, counts[piece], max_tokens)]
    return pieces, [counts[piece] for piece in pieces]


def _count(documents: Sequence[str], pieces: list[_Piece], count_tokens: CountTokens) -> list[int]:
    """Tokens of each piece without its outer white space, as it would be on its own."""
    found: list[int] = np.asarray(
        count_tokens([_text(documents, piece).strip() for piece in pieces])
    ).tolist()
    return found


def _cut(documents: Sequence[str], piece: _Piece, n_tokens: int, max_tokens: int) -> list[_Piece]:
    """Equal parts by characters, each moved back to a space when one is near."""
    n_chars = piece.end - piece.start
    if n_tokens <= max_tokens or n_chars == 1:
        return [piece]
    n_parts = min(n_chars, max(2, math.ceil(n_tokens / (_FILL * max_tokens))))
    near = n_chars // n_parts // 4
    cuts = [piece.start]
    for part in range(1, n_parts):
        cut = piece.start + n_chars * part // n_parts
        space = documents[piece.doc].rfind(" ", cut - near, cut)
        cuts.append(cut if space < 0 else space + 1)
    return [_Piece(piece.doc, start, end) for start, end in itertools.pairwise([*cuts, piece.end])]


def _pack(
    pieces: Sequence[_Piece], counts: Sequence[int], max_tokens: int, overlap_tokens: int
) -> list[tuple[int, int]]:
    """Runs [first, stop) of pieces of one document, greedily filled, with overlap."""
    windows = []
    first = 0
    while first < len(pieces):
        doc, stop, total = pieces[first].doc, first + 1, counts[first]
        while stop < len(pieces) and pieces[stop].doc == doc and total + counts[stop] <= max_tokens:
            total += counts[stop]
            stop += 1
        windows.append((first, stop))
        last_first, first = first, stop
        if stop == len(pieces) or pieces[stop].doc != doc:
            continue
        shared = 0
        while first - 1 > last_first and (more := shared + counts[first - 1]) <= overlap_tokens:
            if more + counts[stop] > max_tokens:  # the next window must get further than this one
                break
            first, shared = first - 1, more
    return windows


def _fitting(
    documents: Sequence[str],
    pieces: Sequence[_Piece],
    windows: list[tuple[int, int]],
    count_tokens: CountTokens,
    max_tokens: int,
) -> list[_Piece]:
    """The windows as characters, without outer white space; those over the limit halved, the blank ones dropped."""
    fitting: list[_Piece] = []
    while windows:
        spans = [_stripped(documents, pieces[first], pieces[stop - 1]) for first, stop in windows]
        counts = _count(documents, spans, count_tokens)
        halves = []
        for (first, stop), span, n_tokens in zip(windows, spans, counts, strict=True):
            if n_tokens > max_tokens and stop - first > 1:
                middle = (first + stop) // 2
                halves += [(first, middle), (middle, stop)]
            elif span.start < span.end:
                fitting.append(span)
        windows = halves
    return fitting


def _stripped(documents: Sequence[str], first: _Piece, last: _Piece) -> _Piece:
    text = documents[first.doc][first.start : last.end]
    start = first.start + len(text) - len(text.lstrip())
    return _Piece(first.doc, start, max(start, first.start + len(text.rstrip())))
