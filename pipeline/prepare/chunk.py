"""Cuts documents into windows of whole sentences, each of at most `max_tokens` tokens.

Sentences end after 。！？ and . ! ? (with the brackets and quotation marks that close after them;
the Latin ones only before white space) and after a line end. They are packed greedily; a window
begins with the last sentences of the one before, up to `overlap_tokens`. A sentence over
`max_tokens` is cut by characters, at white space where some is near. Every character that is not
white space is in at least one chunk, and `text[char_start:char_end]` is the chunk.

Tokens are counted, never guessed: of the documents, then of the sentences of the long ones, then of
the finished windows. The tokens of a window can differ from the sum over its sentences (a tokenizer
can merge over the border), so a window that turns out too long is halved.

Cost: a long document is tokenized about three times; the cutting itself runs at about 10 MB/s.
Memory: one document is worked on at a time, as arrays of positions, and the texts are views into
the documents: at most 20 bytes a byte of text whatever it holds (tests/prepare/test_chunk.py),
unless there is a chunk for every three bytes or fewer, each of which is a row of 40 bytes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.prepare.text_slices import Ranges, TextSlices
from pipeline.prepare.windows import CountTokens, counts_of, joined, windows_of

_CLOSING = r"""」』）】〕〉》”’"')\]"""
_SENTENCE_END = re.compile(
    rf"(?:(?<![。！？｡])[。！？｡]++|．(?!\d))[{_CLOSING}]*+\s*+"
    rf"|(?<![.!?])[.!?]++[{_CLOSING}]*+\s++"  # looks at a run of stops once, however long it is
    r"|[\n\r\u2028\u2029]\s*+"
)
_WORD_END = re.compile(r"\S{1,8}+\s*+")


class Chunks(NamedTuple):
    """M chunks, sorted by document and then by position.

    doc_index: (M,) row of the document. char_start, char_end: (M,) in code points, end exclusive.
    texts: (M,) string_view into the documents.
    """

    doc_index: npt.NDArray[np.int64]
    char_start: npt.NDArray[np.int64]
    char_end: npt.NDArray[np.int64]
    texts: pa.StringViewArray


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
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    pattern = _SENTENCE_END if boundary == "sentence" else _WORD_END
    documents = (text.as_py() for text in texts)
    is_long = counts_of(documents, count_tokens) > max_tokens
    slices = TextSlices(texts)
    n_chunks = np.ones(len(texts), np.int64)

    def ranges() -> tuple[Ranges, Ranges]:
        """(M, 2) of all chunks, in characters and in bytes."""
        spans = [np.zeros((0, 2), np.int32)]
        byte_spans = [np.zeros((0, 2), np.int32)]
        for index, text in enumerate(texts):
            document = text.as_py()
            windows = np.array([[0, len(document)]], np.int32)
            if is_long[index]:
                fitting = windows_of(document, count_tokens, pattern, max_tokens, overlap_tokens)
                windows = fitting if len(fitting) else windows
            del document  # up to four bytes a byte of text, before there are more arrays
            n_chunks[index] = len(windows)
            spans.append(windows)
            byte_spans.append(slices.byte_ranges(index, windows))
        return joined(spans), joined(byte_spans)

    bounds, byte_bounds = ranges()
    views = slices.views(byte_bounds)
    del byte_bounds
    starts, ends = (bounds[:, column].astype(np.int64) for column in (0, 1))
    del bounds
    return Chunks(np.repeat(np.arange(len(texts)), n_chunks), starts, ends, views)
