"""Text → token ids: what the model is fed, ragged, never padded.

In: texts (already cleaned: no lone surrogates, no NUL, not blank). Out: `Tokens`, flat int32 ids
with int64 offsets. Method: a model directory with a Rust tokenizer runs on it (`huggingface`);
`BertJapaneseTokenizer` over MeCab gets its own fast path (`mecab`); every other Python tokenizer
runs as it is inside the same bounds (`reference`). The ids equal those sentence-transformers 6.2
gives the model; texts are cut (`cuts`) so that neither time nor MeCab's stack depends on how long
an unbroken text is. Cost: `benchmarks/tokenizing.py`.
"""

from __future__ import annotations

from pipeline.tokenize.loading import load_tokenizer
from pipeline.tokenize.tokens import Tokenizer, Tokens

__all__ = ["Tokenizer", "Tokens", "load_tokenizer"]
