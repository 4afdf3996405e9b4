"""Tokenizers built from their files alone, without transformers, whose import takes 2-3 s of CPU.

In: a model directory. Out: an object with those attributes of a transformers tokenizer that `fast`
and `mecab` use, or None where the files do not say all of it (`job/model/plain_files.py`): then
transformers has to load the directory. The tests compare the ids with those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from pipeline.errors import ModelError
from pipeline.tokenize.plain_japanese import PlainJapanese

if TYPE_CHECKING:
    from pipeline.job.model.directory import ModelDir

__all__ = ["read_plain"]


class PlainFast:
    """tokenizer.json, and what else `fast.FastTokenizer` asks for. Raises ModelError where the file
    cannot be read."""

    is_fast = True
    split_special_tokens = False

    def __init__(self, path: Path, settings: Mapping[str, Any], special_ids: list[int]) -> None:
        try:
            self.backend_tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(
                f"{path}: the tokenizer could not be loaded: {error}. Restore it from its source."
            ) from error
        self.backend_tokenizer.no_padding()
        self.truncation_side = settings.get("truncation_side", "right")
        self.all_special_ids = special_ids


def read_plain(model: ModelDir) -> PlainFast | PlainJapanese | None:
    """The tokenizer, or None where the files alone do not say all of it.

    Raises ModelError for files that cannot be read. transformers is never asked about a
    StaticEmbedding model.
    """
    folder = model.transformer_path
    if model.is_static:
        return _static(folder / "tokenizer.json")
    files = model.plain_tokenizer
    if files is None:
        return None
    if files.vocab is not None:
        return PlainJapanese(folder, files.settings, files.special_tokens, dict(files.vocab))
    return PlainFast(folder / "tokenizer.json", files.settings, list(files.special_ids.values()))


def _static(path: Path) -> PlainFast:
    """tokenizer.json as it is, with nothing put round a text."""
    tokenizer = PlainFast(path, {}, [])
    backend = tokenizer.backend_tokenizer
    backend.post_processor = None
    if backend.truncation:
        tokenizer.truncation_side = backend.truncation["direction"]
    return tokenizer
