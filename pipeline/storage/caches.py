"""The folders in which a node keeps what its next process would otherwise fetch or measure again.

A kind ("models", "index", "budgets", "logs") comes in; a folder of local disk below
CORPUS_EMBED_CACHE comes out. Standard library only, so that a GPU node needs no object-store
library for it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["cache_folder", "write_whole"]


def cache_folder(kind: str) -> Path:
    """`kind` below CORPUS_EMBED_CACHE, whose default is ~/.cache/corpus-embed. Not created here."""
    root = os.environ.get("CORPUS_EMBED_CACHE") or Path.home() / ".cache" / "corpus-embed"
    return Path(root) / kind


def write_whole(path: Path, data: bytes) -> None:
    """Create or replace a file, folders included. Other processes see all of it or nothing.

    Raises OSError when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
