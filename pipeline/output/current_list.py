"""The live data files of the newest snapshot under one name that stays, for readers that can take a
list of files and cannot open a snapshot.

In: an output. Out: `_meta/current/manifest`, a text with one absolute path or URI a line. It is the
"symlink manifest" that Presto, Trino and Athena read as a table, the newline-delimited manifest of
BigQuery, and a line of code for DuckDB, Polars and Spark (`corpus-embed files OUTPUT --sql …`). Why
this and no folder of copies or links: docs/lake.md.

It is the one object of an output that is replaced, whole, after each snapshot. The commit does not
depend on it: a failure is a note, and the next run or compaction brings it up. Of two writers the
slower one may put an older list; it looks again afterwards and puts the newer one. Cost: a listing
of snapshots, three small reads and a PUT.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from pipeline.errors import CorpusEmbedError, OutputError
from pipeline.output.snapshots import load_snapshot
from pipeline.storage import data_files, layout
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import Snapshot
from pipeline.storage.notes import note
from pipeline.storage.store import Store

MAX_ROUNDS = 3
"""How often a writer looks whether a newer snapshot has come meanwhile."""


def bring_up(store: Store) -> None:
    """Make the list that of the newest snapshot. Never raises: what fails is a note."""
    try:
        for _ in range(MAX_ROUNDS):
            snapshot = load_snapshot(store)
            if snapshot is None:
                return
            lines = as_lines(store, live_paths(store, snapshot))
            if store.read_or_none(layout.CURRENT) == lines:
                return
            store.replace(layout.CURRENT, lines)
    except (OSError, CorpusEmbedError) as error:
        problem = str(error) if isinstance(error, CorpusEmbedError) else reason(error)
        note(
            f"{store.shown_uri}/{layout.CURRENT}: the list of files for other readers could not be "
            f"brought up to the newest snapshot: {problem.rstrip('.')}. The snapshot itself is "
            "whole; the next run tries again."
        )


def live_paths(store: Store, snapshot: Snapshot) -> list[str]:
    """The relative paths of the data files of a snapshot, sorted. Raises OutputError when its file
    list is gone or damaged."""
    try:
        table = data_files.read_table(store.read(snapshot.file_list), ["paths"])
        paths = table["paths"].combine_chunks().flatten().cast(pa.string()).to_pylist()
    except (OSError, pa.ArrowException, AttributeError) as error:
        raise OutputError(
            f"{store.shown_uri}/{snapshot.file_list}: the file list of snapshot {snapshot.number} "
            f"cannot be read: {reason(error)}. Restore it from a backup."
        ) from error
    if strange := [path for path in paths if not layout.is_at(path or "", "data")]:
        raise OutputError(
            f"{store.shown_uri}/{snapshot.file_list}: {strange[0]!r} is no path of a data file. "
            "Restore the file list from a backup."
        )
    return sorted(paths)


def address(store: Store, path: str) -> str:
    """How other readers find an object: an absolute path on a disk, otherwise a URI."""
    return f"{store.root if store.local else store.uri}/{path}"


def as_lines(store: Store, paths: Iterable[str]) -> bytes:
    return "".join(f"{address(store, path)}\n" for path in paths).encode()
