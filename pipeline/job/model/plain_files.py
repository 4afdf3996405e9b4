"""Whether the files of a tokenizer say all of it, so that transformers is not needed to build it.

A model directory's path and parsed configs come in; `PlainFiles` come out, or None: then
transformers has to load the tokenizer, and its version decides ids too. Method: tokenizer.json is
what the `tokenizers` library runs, so it is run as it stands where tokenizer_config.json states
nothing that is unknown here and nothing that disagrees with it. vocab.txt is read where
tokenizer_config.json states the settings of MeCab with unidic_lite and WordPiece. Cost: parsing
these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

__all__ = ["PlainFiles", "plain_files"]

_MODEL_TYPES = ("bert", "llama", "roberta", "xlm-roberta")
"""Values of `model_type` in config.json whose tokenizers the tests compare with transformers."""
_FILE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that are nothing but their tokenizer.json."""
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Settings in tokenizer_config.json → their names in the normalizer of tokenizer.json."""
_JAPANESE_SETTINGS = {
    "do_word_tokenize": True,
    "do_subword_tokenize": True,
    "word_tokenizer_type": "mecab",
    "subword_tokenizer_type": "wordpiece",
    "mecab_kwargs": {"mecab_dic": "unidic_lite"},
}
_COMMON = """
    unk_token sep_token pad_token cls_token mask_token bos_token eos_token add_bos_token
    add_eos_token added_tokens_decoder tokenizer_class truncation_side
"""
"""Settings that are understood for every class, separated by spaces."""
_WITHOUT_EFFECT = """
    backend chat_template clean_up_tokenization_spaces do_basic_tokenize is_local max_length
    model_input_names model_max_length name_or_path pad_to_multiple_of pad_token_type_id
    padding_side special_tokens_map_file stride tokenizer_file truncation_strategy
"""
"""Settings that change no id of one text without truncation and padding."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class PlainFiles:
    """A tokenizer that its files describe completely."""

    settings: Settings
    """tokenizer_config.json and special_tokens_map.json, without empty values."""
    special_tokens: Mapping[str, str]
    """Special tokens by attribute, `unk_token` and so on."""
    special_ids: Mapping[str, int]
    """Their ids by token."""
    vocab: Mapping[str, int] | None
    """The lines of vocab.txt, for MeCab with WordPiece; None where tokenizer.json is run."""


def plain_files(
    folder: Path, config: Settings, tokenizer_config: Settings, kind: str | None
) -> PlainFiles | None:
    """kind: the class of the tokenizer as a config file names it."""
    if config.get("model_type") not in _MODEL_TYPES or (folder / "added_tokens.json").exists():
        return None
    settings = tokenizer_config
    if "added_tokens_decoder" not in settings:  # else transformers does not read this file
        settings = {**settings, **_json(folder / "special_tokens_map.json")}
    settings = {name: value for name, value in settings.items() if value not in (None, [])}
    has_json = (folder / "tokenizer.json").is_file()
    if has_json and kind in (*_FILE_CLASSES, *_BERT_CLASSES):
        stored = _json(folder / "tokenizer.json")
        return _fast(stored, settings, is_bert=kind in _BERT_CLASSES)
    if not has_json and kind == "BertJapaneseTokenizer":
        return _japanese(folder / "vocab.txt", settings)
    return None


def _fast(stored: Settings, settings: Settings, is_bert: bool) -> PlainFiles | None:
    named = _named_tokens(settings, _BERT_SETTINGS if is_bert else ())
    listed = stored.get("added_tokens", ())
    added = {token["content"]: token["id"] for token in listed if _is_plain(token)}
    if (
        named is None
        or not set(named.values()) <= added.keys()
        or _stated_ids(settings) not in ({}, added)
        or len(stored["model"]["vocab"]) <= len(added)
        or not stored.get("post_processor")
        or (is_bert and not _is_bert(stored, settings, named))
    ):
        return None
    frame = frame_of(stored)
    if is_bert:
        agrees = frame == [named["cls_token"], named["sep_token"]]
    else:
        agrees = all(
            settings[f"add_{name}"] == (named.get(name) in frame)
            for name in ("bos_token", "eos_token")
            if f"add_{name}" in settings
        )
    special_ids = {token: added[token] for token in named.values()}
    return PlainFiles(settings, named, special_ids, None) if agrees else None


def frame_of(stored: Settings) -> list[str]:
    """The tokens that the post-processor of a parsed tokenizer.json puts round every text."""
    post_processor = stored.get("post_processor")
    model: Settings = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    alone: Settings = {
        "version": "1.0",
        "added_tokens": [],
        "post_processor": post_processor,
        "model": model,
    }
    try:
        tokens: list[str] = Tokenizer.from_str(json.dumps(alone)).encode("").tokens
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"post_processor: {error}") from error
    return tokens


def _is_bert(stored: Settings, settings: Settings, named: Mapping[str, str]) -> bool:
    """Does tokenizer.json hold the steps of BERT, with the settings and tokens that
    tokenizer_config.json states? From those transformers makes a BertTokenizer, not from the steps.
    """
    vocab = stored["model"]["vocab"]
    stated = {theirs: settings.get(name) for name, theirs in _BERT_SETTINGS.items()}
    return (
        named.keys() >= _BERT_TOKENS.keys()
        and stored["normalizer"] == {"type": "BertNormalizer", "clean_text": True, **stated}
        and stored["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and stored["model"]
        == {
            "type": "WordPiece",
            "unk_token": named["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        }
        and all(vocab.get(token["content"]) == token["id"] for token in stored["added_tokens"])
    )


def _japanese(vocab_txt: Path, settings: Settings) -> PlainFiles | None:
    known = (*_JAPANESE_SETTINGS, "do_lower_case", "never_split")
    named = _named_tokens(settings, known)
    if (
        named is None
        or "do_lower_case" not in settings
        or not settings.items() >= _JAPANESE_SETTINGS.items()
        or not vocab_txt.is_file()
    ):
        return None
    named = _BERT_TOKENS | named
    lines = vocab_txt.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token: number for number, token in enumerate(lines)}
    special_ids = {token: vocab[token] for token in named.values() if token in vocab}
    if len(special_ids) < len(set(named.values())):
        return None
    if not _stated_ids(settings).items() <= special_ids.items():
        return None
    return PlainFiles(settings, named, special_ids, vocab)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _named_tokens(settings: Settings, known: Iterable[str]) -> dict[str, str] | None:
    """Special tokens by attribute; None when a setting is unknown or a token is not a plain one."""
    tokens = {
        name: {"content": token} if isinstance(token, str) else token
        for name, token in settings.items()
        if name.endswith("_token") and not name.startswith("add_")
    }
    is_known = settings.keys() <= {*_COMMON.split(), *_WITHOUT_EFFECT.split(), *known}
    if not is_known or not all(_is_plain({"special": True, **token}) for token in tokens.values()):
        return None
    return {name: token["content"] for name, token in tokens.items()}


def _is_plain(token: Settings) -> bool:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return bool(token.get("special")) and not any(token.get(flag) for flag in flags)


def _stated_ids(settings: Settings) -> dict[str, int]:
    """Ids in `added_tokens_decoder`; "" stands for a token that is not a plain one."""
    return {
        token["content"] if _is_plain(token) else "": int(number)
        for number, token in settings.get("added_tokens_decoder", {}).items()
    }
