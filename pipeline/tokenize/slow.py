"""Tokenizers that transformers runs in Python, inside bounds of time and memory.

In: texts. Out: `Tokens` with the ids of the tokenizer's own `__call__`. Method: the tokenizer works
on pieces of at most `cuts.PIECE_CHARS` characters until it has yielded more tokens than fit; the
rest of the text is not read. Cost: that of the tokenizer itself, 100,000-170,000 tokens/s for
`BertJapaneseTokenizer`; `mecab` is the fast path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tokenize.cuts import PIECE_CHARS, next_cut
from pipeline.tokenize.tokens import (
    ID_BYTES,
    Frame,
    TokenBuilder,
    Tokens,
    packed,
    without_surrogates,
)

__all__ = ["SlowTokenizer"]

_CHARS_PER_TOKEN = 2  # Japanese web text has 1.6-1.8 characters a token: one piece is mostly enough
_MAX_CHARS_PER_TOKEN = 256


class SlowTokenizer:
    """A transformers Python tokenizer behind the `Tokenizer` interface.

    A text is abandoned, and counts as truncated, when 256 characters for each token of `max_tokens`
    (and one piece more) did not fill the room: so 50 MB of spaces or of one endless word cost what
    140,000 characters cost.
    """

    stop_words_are_exact = False  # see cuts: True only where the premises were checked

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int,
        prompt: str | None,
        piece_chars: int = PIECE_CHARS,
    ) -> None:
        self._reference = tokenizer
        self._prompt = prompt or ""
        self._piece_chars = piece_chars
        probe = len(tokenizer)  # an id that no special token has
        framed = tokenizer.build_inputs_with_special_tokens([probe])
        at = framed.index(probe)
        self._frame = Frame(
            tuple(framed[:at]),
            tuple(framed[at + 1 :]),
            max_tokens,
            keep_left=tokenizer.truncation_side != "left",
        )
        self.max_tokens = max_tokens
        self.special_tokens = len(framed) - 1
        self.prompt_tokens = self._count_prompt()

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Ids of prompt + text, at most `max_tokens` each. A lone surrogate counts as U+FFFD, NUL
        as a space."""
        tokens = TokenBuilder(self._frame)
        limit = self._frame.room if self._frame.keep_left else None
        for text in texts:
            tokens.add(*self._content(self._prompt + text, limit))
        return tokens.build()

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(N,) int64: tokens without prompt and special tokens, not truncated. The work is linear
        in the text's length."""
        lengths = (len(self._content(text, None)[0]) // ID_BYTES for text in texts)
        return np.fromiter(lengths, dtype=np.int64, count=len(texts))

    def _content(self, text: str, limit: int | None) -> tuple[bytes, bool]:
        """Content ids of one text, packed: all of them, or more than `limit`. The second value is
        False when the text was abandoned before either."""
        end, is_exact = self._cut(text, 0, limit)
        content = self._piece(text[:end], False)
        while end < len(text) and (limit is None or len(content) <= limit * ID_BYTES):
            if (
                limit is not None
                and end > self.max_tokens * _MAX_CHARS_PER_TOKEN + self._piece_chars
            ):
                return content, False
            start = end
            follows_stop = is_exact
            end, is_exact = self._cut(
                text, start, None if limit is None else limit - len(content) // ID_BYTES
            )
            content += self._piece(text[start:end], follows_stop)
        return content, True

    def _cut(self, text: str, start: int, room: int | None) -> tuple[int, bool]:
        target_chars = self._piece_chars if room is None else (room + 16) * _CHARS_PER_TOKEN
        return next_cut(text, start, target_chars, self.stop_words_are_exact, self._piece_chars)

    def _piece(self, piece: str, follows_stop: bool) -> bytes:
        """Content ids of one piece, packed. `follows_stop`: the piece follows a "。" at which the
        text was cut exactly; that "。" is parsed again with the piece, and its id dropped."""
        if "\0" in piece:
            # MeCab takes C strings: it would silently drop the rest
            piece = piece.replace("\0", " ")
        tokens = self._reference.tokenize(
            without_surrogates("。" + piece if follows_stop else piece)
        )
        ids = self._reference.convert_tokens_to_ids(tokens)
        return packed(ids[1:] if follows_stop else ids)

    def _count_prompt(self) -> int:
        if not self._prompt:
            return 0
        ids = self.encode([""]).ids
        return len(ids) - int(int(ids[-1]) in self._reference.all_special_ids)
