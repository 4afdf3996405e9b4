"""Models with a Rust tokenizer (`tokenizers`): WordPiece, BPE or Unigram, as tokenizer.json says.

In: texts. Out: `Tokens` with the ids of the tokenizer's `__call__`. Method: `encode_batch_fast` (no
offsets) on the tokenizer's own backend, without truncation or padding there; special tokens and
truncation are put round the content (`tokens.Frame`). Of a text far longer than fits, a window is
tokenized that grows until it yields enough tokens before its last ones. Cost: `Encoding.ids` is the
only way to get ids out of the library, about 20 ns a token against 500-1,000 for encoding.

Threads: the library's rayon pool takes every core for a batch. Here one actor has one core, so
TOKENIZERS_PARALLELISM is set to "false" unless the environment says otherwise: actors that each
start as many threads as the machine has cores compete for the same cores, and a fork after the pool
has started warns and can hang.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.tokenize.cuts import space_cut
from pipeline.tokenize.tokens import Frame, TokenBuilder, Tokens, packed, without_surrogates

__all__ = ["FastTokenizer", "lower_case"]

BATCH_TEXTS = 256
BATCH_CHARS = 1 << 20  # bounds the memory of Encoding objects, about 100 bytes a token
WINDOW_CHARS_PER_TOKEN = 8  # English has 4-5 characters a token, Japanese 1.7
MARGIN_TOKENS = 64
COUNT_CHARS = 65_536


class FastTokenizer:
    """A transformers fast tokenizer behind the `Tokenizer` interface.

    Texts of up to `8 * (max_tokens + 64)` characters, and of at least 4,096, are tokenized whole,
    so their ids are the reference's by construction. Of a longer text only a window is read, cut at
    whitespace where there is some in its second half, and doubled until it yields 64 tokens more
    than fit: a cut changes only the tokens next to it. `count` cuts a text after every 65,536
    characters likewise, so it is off by a token or two per 65,536 characters.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, prompt: str | None) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        self._prompt = prompt or ""
        prefix, suffix = self._specials()
        self._frame = Frame(
            prefix, suffix, max_tokens, keep_left=tokenizer.truncation_side != "left"
        )
        self._window_chars = max(4_096, WINDOW_CHARS_PER_TOKEN * (max_tokens + MARGIN_TOKENS))
        self.max_tokens = max_tokens
        self.special_tokens = len(prefix) + len(suffix)
        self.prompt_tokens = self._count_prompt(set(tokenizer.all_special_ids))

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Ids of prompt + text, at most `max_tokens` each. A lone surrogate counts as U+FFFD."""
        tokens = TokenBuilder(self._frame)
        for batch in _batches((self._prompt + text for text in texts), self._window_chars):
            windows = [self._window(text, self._window_chars) for text in batch]
            for text, window, encoding in zip(batch, windows, self._encode(windows), strict=True):
                ids = encoding.ids
                while len(window) < len(text) and len(ids) < self._frame.room + MARGIN_TOKENS:
                    window = self._window(text, 2 * len(window) + self._window_chars)
                    ids = self._encode([window])[0].ids
                tokens.add(packed(ids))
        return tokens.build()

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(N,) int64: tokens without prompt and special tokens, not truncated. Memory is bounded by
        the pieces that are tokenized at once."""
        counts: list[int] = []
        for batch in _batches(texts, COUNT_CHARS):
            encodings = self._encode([text if len(text) <= COUNT_CHARS else "" for text in batch])
            counts += [
                len(encoding) if len(text) <= COUNT_CHARS else self._count_long(text)
                for text, encoding in zip(batch, encodings, strict=True)
            ]
        return np.array(counts, dtype=np.int64)

    def _window(self, text: str, chars: int) -> str:
        if not self._frame.keep_left:  # the end of the text is what is kept
            return text
        return text[: space_cut(text, 0, chars)] if len(text) > chars else text

    def _count_long(self, text: str) -> int:
        total = 0
        start = 0
        while start < len(text):
            end = space_cut(text, start, COUNT_CHARS)
            total += len(self._encode([text[start:end]])[0])
            start = end
        return total

    def _encode(self, texts: list[str]) -> list[Any]:
        try:
            encodings: list[Any] = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # a lone surrogate has no UTF-8 form
            encodings = self._backend.encode_batch_fast(
                [without_surrogates(t) for t in texts], add_special_tokens=False
            )
        return encodings

    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor puts before and after a text, as a probe shows them."""
        for probe in ("a", "あ", "1", "."):
            content = self._backend.encode(probe, add_special_tokens=False).ids
            framed = self._backend.encode(probe, add_special_tokens=True)
            if not content:
                continue
            at = next(
                (i for i, is_special in enumerate(framed.special_tokens_mask) if not is_special), -1
            )
            if at >= 0 and framed.ids[at : at + len(content)] == content:
                return tuple(framed.ids[:at]), tuple(framed.ids[at + len(content) :])
        raise ModelError(
            "the tokenizer's post-processor does more than put special tokens round a text, which "
            f"is not supported. tokenizer.json has {self._backend.post_processor}."
        )

    def _count_prompt(self, special_ids: set[int]) -> int:
        if not self._prompt:
            return 0
        ids = self.encode([""]).ids
        return len(ids) - int(int(ids[-1]) in special_ids)


def _batches(texts: Iterable[str], most_chars: int) -> Iterator[list[str]]:
    """Texts that are tokenized at once, bounded by their number and by their characters, of which
    each text counts `most_chars` at most."""
    batch: list[str] = []
    n_chars = 0
    for text in texts:
        batch.append(text)
        n_chars += min(len(text), most_chars)
        if len(batch) == BATCH_TEXTS or n_chars >= BATCH_CHARS:
            yield batch
            batch = []
            n_chars = 0
    if batch:
        yield batch


def lower_case(tokenizer: Any) -> None:
    """`do_lower_case` of sentence_bert_config.json, as sentence-transformers 6.2 applies it: a
    Lowercase in front of the other normalizers, unless one of them is a Lowercase already."""
    from tokenizers import normalizers

    present = tokenizer.backend_tokenizer.normalizer
    steps: list[Any] = [] if present is None else [present]
    if isinstance(present, normalizers.Sequence):
        steps = [present[i] for i in range(len(present))]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *steps]
        )
