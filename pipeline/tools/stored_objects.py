"""Every object of an output with its size and age, for `vacuum`.

In: a store. Out: the objects whose names this package made, so that nothing else is ever judged or
deleted. Cost: one listing of everything under the root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.storage import layout
from pipeline.storage.retry import retried
from pipeline.storage.store import Store


class StoredObject(NamedTuple):
    """One object that this package named. changed_at: seconds since 1970 by the store's clock."""

    location: layout.Location
    size_bytes: int
    changed_at: float


Objects = Mapping[str, StoredObject]
"""Objects by their path relative to the output."""


def list_objects(store: Store, folder: str = "") -> Iterator[tuple[str, StoredObject]]:
    """(path, object) of everything under the root, or a relative folder of it, whose name this
    package made.

    Raises OutputError when the store reports no modification times.
    """
    root = f"{store.root}/{folder}".rstrip("/")
    listed = _walk(Path(root), Path(store.root)) if store.local else _find(store, root)
    for path, size_bytes, changed_at in listed:
        if location := layout.locate(path):
            yield path, StoredObject(location, size_bytes, changed_at)


def _find(store: Store, folder: str) -> Iterator[tuple[str, int, float]]:
    action = f"list {store.shown_uri}"
    names = retried(lambda: store.fs.find(folder, detail=True), action, store.endpoint)
    root = f"{store.root}/"
    for name, info in names.items():
        if name.startswith(root):
            yield name.removeprefix(root), int(info["size"]), store.changed_at(info)


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, int, float]]:
    """Links are neither followed nor listed, so that nothing outside the root can be named."""
    for directory, _, names in os.walk(folder, followlinks=False):
        for name in names:
            path = Path(directory, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # a temporary file of a run that is writing
                continue
            if stat.S_ISREG(status.st_mode):
                yield path.relative_to(root).as_posix(), status.st_size, status.st_mtime


def of_kind(objects: Objects, kind: str) -> dict[str, StoredObject]:
    return {path: item for path, item in objects.items() if item.location.kind == kind}
