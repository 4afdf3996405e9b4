"""The installed software that decides token ids, learnt without loading any of it: `plan` runs on a
login node in a second.

A model directory comes in; names and versions, which are part of the fingerprint, come out. Cost:
none.
"""

from __future__ import annotations

import importlib.metadata
import unicodedata

from pipeline.errors import ModelError
from pipeline.job.model_dir import ModelDir

_DICTIONARIES = {"unidic_lite": "unidic-lite", "unidic": "unidic", "ipadic": "ipadic"}


def versions(model: ModelDir) -> dict[str, str]:
    """Package → version of the libraries and dictionaries that turn text into ids for this model,
    and the version of Unicode in Python.

    Raises ModelError when one of them is not installed.
    """
    config = model.tokenizer_config
    packages = ["tokenizers"]
    if config.get("tokenizer_class") == "BertJapaneseTokenizer":
        packages = []
        if config.get("word_tokenizer_type") == "mecab":
            dictionary = (config.get("mecab_kwargs") or {}).get("mecab_dic", "unidic_lite")
            packages = ["fugashi", _DICTIONARIES.get(dictionary, dictionary)]
    elif not (model.transformer_path / "tokenizer.json").is_file():
        packages.append("sentencepiece")
    versions_by_name = {"unicode": unicodedata.unidata_version}
    for package in packages:
        try:
            versions_by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModelError(
                f"{model.path}: its tokenizer needs {package}, which is not installed. "
                f"Run `pip install {package}`."
            ) from error
    return versions_by_name
