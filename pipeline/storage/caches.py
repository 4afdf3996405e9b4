"""The folders in which a node keeps what its next process would otherwise fetch or measure again.

A kind ("models", "index", "budgets", "rates", "logs") comes in; a folder of local disk below
CORPUS_EMBED_CACHE comes out. A cache only saves time, so one that cannot be written (read-only,
full, another user's) costs a note and never what it would have held: a folder of this user below
the temporary folder takes its place, and where that fails too, memory. Standard library only, so
that a GPU node needs no object-store library for it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.storage.local_files import new_file
from pipeline.storage.notes import note_once

__all__ = ["cache_folder", "cached", "keep", "note_unusable", "usable_folders", "writable_folder"]

T = TypeVar("T")


def cache_folder(kind: str) -> Path:
    """`kind` below CORPUS_EMBED_CACHE, whose default is ~/.cache/corpus-embed. Not created here."""
    root = os.environ.get("CORPUS_EMBED_CACHE") or "~/.cache/corpus-embed"
    return Path(root).expanduser() / kind


def usable_folders(kind: str) -> Iterator[Path]:
    """The folders for `kind`, best first: the cache folder, then that of this user below the
    temporary folder. The first may not exist yet, and either may turn out to be full."""
    with contextlib.suppress(RuntimeError):  # no home folder
        yield cache_folder(kind)
    with contextlib.suppress(OSError):
        yield _private_folder() / kind


def writable_folder(kind: str) -> Path:
    """The first of `usable_folders` in which a file can be made, created where it is missing.

    Raises OSError when there is none.
    """
    failure: OSError | None = None
    for folder in usable_folders(kind):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new_file(folder, b"").unlink()
        except OSError as error:
            note_unusable(folder, error)
            failure = error
        else:
            return folder
    raise failure or OSError(f"neither a home folder nor a temporary folder for {kind}")


def cached(
    kind: str, name: str, fetch: Callable[[], bytes], load: Callable[[Path | bytes], T]
) -> T:
    """What `load` makes of the file `name` of a cache, which is fetched where it is missing or
    damaged.

    load: called with the file, or with its bytes where no folder takes it. Raises what `fetch`
    raises, and what `load` raises for bytes that were just fetched.
    """
    for folder in usable_folders(kind):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return load(folder / name)
    data = fetch()
    return load(keep(kind, name, data) or data)


def keep(kind: str, name: str, data: bytes) -> Path | None:
    """Write the file `name` of a cache, or replace it; returns its path, None where no folder takes
    it."""
    for folder in usable_folders(kind):
        try:
            _write_whole(folder / name, data)
        except OSError as error:
            note_unusable(folder, error)
        else:
            return folder / name
    return None


def note_unusable(folder: Path, error: OSError) -> None:
    """Note, once a folder, that it cannot be written and what is done instead."""
    note_once(
        str(folder),
        f"the cache {folder} cannot be written ({error.strerror or error}): the temporary folder "
        "or memory takes its place. Set CORPUS_EMBED_CACHE to a folder that can be written and has "
        "room.",
    )


def _private_folder() -> Path:
    """A folder of this user alone below the temporary folder. Raises OSError when there is none, or
    when somebody else can write into it: they could put another model there."""
    folder = Path(tempfile.gettempdir()) / f"corpus-embed-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    is_private = stat.S_ISDIR(facts.st_mode) and not facts.st_mode & 0o022
    if not is_private or facts.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to somebody else, or others can write into it")
    return folder


def _write_whole(path: Path, data: bytes) -> None:
    """Create or replace a file, folders included. Other processes see all of it or nothing.

    Raises OSError when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_file(path.parent, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink()
        raise
