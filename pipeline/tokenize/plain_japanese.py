"""The vocabulary of a `BertJapaneseTokenizer` without transformers, which `plain` reads.

In: vocab.txt and settings. Out: an object with those attributes of the transformers tokenizer that
`mecab.MecabTokenizer` uses. Cost: reading vocab.txt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import models

__all__ = ["PlainJapanese"]


class PlainJapanese:
    """vocab.txt of a `BertJapaneseTokenizer` with MeCab and WordPiece.

    `tokenize` is that of transformers, loaded when it is first needed: for text that holds a
    literal special token.
    """

    is_fast = False
    word_tokenizer_type = "mecab"

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        named: Mapping[str, str],
        vocab: dict[str, int],
    ) -> None:
        self._folder = folder
        self._vocab = vocab
        self._unknown = vocab[named["unk_token"]]
        self._prefix = vocab[named["cls_token"]]
        self._suffix = vocab[named["sep_token"]]
        pieces = models.WordPiece(vocab, unk_token=named["unk_token"], max_input_chars_per_word=100)
        self.subword_tokenizer = SimpleNamespace(
            tokenize=lambda word: [token.value for token in pieces.tokenize(word)]
        )
        self.all_special_tokens = list(named.values())
        self.all_special_ids = [vocab[token] for token in named.values()]
        self.truncation_side = settings.get("truncation_side", "right")
        self.mecab_kwargs = settings["mecab_kwargs"]
        self.do_lower_case = settings["do_lower_case"]
        self.word_tokenizer = SimpleNamespace(
            do_lower_case=self.do_lower_case,
            never_split=settings.get("never_split", []),
            normalize_text=True,
        )

    def __len__(self) -> int:
        return len(self._vocab)

    def get_added_vocab(self) -> dict[str, int]:
        return dict(zip(self.all_special_tokens, self.all_special_ids, strict=True))

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[int]:
        return [self._prefix, *ids, self._suffix]

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self._vocab.get(token, self._unknown) for token in tokens]

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = self._reference.tokenize(text)
        return tokens

    @cached_property
    def _reference(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(self._folder), trust_remote_code=False, local_files_only=True
        )
