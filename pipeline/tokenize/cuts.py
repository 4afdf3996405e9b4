"""Where a long text may be cut before it is tokenized.

In: a text and a position. Out: the end of the next piece, and whether the cut is exact. Why: MeCab
segfaults or needs minutes on hundreds of kilobytes without a break (200,000 × "a", 400,000 × "漢",
and ordinary documents of half a million characters), and 512 kept tokens do not need a megabyte
parsed.

An **exact** cut is a "。" with kana (but not ニ) or a kanji before it, and kana, a kanji, a line feed
or a space after it. With unidic-lite every path through MeCab's lattice passes one and the same
node there: no dictionary word holds such a "。" (the longer words with one are emoticons, and the
name ミニモニ。), unknown words group symbols only with symbols, and the unknown-word node for "。" costs
at least 435 more than the dictionary's whatever stands left and right of it (over all 5,981²
connection costs). A shortest path through a fixed node is the shortest path to it and the shortest
path from it, so parsing up to the "。", and then again from the "。" on, gives the words of the whole
text. The tests check the premises against the installed dictionary. NFKC does not reach over such a
"。" either.

Where there is no exact cut within PIECE_CHARS, the text is cut after the last line feed of that
stretch's second half, else after its last space, else at its end. Words near such a cut can differ
from an unbounded parse. That concerns only texts that go on for more than PIECE_CHARS without a "。"
between kana or kanji.
"""

from __future__ import annotations

import re

__all__ = ["PIECE_CHARS", "next_cut", "space_cut"]

PIECE_CHARS = 8_192
"""Longest text MeCab sees at once. One run of 8,192 × "1" takes it 31 ms; time grows with the
square of the run."""

EXACT_CUT = re.compile("(?<=[ぁ-ゖァ-ナヌ-ヺ一-鿿])。(?=[ぁ-ゖァ-ヺ一-鿿\n ])")


def next_cut(
    text: str, start: int, wanted: int, exact: bool, piece_chars: int = PIECE_CHARS
) -> tuple[int, bool]:
    """End of the piece of `text` that begins at `start` and should have about `wanted` characters.

    Returns (end, is_exact): start < end ≤ len(text), end - start ≤ `piece_chars`; `is_exact` says
    that the next piece continues right after a "。" as defined above. `exact=False`: the dictionary
    is unknown, so no cut counts as exact, and pieces are as long as they may be.
    """
    rest = len(text) - start
    if exact and rest > wanted:
        wanted = min(wanted, piece_chars)
        if found := EXACT_CUT.search(text, start + wanted - 1, start + piece_chars):
            return found.end(), True
        if rest > piece_chars:
            earlier = None
            for earlier in EXACT_CUT.finditer(text, start + 1, start + wanted):  # noqa: B007 (the last one is wanted)
                pass
            if earlier is not None:
                return earlier.end(), True
    if rest <= piece_chars:
        return len(text), False
    return space_cut(text, start, piece_chars), False


def space_cut(text: str, start: int, piece_chars: int) -> int:
    """End of a piece of at most `piece_chars`: after a line feed, else a space, of its second half,
    else its full length."""
    end = start + piece_chars
    if end >= len(text):
        return len(text)
    for mark in "\n ":
        found = text.rfind(mark, start + piece_chars // 2, end)
        if found > start:
            return found + 1
    return end
