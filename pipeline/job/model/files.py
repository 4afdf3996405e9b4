"""The files of a model directory: which of them can change a vector, their hashes, and their JSON.

A directory comes in; relative POSIX path → SHA-256 comes out, which the fingerprint and every
worker of a run hold the model to. Cost: one pass over the weights (about 1 GB/s a core).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ModelError

__all__ = [
    "OTHER_BACKENDS",
    "SUFFIXES",
    "changes_vectors",
    "check_fetched",
    "hashes",
    "load_json",
    "reading",
]

SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".jinja"}
"""Suffixes of files that can change a vector."""

OTHER_BACKENDS = {"onnx", "openvino"}
"""Folders with copies of the model for runtimes that this package does not use."""

_NOT_IN_A_VECTOR = {
    "all_results.json",
    "data_config.json",
    "eval_results.json",
    "generation_config.json",
    "trainer_state.json",
    "train_results.json",
    "requirements.txt",
    "license.txt",
}


_POINTER = b"version https://git-lfs.github.com/"
_POINTER_BYTES = 1024
"""git-lfs (docs/spec.md): a pointer is shorter than that."""


def changes_vectors(name: str) -> bool:
    """Whether a file (relative POSIX path) can change a vector. JSON of an unknown name counts: an
    unneeded new embedding does less harm than a stale one."""
    path = PurePosixPath(name)
    is_hidden = any(step.startswith(".") for step in path.parts)
    return (
        path.suffix in SUFFIXES
        and not is_hidden
        and not OTHER_BACKENDS & set(path.parts)
        and path.name.lower() not in _NOT_IN_A_VECTOR
    )


def hashes(path: Path) -> dict[str, str]:
    """Relative POSIX path → SHA-256 of every file below `path` that can change a vector, sorted."""
    digests = {}
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        if changes_vectors(name):
            with (path / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_fetched(path: Path, source: str) -> None:
    """Raises ModelError where Git has left a pointer in place of a large file."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if not changes_vectors(name) or file.stat().st_size > _POINTER_BYTES:
            continue
        if file.read_bytes().startswith(_POINTER):
            raise ModelError(
                f"{source}: {name} is a pointer of Git LFS and not the file itself. Fetch what it "
                "points to: git lfs pull in the clone, or hf download."
            )


@contextmanager
def reading(source: str, files: str) -> Iterator[None]:
    """What a value of another type than is written there makes Python raise becomes a ModelError
    that names the files; `source` is what it calls the model."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{source}: {files} does not hold what sentence-transformers and transformers write "
            f"there: {type(error).__name__}: {error}. Restore it from its source."
        ) from error


def load_json(path: Path, source: str, default: Any = None) -> Any:
    """A JSON file of the model that messages call `source`; `default`, where one is given, for a
    file that does not exist. Raises ModelError when it cannot be read."""
    if not path.is_file():
        if default is not None:
            return default
        raise ModelError(f"{source}: {path} not found. Restore it from its source.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source}: {path} could not be read as JSON: {error}. Restore it from its source."
        ) from error
