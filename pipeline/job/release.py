"""The version of this package, for records and for keys of what depends on it."""

from __future__ import annotations

import importlib.metadata

__all__ = ["release"]


def release() -> str:
    """The installed version of this package."""
    try:
        return importlib.metadata.version("corpus-embed")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
