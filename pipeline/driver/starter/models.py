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
from pipeline.job.model import store
from pipeline.job.model.settings import NO_LIMIT
from pipeline.storage.closed_yaml import load_yaml


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that a spec can name. name: its short name, "" for one that is not in the list. size:
    its parameters. dimensions, max_tokens: 0 where nobody knows. prompt: what stands in front of a
    document, "" for nothing; None leaves it to the model directory."""

    name: str
    path: str
    languages: str = ""
    size: str = ""
    licence: str = ""
    dimensions: int = 0
    max_tokens: int = 0
    prompt: str | None = None

    def __str__(self) -> str:
        """What is known of size, licence, dimensions and limit, in a line."""
        dimensions = f"{self.dimensions} dimensions" if self.dimensions else ""
        limit = f"{self.max_tokens:,} tokens" if self.max_tokens else ""
        return ", ".join(filter(None, (self.size, self.licence, dimensions, limit)))


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
    if os.path.isdir(os.path.expanduser(name)):
        return _model_in(name)
    if "/" in name:
        return Model("", name)
    nearest = difflib.get_close_matches(name.lower(), models, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise SpecError(
        f"--model {name}: {hint}It takes a folder, a name on the Hub such as org/name, or one of "
        f"{', '.join(models)}."
    )


def _model_in(folder: str) -> Model:
    """What a model directory says of itself. Raises ModelError for one that cannot be used."""
    directory = store.resolve(folder, None, {})
    return Model(
        "",
        folder,
        licence=directory.license or "no licence stated",
        dimensions=directory.max_dimension or 0,
        max_tokens=directory.max_tokens if directory.max_tokens < NO_LIMIT else 0,
    )


def default_model(language: str, device: str) -> Model:
    """The model for texts of a language ("ja" or another one) on a device ("cpu" or "cuda"): a
    small one where there is no GPU."""
    is_large = device == "cuda"
    if language == "ja":
        return known_models()["ruri-v3-310m" if is_large else "ruri-v3-30m"]
    return known_models()["multilingual-e5-large" if is_large else "multilingual-e5-small"]
