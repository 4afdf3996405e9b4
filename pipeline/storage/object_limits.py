"""How much of an object is read whole: a bound for each kind, since anybody who can write to an
output can put an object of any size in the place of another.

A path comes in, a number of bytes comes out. `Store.read` asks before it reads.
"""

from __future__ import annotations

from pipeline.storage import layout

MAX_BYTES = {
    "manifest": 256 << 20,  # a joined part has a span for each of its shards
    "rejects": 1 << 30,
    "snapshot": 1 << 20,
    "file list": 1 << 30,  # a manifest for each part
    "current list": 1 << 30,
    "index": 512 << 20,
    "ids": 512 << 20,
    "generation": 16 << 20,
    "run record": 1 << 30,  # a row for each span of the plan
    "lease": 1 << 20,
    "table": 1 << 20,
    "work": 1 << 20,
    "live record": 1 << 20,
}
"""The most bytes of an object of each kind that are read: several times what the largest outputs
have. Data files, which are read in pieces, have no such limit."""


def max_bytes(path: str) -> int | None:
    """The most bytes that are read of the object at a path; None where there is no limit."""
    if path.startswith(layout.PUBLICATIONS + "/"):
        return 1 << 20
    if path in (layout.CARD, layout.CROISSANT):
        return 16 << 20  # a thousand files of the longest names, twice
    location = layout.locate(path)
    return MAX_BYTES.get(location.kind) if location else None
