"""Turns texts into token ids: what the model is fed, ragged, never padded.

In: texts (already cleaned: no lone surrogates, no NUL, not blank). Out: `Tokens`, flat int32 ids
with int64 offsets. Method: a Rust tokenizer runs as the model directory describes it (`fast`);
`BertJapaneseTokenizer` over MeCab has a path of its own (`mecab`); every other Python tokenizer
runs as it is inside the same bounds (`slow`). The ids equal those that sentence-transformers 6.2
feeds to the model; texts are cut (`cuts`) so that neither time nor MeCab's stack depends on the
length of an unbroken text. Cost: `benchmarks/tokenizing.py`.
"""

from __future__ import annotations

from pipeline.tokenize.loading import load_tokenizer
from pipeline.tokenize.tokens import Tokenizer, Tokens

__all__ = ["Tokenizer", "Tokens", "load_tokenizer"]
