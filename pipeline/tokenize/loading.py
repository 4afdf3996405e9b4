"""Chooses the tokenizer for a model directory.

In: a `ModelDir`. Out: a `Tokenizer`. Method: the directory is read by its files alone (`plain`) or
else by transformers' AutoTokenizer; then a Rust tokenizer is served by `fast`, MeCab with WordPiece
by `mecab`, and any other Python tokenizer by `slow`. Cost: 0.1 s; through transformers, which
imports torch where it is installed, 3 s more.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, SpecError
from pipeline.job.model.tokenizer_versions import versions
from pipeline.tokenize.plain import read_plain

if TYPE_CHECKING:
    from pipeline.job.model.directory import ModelDir
    from pipeline.tokenize.tokens import Tokenizer

__all__ = ["is_quick_to_load", "load_tokenizer"]


def load_tokenizer(
    model: ModelDir, *, max_tokens: int | None = None, prompt: str | None = None
) -> Tokenizer:
    """The tokenizer of `model`, as sentence-transformers 6.2 would use it.

    `max_tokens`: ids a text at most, special tokens included; None takes what the model directory
    says. `prompt`: put before every text as a string; None or "" for none. Raises SpecError when
    `max_tokens` is more than the model has positions, or leaves no room for content; ModelError
    when the directory's tokenizer cannot be loaded or used.
    """
    limit = model.max_tokens if max_tokens is None else max_tokens
    if model.positions is not None and limit > model.positions:
        raise SpecError(
            f"{model.path}: max_tokens is {limit}, but the model has {model.positions} positions. "
            f"Set model.max_tokens to {model.positions} or less."
        )
    versions(model)  # names a library that is missing on this node
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # reason: see pipeline.tokenize.fast
    tokenizer: Any = read_plain(model) or _auto_tokenizer(model)
    if tokenizer.is_fast:
        from pipeline.tokenize.fast import FastTokenizer, lower_case

        if model.do_lower_case:
            lower_case(tokenizer)
        return FastTokenizer(tokenizer, max_tokens=limit, prompt=prompt)
    if model.do_lower_case and not getattr(tokenizer, "do_lower_case", False):
        raise ModelError(
            f"{model.path}: do_lower_case of sentence_bert_config.json cannot be applied to "
            f"{type(tokenizer).__name__}; sentence-transformers cannot load this directory either. "
            "Set it in tokenizer_config.json."
        )
    if getattr(tokenizer, "word_tokenizer_type", None) == "mecab":
        from pipeline.tokenize.mecab import MecabTokenizer, is_supported

        if is_supported(tokenizer):
            return MecabTokenizer(tokenizer, max_tokens=limit, prompt=prompt)
    from pipeline.tokenize.slow import SlowTokenizer

    return SlowTokenizer(tokenizer, max_tokens=limit, prompt=prompt)


def is_quick_to_load(model: ModelDir) -> bool:
    """Whether the tokenizer is built without transformers, whose imports take seconds."""
    return read_plain(model) is not None


def _auto_tokenizer(model: ModelDir) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model.transformer_path),
            **model.tokenizer_arguments,
            trust_remote_code=False,
            local_files_only=True,
        )
    # transformers passes on every error of its loaders: OSError, ValueError, KeyError, …
    except Exception as error:
        raise ModelError(
            f"{model.transformer_path}: the tokenizer could not be loaded: "
            f"{type(error).__name__}: {error}. The directory needs tokenizer.json, or vocab.txt / "
            "tokenizer.model with tokenizer_config.json."
        ) from error
    if len(tokenizer) <= len({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}):
        # transformers 5.23 makes such a tokenizer of a directory without tokenizer files, and all
        # text becomes [UNK]
        raise ModelError(
            f"{model.transformer_path}: the tokenizer's vocabulary holds special tokens only. "
            "Are tokenizer.json, vocab.txt or tokenizer.model missing?"
        )
    return tokenizer
