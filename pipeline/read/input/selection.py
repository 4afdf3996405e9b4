"""Which of the objects that a URI names become shards; the others are passed over, and counted."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import SpecError
from pipeline.read import format_of, known_suffixes
from pipeline.read.compression import compression_of
from pipeline.read.input import local_files
from pipeline.read.input.listing import Info, Listing, list_advice
from pipeline.read.input.passed_over import (
    COMPRESSED_PARQUET,
    FOLDER_MARKER,
    MATCHED_FOLDER,
    NOT_A_FILE,
    UNKNOWN_SUFFIX,
    PassedOver,
    kind_of_name,
)
from pipeline.read.input.tables import refuse_tables
from pipeline.storage.addresses import shown
from pipeline.storage.printable import printable

MAX_NAMES = 2
"""How many of the objects that are no input a message names."""


def inputs_of(
    fs: Any, uri: str, listing: Listing, format: str, passed_over: PassedOver
) -> dict[str, Info]:
    """The objects that become shards, by name; the others are added to `passed_over`. Raises what
    `list_shards` raises about them."""
    entered = _folders_of(listing.files)
    if not listing.is_exact:
        within = entered if listing.is_pattern else None
        refuse_tables(fs, uri, listing.root, listing.names, within)
    inputs: dict[str, Info] = {}
    for name, info in listing.files.items():
        kind = None if listing.is_exact else _kind_of_file(name, listing, format)
        if name in entered and not info.get("size"):
            kind = FOLDER_MARKER
        if kind is None:
            inputs[name] = info
        else:
            passed_over.add(str(fs.unstrip_protocol(name)), kind)
    for name, info in listing.others.items():
        is_folder = info["type"] == "directory" and not info.get("islink")
        kind = kind_of_name(name, listing.is_hidden(name))
        if not is_folder:
            passed_over.add(str(fs.unstrip_protocol(name)), kind or NOT_A_FILE)
        elif name.rstrip("/") not in entered:
            passed_over.add(str(fs.unstrip_protocol(name)), kind or MATCHED_FOLDER)
    if local_files.is_local(fs):
        if not listing.is_exact:
            links = [name for name, info in inputs.items() if info["islink"]]
            local_files.check_links(uri, listing.root, links)
        folders = [name for name in listing.folders if not listing.is_hidden(name)]
        local_files.check_readable(uri, inputs, [*folders, listing.root])
    if not inputs:
        raise SpecError(_nothing_found(fs, uri, listing))
    return inputs


def _folders_of(names: Iterable[str]) -> set[str]:
    """All folders on the way to the names."""
    folders: set[str] = set()
    for name in names:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return folders


def _kind_of_file(name: str, listing: Listing, format: str) -> str | None:
    """Why a listed file is no input; None where it is."""
    if kind := kind_of_name(name, listing.is_hidden(name)):
        return kind
    is_parquet = format == "parquet" or ".parq" in name.lower()
    try:
        format_of(name, format)
    except SpecError:
        return COMPRESSED_PARQUET if compression_of(name) and is_parquet else UNKNOWN_SUFFIX
    return None


def _nothing_found(fs: Any, uri: str, listing: Listing) -> str:
    """What was looked at instead of input, in words."""
    root = listing.root.rstrip("/")
    place = shown(str(fs.unstrip_protocol(root)))
    objects = sorted({**listing.files, **listing.others})
    if not objects and listing.is_pattern:
        near = sorted(name for name in listing.names if name.rstrip("/") != root)
        holds = f"holds {_some(near)}" if near else "is empty or does not exist"
        return (
            f"{shown(uri)}: no input found there (no name matches the pattern, and the folder "
            f"{place} {holds}). Check input.uri{list_advice(uri)}."
        )
    if not objects:
        return f"{place}: no input found there (the folder is empty). Check input.uri."
    if all(info["type"] == "directory" for info in listing.others.values()) and not listing.files:
        return (
            f"{shown(uri)}: no input found there (the pattern matches only folders: "
            f"{_some(objects)}). Check input.uri: a pattern for what is in them ends in /**."
        )
    return (
        f"{place}: no input found there ({len(objects)} objects, none of a known format: "
        f"{_some(objects)}; {known_suffixes()}). Check input.uri{list_advice(uri)}, or set "
        "input.format."
    )


def _some(names: Sequence[str]) -> str:
    """The last steps of the first MAX_NAMES names."""
    steps = [printable(posixpath.basename(name.rstrip("/"))) for name in names[:MAX_NAMES]]
    return ", ".join(steps) + (", …" if len(names) > MAX_NAMES else "")
