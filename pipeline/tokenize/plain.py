"""Tokenizers read from their files alone, without transformers, whose import takes 2-3 s of CPU.

In: a model directory. Out: an object with those attributes of a transformers tokenizer that `fast`
and `mecab` use, or None: then transformers has to load the directory. Method: tokenizer.json is
what the `tokenizers` library runs, so it is run as it stands where tokenizer_config.json states
nothing that is unknown here and nothing that disagrees with it. vocab.txt is read where
tokenizer_config.json states the settings of MeCab with unidic_lite and WordPiece. The tests compare
the ids with those of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from pipeline.errors import ModelError
from pipeline.tokenize.plain_japanese import PlainJapanese

if TYPE_CHECKING:
    from pipeline.job.model_dir import ModelDir

__all__ = ["read_plain"]

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


class PlainFast:
    """tokenizer.json, and what else `fast.FastTokenizer` asks for."""

    is_fast = True
    split_special_tokens = False

    def __init__(self, path: Path, settings: Settings, special_ids: list[int]) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(path))
        self.backend_tokenizer.no_padding()
        self.truncation_side = settings.get("truncation_side", "right")
        self.all_special_ids = special_ids


def read_plain(model: ModelDir) -> PlainFast | PlainJapanese | None:
    """The tokenizer, or None where the files alone do not say all of it.

    Raises ModelError for a StaticEmbedding model whose tokenizer.json cannot be read: transformers
    is never asked about such a model.
    """
    folder = model.transformer_path
    if model.is_static:
        return _static(folder / "tokenizer.json")
    is_known = model.config.get("model_type") in _MODEL_TYPES
    if not is_known or model.tokenizer_arguments or (folder / "added_tokens.json").exists():
        return None
    settings = model.tokenizer_config
    if "added_tokens_decoder" not in settings:  # else transformers does not read this file
        settings = settings | _json(folder / "special_tokens_map.json")
    settings = {name: value for name, value in settings.items() if value not in (None, [])}
    kind = settings.get("tokenizer_class")
    has_json = (folder / "tokenizer.json").is_file()
    if has_json and kind in (*_FILE_CLASSES, *_BERT_CLASSES):
        return _fast(folder / "tokenizer.json", settings, is_bert=kind in _BERT_CLASSES)
    if not has_json and kind == "BertJapaneseTokenizer":
        return _japanese(folder, settings)
    return None


def _static(path: Path) -> PlainFast:
    """tokenizer.json as it is, with nothing put round a text."""
    try:
        tokenizer = PlainFast(path, {}, [])
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"{path}: the tokenizer could not be loaded: {error}. Restore it from its source."
        ) from error
    backend = tokenizer.backend_tokenizer
    backend.post_processor = None
    if backend.truncation:
        tokenizer.truncation_side = backend.truncation["direction"]
    return tokenizer


def _fast(path: Path, settings: Settings, is_bert: bool) -> PlainFast | None:
    stored = _json(path)
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
    tokenizer = PlainFast(path, settings, [added[token] for token in named.values()])
    frame = tokenizer.backend_tokenizer.encode("").tokens
    if is_bert:
        agrees = frame == [named["cls_token"], named["sep_token"]]
    else:
        agrees = all(
            settings[f"add_{name}"] == (named.get(name) in frame)
            for name in ("bos_token", "eos_token")
            if f"add_{name}" in settings
        )
    return tokenizer if agrees else None


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


def _japanese(folder: Path, settings: Settings) -> PlainJapanese | None:
    known = (*_JAPANESE_SETTINGS, "do_lower_case", "never_split")
    named = _named_tokens(settings, known)
    path = folder / "vocab.txt"
    if (
        named is None
        or "do_lower_case" not in settings
        or not settings.items() >= _JAPANESE_SETTINGS.items()
        or not path.is_file()
    ):
        return None
    named = _BERT_TOKENS | named
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token: number for number, token in enumerate(lines)}
    special_ids = {token: vocab.get(token) for token in named.values()}
    if None in special_ids.values() or not _stated_ids(settings).items() <= special_ids.items():
        return None
    return PlainJapanese(folder, settings, named, vocab)


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
