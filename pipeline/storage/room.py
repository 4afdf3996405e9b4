"""How long the names below an output can be: what a store takes, less what stands before them.

The root of an output comes in; a number of bytes, or why no output can be there, comes out. S3 and
its like take 1,024 bytes of UTF-8 a key, prefix included; Linux takes 255 bytes a step and 4,095 a
path. The names below a local output keep to 1,024 bytes too, so that it can be copied to a store.
Nothing is read but the folder that holds, or is to hold, a local output, and nothing is left there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline.storage import layout
from pipeline.storage.addresses import normalized, normalized_output

__all__ = ["folder_room_bytes", "problem_of_folder", "problem_of_root", "problem_of_workers"]

KEY_BYTES = 1024
PATH_BYTES = 4095
STEP_BYTES = 255
PART_ID_DIGITS = 32
SIBLING_DIGITS = 16
"""Hexadecimal digits of a part's id, and of those that `layout.sibling` appends to it."""
LONGEST_META_BYTES = 256
"""More than the longest name that this package, Delta Lake or Iceberg gives to an object outside of
`data`."""

_PROCESS_LOCAL = {"memory"}
_READ_ONLY = {"http", "https"}


def _room_bytes(uri: str) -> int:
    """The most bytes of a path below the root of an output."""
    _, mark, rest = normalized_output(uri).partition("://")
    if not mark:
        root = normalized_output(uri).rstrip("/")
        return min(KEY_BYTES, PATH_BYTES - len(os.fsencode(root)) - 1)
    prefix = rest.partition("/")[2]
    return KEY_BYTES - len(f"{prefix}/".lstrip("/").encode())


def folder_room_bytes(uri: str) -> int:
    """The most bytes of the Hive folders of a data file (`a=1/b=2`) of the output at `uri`."""
    longest_id = "0" * (PART_ID_DIGITS + SIBLING_DIGITS)
    return _room_bytes(uri) - len(layout.data_file("", longest_id)) - 1


def problem_of_workers(uri: str) -> str | None:
    """Why the workers of a run cannot see what is at a URI, whoever made it; None where they
    can."""
    protocol, mark, _ = normalized(uri).partition("://")
    if mark and protocol in _PROCESS_LOCAL:
        return (
            f"{protocol}:// is the memory of one process, and every worker is another process. "
            "Use a folder or an object store"
        )
    return None


def problem_of_root(uri: str) -> str | None:
    """Why no output can be at a normalised root, from its name alone; None where one can."""
    protocol, mark, rest = uri.partition("://")
    if problem := problem_of_workers(uri):
        return problem
    if mark and protocol in _READ_ONLY:
        return f"{protocol}:// can be read but not written. Use a folder or an object store"
    if mark and not rest.partition("/")[0]:
        return f"no bucket is named. Write {protocol}://bucket/prefix"
    if not mark:
        for step in uri.split("/"):
            if len(os.fsencode(step)) > STEP_BYTES:
                return (
                    f"'{step[:40]}…' is {len(os.fsencode(step))} bytes long, and a name on a disk "
                    f"has at most {STEP_BYTES}. Choose a shorter one"
                )
    if (room := _room_bytes(uri)) < LONGEST_META_BYTES:
        return (
            f"names below it could have {max(0, room)} bytes, and those of an output need "
            f"{LONGEST_META_BYTES}: this store takes {KEY_BYTES if mark else PATH_BYTES} in all. "
            "Choose a shorter one"
        )
    return None


def problem_of_folder(root: str) -> str | None:
    """Why no output can be written at a local path; None where one can. It makes a file without a
    name in the nearest folder that exists, which vanishes when it is closed."""
    existing = Path(root)
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.exists():
        return f"{existing} is a link that leads nowhere. Remove it or restore what it names"
    if not existing.is_dir():
        return f"{existing} is a file, and an output is a folder. Choose another name"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        return f"nothing can be written in {existing}: {words}. Choose another folder"
