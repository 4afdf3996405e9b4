"""The fast path for `BertJapaneseTokenizer` with MeCab words and WordPiece pieces.

In: texts. Out: `Tokens` with the ids of the tokenizer's own `__call__`. Method: NFKC, one
`-Owakati` parse and one `str.split` for each piece, then a dictionary from words to ids as bytes,
which `bytes.join` puts together; only a word that is not in it goes through the tokenizer's own
lower-casing and WordPiece. The tokenizer splits each word by whitespace, so splitting the whole
parse by whitespace gives the same WordPiece inputs. A piece that holds the text of an added token
("[CLS]", "[MASK]", …) goes through the tokenizer, which takes such tokens out before MeCab. Cost:
MeCab is the floor; `benchmarks/tokenizing.py` measures the distance to it. Threads do not help
(GIL).
"""

from __future__ import annotations

import functools
import importlib
import os
import unicodedata
from typing import Any

import fugashi

from pipeline.errors import ModelError
from pipeline.tokenize.cuts import PIECE_CHARS, space_cut
from pipeline.tokenize.plain_japanese import PlainJapanese
from pipeline.tokenize.slow import SlowTokenizer
from pipeline.tokenize.tokens import packed, without_surrogates

__all__ = ["MecabTokenizer", "is_supported"]

CACHE_WORDS = 1_000_000
"""Words kept; then the cache is emptied. Real text repeats itself, so refilling costs seconds a
day."""
_CACHED_CHARS = 32  # a longer word is a URL or noise: not worth the memory
_MAX_GROWTH = 4  # 4 * 8,192 characters are safe for MeCab; no real text grows even by half
_DICTIONARIES = ("unidic_lite", "ipadic", "unidic")
_CHECKED_DICTIONARIES = {"unidic_lite"}  # those whose exact cuts (see cuts) the tests prove


def is_supported(tokenizer: Any) -> bool:
    """Does the fast path cover this tokenizer? Not subclasses, other words or pieces, and options
    of MeCab."""
    if isinstance(tokenizer, PlainJapanese):
        return True
    settings = dict(tokenizer.mecab_kwargs or {})
    return (
        type(tokenizer).__name__ == "BertJapaneseTokenizer"
        and bool(tokenizer.do_word_tokenize)
        and bool(tokenizer.do_subword_tokenize)
        and tokenizer.subword_tokenizer_type == "wordpiece"
        and not tokenizer.split_special_tokens
        and settings.get("mecab_dic", "unidic_lite") in _DICTIONARIES
        and not settings.get("mecab_option")
    )


class _WordIds(dict[str, bytes]):
    """Maps a MeCab word to the ids of its pieces (packed); filled on demand, bounded in size."""

    def __init__(self, tokenizer: Any, max_words: int) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._max_words = max_words
        words = tokenizer.word_tokenizer
        self._kept_case = {*words.never_split, *tokenizer.all_special_tokens}
        self._lower = bool(words.do_lower_case)

    def __missing__(self, word: str) -> bytes:
        text = word.lower() if self._lower and word not in self._kept_case else word
        pieces = self._tokenizer.subword_tokenizer.tokenize(text)
        ids = packed(self._tokenizer.convert_tokens_to_ids(pieces))
        if len(word) <= _CACHED_CHARS:
            if len(self) >= self._max_words:
                self.clear()
            self[word] = ids
        return ids


class MecabTokenizer(SlowTokenizer):
    """`BertJapaneseTokenizer` at MeCab's own speed; bounds and error handling as in
    `SlowTokenizer`."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int,
        prompt: str | None,
        piece_chars: int = PIECE_CHARS,
        cache_words: int = CACHE_WORDS,
    ) -> None:
        dictionary = (tokenizer.mecab_kwargs or {}).get("mecab_dic", "unidic_lite")
        self._parse = _wakati(dictionary).parse
        self._normalize = bool(tokenizer.word_tokenizer.normalize_text)
        self._ids_of = _WordIds(tokenizer, cache_words)
        # An added token can hold any text; all_special_tokens are among these.
        self._literals = tuple({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {""})
        starts = {literal[0] for literal in self._literals}
        self._literal_start = (
            starts.pop() if len(starts) == 1 else ""
        )  # "[" of BERT: one look instead of five
        self.stop_words_are_exact = dictionary in _CHECKED_DICTIONARIES and not any(
            "。" in t for t in self._literals
        )
        super().__init__(tokenizer, max_tokens=max_tokens, prompt=prompt, piece_chars=piece_chars)

    def _piece(self, piece: str, follows_stop: bool) -> bytes:
        if self._literal_start in piece and any(literal in piece for literal in self._literals):
            return super()._piece(piece, follows_stop)
        words = self._words("。" + piece if follows_stop else piece)
        if follows_stop:
            del words[0]
        return b"".join(map(self._ids_of.__getitem__, words))

    def _words(self, text: str) -> list[str]:
        if self._normalize:
            text = unicodedata.normalize("NFKC", text)
        if "\0" in text:
            text = text.replace("\0", " ")
        # NFKC makes up to 18 characters of one, as of U+FDFA
        if len(text) > _MAX_GROWTH * self._piece_chars:
            end = space_cut(text, 0, self._piece_chars)
            return self._words(text[:end]) + self._words(text[end:])
        try:
            parsed: str = self._parse(text)
        # a lone surrogate; asking each text beforehand would cost every text
        except UnicodeEncodeError:
            parsed = self._parse(without_surrogates(text))
        return parsed.split()


@functools.cache
def _wakati(dictionary: str) -> fugashi.GenericTagger:
    """MeCab with the dictionary of that package, as transformers starts it, but writing words and
    spaces only. One per process and dictionary: fugashi 1.5 never frees a tagger, and each maps the
    dictionary again (66 MB of resident memory for every tokenizer that a long process loads)."""
    try:
        directory = importlib.import_module(dictionary).DICDIR
    except ImportError as error:
        raise ModelError(
            f"the tokenizer needs the MeCab dictionary {dictionary}: pip install {dictionary}."
        ) from error
    return fugashi.GenericTagger(
        f'-d "{directory}" -r "{os.path.join(directory, "mecabrc")}" -Owakati'
    )
