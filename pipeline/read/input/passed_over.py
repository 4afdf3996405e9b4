"""What a listing of the input leaves out: counted by kind and named, so that nothing that somebody
could have meant is left out in silence.

`list_shards` fills a PassedOver; `plan`, the end of a run and the record of the run show it.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.read.compression import compression_of
from pipeline.storage.addresses import shown
from pipeline.storage.printable import printable

UNKNOWN_SUFFIX = "unknown suffix"
COMPRESSED_PARQUET = "compressed Parquet"
HIDDEN = "hidden"
CHECKSUM = "checksum"
FOLDER_MARKER = "folder marker"
NOT_A_FILE = "not a file"
MATCHED_FOLDER = "folder that a pattern matches"
NOT_UTF8 = "name is not UTF-8"
SECOND_NAME = "second name of a shard"

_WORDS = {
    UNKNOWN_SUFFIX: "with an unknown suffix",
    COMPRESSED_PARQUET: "with compressed Parquet",
    HIDDEN: "hidden by _ or . in the name",
    CHECKSUM: "with checksums",
    FOLDER_MARKER: "that only mark a folder",
    NOT_A_FILE: "that are no regular file",
    MATCHED_FOLDER: "that are folders and match the pattern (/** reads what is in them)",
    NOT_UTF8: "whose name is not UTF-8",
    SECOND_NAME: "that are second names of shards",
}
"""A kind in words, after "objects passed over: 3"."""

MAX_EXAMPLES = 3
"""How many names of each kind are given."""

_CHECKSUMS = (".crc", ".md5", ".sha1", ".sha256", ".sha512")


class PassedOver:
    """The objects that were listed and are no shards."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}  # by URI

    def add(self, uri: str, kind: str) -> None:
        """Count an object, once however often it is listed."""
        self._kinds.setdefault(printable(shown(uri)), kind)

    def forget(self, uri: str) -> None:
        """Another URI of the input names this object, so it is read after all."""
        if self._kinds:
            self._kinds.pop(printable(shown(uri)), None)

    def summary(self) -> dict[str, dict[str, Any]]:
        """By kind: `n_objects`, `suffixes` (how many names end in each, of unknown ones only) and
        `examples` (the first MAX_EXAMPLES names, sorted)."""
        names: dict[str, list[str]] = {}
        for uri, kind in sorted(self._kinds.items()):
            names.setdefault(kind, []).append(uri)
        facts: dict[str, dict[str, Any]] = {}
        for kind in sorted(names, key=lambda kind: (kind == HIDDEN, kind)):
            suffixes = Counter(map(_suffix, names[kind])) if kind == UNKNOWN_SUFFIX else {}
            facts[kind] = {
                "n_objects": len(names[kind]),
                "suffixes": dict(sorted(suffixes.items())),
                "examples": names[kind][:MAX_EXAMPLES],
            }
        return facts


def sentence(summary: Mapping[str, dict[str, Any]]) -> str:
    """A summary in one line for people; empty where nothing was passed over."""
    kinds = []
    for kind, facts in summary.items():
        suffixes = ", ".join(f"{suffix} {n}" for suffix, n in facts["suffixes"].items())
        names = ", ".join(posixpath.basename(uri.rstrip("/")) for uri in facts["examples"])
        more = ", …" if facts["n_objects"] > len(facts["examples"]) else ""
        words = f"{_WORDS[kind]} ({suffixes})" if suffixes else _WORDS[kind]
        kinds.append(f"{facts['n_objects']} {words}: {names}{more}")
    return "; ".join(kinds)


def kind_of_name(name: str, is_hidden: bool) -> str | None:
    """Why an object is no input by its name alone; None when it can be. name: its full path.
    is_hidden: whether a step of it below the listed folder starts with `_` or `.`."""
    if name.endswith(("/", "_$folder$")):
        return FOLDER_MARKER
    if not is_utf8(name):
        return NOT_UTF8
    if is_hidden:
        return HIDDEN
    return CHECKSUM if name.lower().endswith(_CHECKSUMS) else None


def is_utf8(name: str) -> bool:
    """Whether a name can be stored: Python gives other bytes of a disk as halves of surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(uri: str) -> str:
    """What a name ends in, with a compression suffix the one before it, too."""
    stem, suffix = posixpath.splitext(uri)
    if compression_of(uri):
        suffix = posixpath.splitext(stem)[1] + suffix
    return suffix or "no suffix"
