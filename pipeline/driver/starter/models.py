"""The short list of models that `init` knows by name, and the one that it takes by itself.

In: a name, or the language of a sample of texts. Out: a `Model` of models.yaml beside this file, or
one of which only the path is known. Nothing is fetched or opened.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from pathlib import Path
from typing import Any

from pipeline.errors import SpecError
from pipeline.storage.closed_yaml import load_yaml


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that a spec can name. name: its short name, "" for one that is not in the list. size:
    its parameters. prompt: what stands in front of a document, "" for nothing; None leaves it to
    the model directory."""

    name: str
    path: str
    languages: str = ""
    size: str = ""
    licence: str = ""
    dimensions: int = 0
    max_tokens: int = 0
    prompt: str | None = None

    def __str__(self) -> str:
        """Size, licence, dimensions and limit in a line; "" where only the path is known."""
        if not self.name:
            return ""
        facts = (self.size, self.licence, f"{self.dimensions} dimensions")
        return f"{', '.join(facts)}, {self.max_tokens:,} tokens"


@functools.cache
def known_models() -> dict[str, Model]:
    """The list, by short name."""
    fields: Any = load_yaml(Path(__file__).with_name("models.yaml").read_bytes())
    return {
        name: Model(name, languages=str(entry.pop("for")), **entry)
        for name, entry in fields.items()
    }


def model_named(name: str) -> Model:
    """The model of a short name, a folder, a URI or a name on the Hub. Raises SpecError for a short
    name that is not in the list."""
    models = known_models()
    if name.lower() in models:
        return models[name.lower()]
    by_path = {model.path.lower(): model for model in models.values()}
    if name.lower() in by_path:
        return by_path[name.lower()]
    if "/" in name or os.path.isdir(name):
        return Model("", name)
    nearest = difflib.get_close_matches(name.lower(), models, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise SpecError(
        f"--model {name}: {hint}It takes a folder, a name on the Hub such as org/name, or one of "
        f"{', '.join(models)}."
    )


def default_model(language: str, device: str) -> Model:
    """The model for texts of a language ("ja" or another one) on a device ("cpu" or "cuda"): a
    small one where there is no GPU."""
    is_large = device == "cuda"
    if language == "ja":
        return known_models()["ruri-v3-310m" if is_large else "ruri-v3-30m"]
    return known_models()["multilingual-e5-large" if is_large else "multilingual-e5-small"]
