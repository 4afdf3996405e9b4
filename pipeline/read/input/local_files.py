"""What only a disk has: links, several names of one file, and files that may not be opened.

Cost: a system call a file, and the resolution of each folder's path once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import InputError, SpecError
from pipeline.storage.addresses import shown

SYSTEM_FOLDERS = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}
"""Folders at the root of a volume that belong to its file system; users may not enter them."""


def is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def identities(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What all names of one file have in common, by name: its path without links, or of a file with
    several hard links its number. infos: as fsspec's LocalFileSystem gives them."""
    real_folder = functools.cache(os.path.realpath)  # for this listing: links can change

    def identity(name: str, info: Mapping[str, Any]) -> str:
        if info["islink"]:
            return os.path.realpath(name)
        folder, _, base = name.rpartition("/")
        return f"{real_folder(folder or '/').rstrip('/')}/{base}"

    def number(name: str) -> str | None:
        with contextlib.suppress(OSError):  # removed meanwhile
            status = os.stat(name)
            if status.st_ino and status.st_nlink > 1:
                return f"{status.st_dev}:{status.st_ino}"
        return None

    return {
        name: (number(name) if info["nlink"] > 1 else None) or identity(name, info)
        for name, info in infos.items()
    }


def check_links(uri: str, root: str, links: Iterable[str]) -> None:
    """Raises SpecError for links that lead out of `root`, the folder that was named: files that
    nobody named must not be read, because anyone who can write to the folder could link to any
    file the run can read. In a snapshot of the Hub's cache every file is a link to a blob of the
    same repository, and the blobs' folder counts as a part of it."""
    top = os.path.realpath(root)
    allowed = [top]
    if hub := re.fullmatch(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots(?:/.*)?", top):
        allowed.append(f"{hub[1]}/blobs")
    targets = {link: os.path.realpath(link) for link in links}
    strays = [
        link
        for link, target in sorted(targets.items())
        if not any(os.path.commonpath([folder, target]) == folder for folder in allowed)
    ]
    if strays:
        others = f" (and {len(strays) - 1} more like it)" if len(strays) > 1 else ""
        raise SpecError(
            f"{shown(uri)}: {strays[0]} is a link to {targets[strays[0]]}, outside of {top}"
            f"{others}. Remove it, or name that file in input.uri."
        )


def check_readable(uri: str, files: Iterable[str], folders: Iterable[str]) -> None:
    """Raises InputError for files and folders that exist and that this user may not open: a listing
    passes over such folders without a word, and a run finds out about such files one by one.
    SYSTEM_FOLDERS are left out."""
    use_effective = os.access in os.supports_effective_ids
    refused = [
        path
        for paths, mode in ((files, os.R_OK), (folders, os.R_OK | os.X_OK))
        for path in paths
        if not os.access(path, mode, effective_ids=use_effective)
        and os.path.exists(path)
        and os.path.basename(path) not in SYSTEM_FOLDERS
    ]
    if refused:
        others = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise InputError(
            f"{shown(uri)}: access was refused: {min(refused)}{others} cannot be opened by this "
            "user. Change the permissions, or leave them out of input.uri."
        )
