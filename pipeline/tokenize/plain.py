"""Tokenizers read from their files alone, where that provably gives what transformers 5 would make
of them.

In: a model directory. Out: an object with the attributes of a transformers tokenizer that
`huggingface` and `mecab` use, or None: then transformers has to load it, which costs a process 2-3
s of CPU, most of it for importing torch. Method: a closed list of settings. Only tokenizer classes
whose construction was read in transformers 5.17-5.23 are taken, only with settings known here, and
only when every special token is a plain one that tokenizer.json or vocab.txt has under the same id;
the parity tests compare ids with transformers for each class. Anything else gives None.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.job.model_dir import ModelDir

__all__ = ["PlainFast", "PlainJapanese", "read_plain"]

_SPECIALS = (
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "bos_token",
    "eos_token",
)
_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_WITHOUT_EFFECT = {
    "add_bos_token",
    "add_eos_token",
    "backend",
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_basic_tokenize",
    "is_local",
    "max_length",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "special_tokens_map_file",
    "stride",
    "tokenizer_class",
    "tokenizer_file",
    "truncation_strategy",
}
"""On the ids of one text without truncation or padding. With a tokenizer.json, add_bos_token and
add_eos_token have none: its post-processor says what is put round a text."""
_USED = {*_SPECIALS, *_EXTRA, "added_tokens_decoder", "truncation_side"}
_BERT_USED = {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}
_JAPANESE_USED = {
    "do_lower_case",
    "do_word_tokenize",
    "do_subword_tokenize",
    "word_tokenizer_type",
    "subword_tokenizer_type",
    "mecab_kwargs",
    "never_split",
    "sudachi_kwargs",
    "jumanpp_kwargs",
}
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast")
_FILE_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


class PlainFast:
    """tokenizer.json, and what else `huggingface.FastTokenizer` asks."""

    is_fast = True
    split_special_tokens = False

    def __init__(self, path: Path, config: dict[str, Any], specials: set[str]) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(path))
        self.truncation_side = config.get("truncation_side") or "right"
        self.all_special_ids = [self.backend_tokenizer.token_to_id(token) for token in specials]


class PlainJapanese:
    """vocab.txt and the settings of a `BertJapaneseTokenizer` with MeCab and WordPiece.

    `tokenize` is that of transformers, loaded when it is first needed: for text that holds a
    literal special token.
    """

    is_fast = False

    def __init__(
        self, path: Path, config: dict[str, Any], named: dict[str, str], vocab: dict[str, int]
    ) -> None:
        self._path, self._vocab = path, vocab
        self._unknown = vocab[named["unk_token"]]
        self._frame = vocab[named["cls_token"]], vocab[named["sep_token"]]
        wordpiece = models.WordPiece(
            vocab, unk_token=named["unk_token"], max_input_chars_per_word=100
        )
        self.subword_tokenizer = SimpleNamespace(
            tokenize=lambda word: [p.value for p in wordpiece.tokenize(word)]
        )
        self.all_special_tokens = list(named.values())
        self.all_special_ids = [vocab[token] for token in named.values()]
        self.truncation_side = config.get("truncation_side") or "right"
        self.split_special_tokens = False
        self.do_word_tokenize = bool(config.get("do_word_tokenize", True))
        self.do_subword_tokenize = bool(config.get("do_subword_tokenize", True))
        self.word_tokenizer_type = config.get("word_tokenizer_type", "basic")
        self.subword_tokenizer_type = config.get("subword_tokenizer_type", "wordpiece")
        self.mecab_kwargs = config.get("mecab_kwargs") or {}
        self.do_lower_case = bool(config.get("do_lower_case"))
        self.word_tokenizer = SimpleNamespace(
            do_lower_case=self.do_lower_case,
            never_split=config.get("never_split") or [],
            normalize_text=self.mecab_kwargs.get("normalize_text", True),
        )

    def __len__(self) -> int:
        return len(self._vocab)

    def get_added_vocab(self) -> dict[str, int]:
        return dict(zip(self.all_special_tokens, self.all_special_ids, strict=True))

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[int]:
        return [self._frame[0], *ids, self._frame[1]]

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self._vocab.get(token, self._unknown) for token in tokens]

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = self._reference.tokenize(text)
        return tokens

    @cached_property
    def _reference(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(self._path), trust_remote_code=False, local_files_only=True
        )


def read_plain(model: ModelDir) -> PlainFast | PlainJapanese | None:
    """None where the files do not say all of it, or say something this module does not know. Raises
    ModelError for a StaticEmbedding model whose tokenizer.json cannot be read: transformers
    would not be asked either."""
    if model.is_static:
        return _static(model.transformer_path / "tokenizer.json")
    folder, family = model.transformer_path, model.config.get("model_type")
    config = dict(model.tokenizer_config)
    if (folder / "added_tokens.json").exists() or family not in (
        "bert",
        "llama",
        "roberta",
        "xlm-roberta",
    ):
        return None
    if "added_tokens_decoder" not in config:  # else transformers does not read this file
        config |= _json(folder / "special_tokens_map.json")
    kind, has_json = config.get("tokenizer_class"), (folder / "tokenizer.json").is_file()
    if kind == "BertJapaneseTokenizer" and not has_json:
        return _japanese(folder, config)
    if has_json and (kind in _FILE_AS_IT_IS or (kind in _BERT_CLASSES and family == "bert")):
        return _fast(folder / "tokenizer.json", config, kind in _BERT_CLASSES)
    return None


def _static(path: Path) -> PlainFast:
    """tokenizer.json as it is, with nothing put round a text."""
    try:
        tokenizer = PlainFast(path, {}, set())
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"{path}: the tokenizer could not be loaded: {error}. Restore it from its source."
        ) from error
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.truncation_side = (tokenizer.backend_tokenizer.truncation or {}).get(
        "direction", "right"
    )
    return tokenizer


def _fast(path: Path, config: dict[str, Any], is_bert: bool) -> PlainFast | None:
    stored = _json(path)
    named = _named(config, _USED | _BERT_USED, _BERT) if is_bert else _named(config, _USED, {})
    added = {
        token["content"]: token["id"]
        for token in stored.get("added_tokens", ())
        if _is_plain(token)
    }
    if named is None or not stored.get("post_processor") or not set(named.values()) <= added.keys():
        return None
    if is_bert and not _is_bert(stored, config, named):
        return None
    if config.get("added_tokens_decoder") and _decoder(config) != added:
        return None
    return (
        PlainFast(path, config, set(named.values()))
        if len(stored["model"]["vocab"]) > len(added)
        else None
    )


def _japanese(folder: Path, config: dict[str, Any]) -> PlainJapanese | None:
    named = _named(config, _USED | _JAPANESE_USED, _BERT)
    if named is None or not (folder / "vocab.txt").is_file():
        return None
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab, specials = {token: number for number, token in enumerate(lines)}, set(named.values())
    if not specials <= vocab.keys() or any(
        token not in specials or vocab[token] != number
        for token, number in _decoder(config).items()
    ):
        return None
    return PlainJapanese(folder, config, named, vocab)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _named(
    config: dict[str, Any], known: set[str], defaults: dict[str, str]
) -> dict[str, str] | None:
    """Special tokens by attribute; None when a setting is unknown or a token is not a plain one."""
    if any(
        value is not None and key not in known | _WITHOUT_EFFECT for key, value in config.items()
    ):
        return None
    tokens = {key: config[key] for key in _SPECIALS if config.get(key) is not None}
    for key in _EXTRA:
        if not isinstance(config.get(key) or [], list):
            return None
        tokens |= {f"{key}{number}": token for number, token in enumerate(config.get(key) or [])}
    if not all(
        isinstance(token, str) or _is_plain({"special": True, **token}) for token in tokens.values()
    ):
        return None
    return defaults | {
        key: token if isinstance(token, str) else token["content"] for key, token in tokens.items()
    }


def _is_plain(token: dict[str, Any]) -> bool:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return bool(token.get("special")) and not any(token.get(flag) for flag in flags)


def _decoder(config: dict[str, Any]) -> dict[str, int]:
    listed = config.get("added_tokens_decoder") or {}
    return {
        token["content"] if _is_plain(token) else "": int(number)
        for number, token in listed.items()
    }


def _is_bert(stored: dict[str, Any], config: dict[str, Any], named: dict[str, str]) -> bool:
    """Is tokenizer.json what transformers' `BertTokenizer` builds from these settings?"""
    model, vocab = stored["model"], stored["model"]["vocab"]
    start, end = named["cls_token"], named["sep_token"]
    single = [
        {"SpecialToken": {"id": start, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end, "type_id": 0}},
    ]
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    after = stored.get("post_processor") or {}
    return (
        stored.get("normalizer") == normalizer
        and stored.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and (model.get("type"), model.get("unk_token")) == ("WordPiece", named["unk_token"])
        and (model.get("continuing_subword_prefix"), model.get("max_input_chars_per_word"))
        == ("##", 100)
        and after.get("single") == single
        and all(
            after["special_tokens"][token]["ids"] == [vocab.get(token)] for token in (start, end)
        )
        and all(
            _is_plain(token) and vocab.get(token["content"]) == token["id"]
            for token in stored["added_tokens"]
        )
    )
