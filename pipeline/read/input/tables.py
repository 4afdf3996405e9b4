"""Folders that are tables: their files also hold rows that were deleted or replaced, so they are
refused by name instead of being read like any folder.

A table is recognised by the folder that its format keeps beside the data: among the names that a
listing has met anyway, and above a listed folder that is itself a part of a table (`lang=ja`,
`data`). A file that somebody names exactly is read, whatever lies beside it. Cost: nothing where no
such folder is met, a few requests to confirm one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Iterable
from typing import Any

from pipeline.errors import SpecError
from pipeline.storage import layout
from pipeline.storage.addresses import shown

_KINDS = {
    "an output of corpus-embed": (layout.RUNS, ""),
    "a Delta table": ("_delta_log", ""),
    "a Hudi table": (".hoodie", ""),
    "an Iceberg table": ("metadata", ".metadata.json"),
    "a Lance dataset": ("_versions", ".manifest"),
}
"""By kind: a folder that it keeps beside the data, and how a name in it ends."""

_OUTPUT_ADVICE = (
    "Name the input that it was made from, or write the rows of its current snapshot "
    "(pipeline.open_dataset) to another folder, and name that."
)
_TABLE_ADVICE = "Write the table's current rows to Parquet files in another folder, and name that."

_TRACE = re.compile(
    "|".join(
        rf"/(?P<k{number}>{re.escape(folder)})"
        + (rf"(?:/[^/]*{re.escape(ending)})?$" if ending else "(?:/|$)")
        for number, (folder, ending) in enumerate(_KINDS.values())
    )
)
"""Finds in a name that was met the folder of a kind; the group says of which."""


def refuse_tables(
    fs: Any, uri: str, root: str, names: Iterable[str], within: Container[str] | None = None
) -> None:
    """Raises SpecError when a listed folder is a table, contains one, or lies in one.

    root: the folder. names: everything that was met below it. within: the folders that matter,
    where a pattern leaves others out.
    """
    candidates = {(folder, kind): None for folder in _above(root) for kind in _KINDS}
    kinds = list(_KINDS)
    for name in names:
        may_match = "/_" in name or "/." in name or "/metadata" in name
        if may_match and (trace := _TRACE.search(name)) and trace.lastgroup:
            folder = name[: trace.start()]
            if within is None or folder in within:
                candidates[folder, kinds[int(trace.lastgroup[1:])]] = None
    for folder, kind in sorted(candidates, key=lambda candidate: kinds.index(candidate[1])):
        beside, ending = _KINDS[kind]
        if _holds(fs, f"{folder}/{beside}", ending):
            place = shown(str(fs.unstrip_protocol(folder)))
            advice = _OUTPUT_ADVICE if beside == layout.RUNS else _TABLE_ADVICE
            raise SpecError(
                f"{shown(uri)}: {place} is {kind} (it has {beside}/). Beside its current rows lie "
                "rows that were deleted or replaced, so its files are not read one by one. "
                f"{advice}"
            )


def _above(root: str) -> list[str]:
    """The folders above `root` of whose table it can be a part."""
    folders = []
    folder = root.rstrip("/")
    while (step := posixpath.basename(folder)) == "data" or "=" in step:
        folder = posixpath.dirname(folder)
        folders.append(folder)
    return folders


def _holds(fs: Any, folder: str, ending: str) -> bool:
    """Whether a name in `folder` ends so."""
    names = fs.find(folder, maxdepth=1, withdirs=True)
    return any(name.rstrip("/") != folder and name.endswith(ending) for name in names)
