"""The installed software that decides token ids, learnt without loading any of it: `plan` runs on a
login node in a second.

A model directory comes in; names and versions, which are part of the fingerprint, come out. Cost:
none; for a MeCab dictionary that is no package, one SHA-256 pass over it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import shlex
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.job.model.directory import ModelDir

_DICTIONARIES = {"unidic_lite": "unidic-lite", "unidic": "unidic", "ipadic": "ipadic"}
_WORD_PACKAGES = {"mecab": ["fugashi"], "sudachi": ["sudachipy"], "jumanpp": ["rhoknp"]}
"""word_tokenizer_type of a BertJapaneseTokenizer → the packages that cut its words."""

_WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes whose vocabulary is bytes or characters."""
_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.spm", "*.bpe"),
    *("*.vocab", "*.tiktoken", "entity_vocab.json"),
)
"""File names (patterns) of a vocabulary."""


def versions(model: ModelDir) -> dict[str, str]:
    """Name → version of all that turns text into ids for this model: libraries, dictionaries, the
    Unicode of Python, and transformers where it builds the tokenizer.

    Raises ModelError when one of them is not installed, or the directory has no tokenizer.
    """
    packages = [] if model.is_static or model.plain_tokenizer else ["transformers"]
    others: dict[str, str] = {}
    if model.tokenizer_class == "BertJapaneseTokenizer":
        words, others = _japanese(model)
        packages += words
    else:
        packages.append("tokenizers")
        if not (model.transformer_path / "tokenizer.json").is_file():
            packages += _without_json(model)
    installed = {package: _version(model, package) for package in packages}
    return {"unicode": unicodedata.unidata_version, **installed, **others}


def _version(model: ModelDir, package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"{model.path}: its tokenizer needs {package}, which is not installed. "
            f"Run `pip install {package}`."
        ) from error


def _without_json(model: ModelDir) -> list[str]:
    """The packages with which transformers reads a vocabulary that is not a tokenizer.json."""
    folder = model.transformer_path
    if model.tokenizer_class not in _WITHOUT_FILES and not any(
        next(folder.glob(pattern), None) for pattern in _FILES
    ):
        raise ModelError(
            f"{folder}: the directory has no tokenizer (no tokenizer.json, vocab.txt or "
            "tokenizer.model). Copy it from where the model was published."
        )
    models = (path for pattern in ("*.model", "*.spm") for path in folder.glob(pattern))
    return ["sentencepiece"] if any(models) else []


def _japanese(model: ModelDir) -> tuple[list[str], dict[str, str]]:
    """(packages, name → digest of other files) of a BertJapaneseTokenizer."""
    settings = model.tokenizer_config
    words = settings.get("word_tokenizer_type", "basic")
    packages = list(_WORD_PACKAGES.get(words, ()))
    others: dict[str, str] = {}
    if words == "mecab":
        arguments = settings.get("mecab_kwargs") or {}
        dictionary = arguments.get("mecab_dic", "unidic_lite")
        if dictionary is None:
            others["mecab dictionary"] = _dictionary_digest(model, arguments)
        else:
            packages.append(_DICTIONARIES.get(dictionary, str(dictionary)))
    elif words == "sudachi":
        arguments = settings.get("sudachi_kwargs") or {}
        packages.append(f"sudachidict-{arguments.get('sudachi_dict_type', 'core')}")
    if settings.get("subword_tokenizer_type") == "sentencepiece":
        packages.append("sentencepiece")
    return packages, others


def _dictionary_digest(model: ModelDir, arguments: Mapping[str, Any]) -> str:
    """The SHA-256 of the MeCab dictionary that `-d` of mecab_option names."""
    try:
        options = shlex.split(str(arguments.get("mecab_option") or ""))
    except ValueError:
        options = []
    folder = next((Path(b) for a, b in itertools.pairwise(options) if a == "-d"), None)
    folder = folder or next((Path(option[2:]) for option in options if option[:2] == "-d"), None)
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder else []
    if not files:
        raise ModelError(
            f"{model.path}: tokenizer_config.json names no MeCab dictionary of a package "
            f"(mecab_dic: null), and mecab_option {arguments.get('mecab_option')!r} names no "
            "folder of this machine with one. Install the dictionary where `-d` says, on every "
            "node, or set mecab_dic to unidic_lite, unidic or ipadic if the model was trained "
            "with it."
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
