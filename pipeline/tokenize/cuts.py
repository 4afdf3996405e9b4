"""The places at which a long text can be cut before it is tokenized.

In: a text and a position. Out: the end of the next piece, and whether the cut is exact. Why: MeCab
segfaults or needs minutes on hundreds of kilobytes without a break (200,000 × "a", 400,000 × "漢",
and ordinary documents of half a million characters), and 512 kept tokens do not need a megabyte
parsed.

An **exact** cut is a "。" with kana (but not ニ) or a kanji before it, and kana, a kanji, a line
feed or a space after it. With unidic-lite every path through MeCab's lattice passes one and the
same node at such a "。": no dictionary word holds one (the longer words with a "。" are emoticons,
and the name ミニモニ。), unknown words group symbols only with symbols, and the unknown-word node
for "。" costs at least 435 more than the dictionary's, with any words on its left and right (over
all 5,981² connection costs). A shortest path through a fixed node is the shortest path to it and
the shortest path from it, so parsing up to the "。", and then again from the "。", gives the words
of the whole text. The tests check the premises against the installed dictionary. NFKC does not
reach over such a "。" either.

Where there is no exact cut within PIECE_CHARS, the text is cut after the last line feed in the
second half of those characters, else after the last space, else at their end. Words near such a cut
can differ from those of an unbounded parse. This concerns only texts with more than PIECE_CHARS
characters and no "。" between kana or kanji.
"""

from __future__ import annotations

import re

__all__ = ["PIECE_CHARS", "next_cut", "space_cut"]

PIECE_CHARS = 8_192
"""The longest text that MeCab parses at once. 8,192 × "1" take it 31 ms; the time grows with the
square of the number of equal characters."""

EXACT_CUT = re.compile("(?<=[ぁ-ゖァ-ナヌ-ヺ一-鿿])。(?=[ぁ-ゖァ-ヺ一-鿿\n ])")


def next_cut(
    text: str, start: int, target_chars: int, exact: bool, piece_chars: int = PIECE_CHARS
) -> tuple[int, bool]:
    """End of the piece of `text` that begins at `start` and should have about `target_chars`.

    Returns (end, is_exact): start < end ≤ len(text), end - start ≤ `piece_chars`; `is_exact` says
    that the next piece follows a "。" as defined above. `exact=False`: the dictionary is unknown,
    so no cut counts as exact, and pieces are as long as they can be.
    """
    rest = len(text) - start
    if exact and rest > target_chars:
        target_chars = min(target_chars, piece_chars)
        if later := EXACT_CUT.search(text, start + target_chars - 1, start + piece_chars):
            return later.end(), True
        if rest > piece_chars:
            earlier = [*EXACT_CUT.finditer(text, start + 1, start + target_chars)]
            if earlier:
                return earlier[-1].end(), True
    if rest <= piece_chars:
        return len(text), False
    return space_cut(text, start, piece_chars), False


def space_cut(text: str, start: int, piece_chars: int) -> int:
    """End of a piece of at most `piece_chars`: after the last line feed of its second half, else
    after the last space there, else at its full length."""
    end = start + piece_chars
    if end >= len(text):
        return len(text)
    for mark in "\n ":
        position = text.rfind(mark, start + piece_chars // 2, end)
        if position > start:
            return position + 1
    return end
