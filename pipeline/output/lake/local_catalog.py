"""The default catalog of Iceberg tables, a SQLite file in the output, and where tables lie.

Comes in: the store of an output. Goes out: addresses that pyiceberg takes literally, whatever the
output is called. The catalog states absolute locations, so those of a moved output lead to where it
lay before: such a table is dropped from the catalog, and published anew from the snapshots. Whoever
can write the output can write this file, too: it is looked at before a library opens it. Cost: a
query a table.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import OutputError
from pipeline.output.lake.table import MAX_METADATA_BYTES
from pipeline.storage import layout
from pipeline.storage.store import Store

OUTPUT = "corpus-embed.output"
CATALOG_NAME = "corpus-embed"
"""What a catalog is called in pyiceberg's configuration unless its properties have a `name`."""
_PATH = f"{layout.ICEBERG}/catalog.db"
_MARKS = frozenset("#?")
"""What pyiceberg takes for the end of a path in a URI; it decodes nothing."""


def root_location(store: Store) -> str:
    """The root of an output as locations in an Iceberg table begin.

    Raises OutputError for a name on a store that such a location cannot hold.
    """
    location: str = store.fs.unstrip_protocol(store.root)
    if not _MARKS & {*store.root}:
        return location
    if store.local:
        return store.root  # a plain path is taken as it is
    raise OutputError(
        f"{store.shown_uri}: its name has a '#' or a '?', at which pyiceberg cuts every location, "
        "so it cannot be an Iceberg table. Publish to Delta, or use another output.uri."
    )


def catalog_uri(store: Store) -> str:
    """The address of the catalog for SQLAlchemy; creates its folder."""
    path = store.path(_PATH)  # raises where a link leads out
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _check(store)
    if not (_MARKS | {"%"}) & {*path}:
        return f"sqlite:///{path}"
    # SQLAlchemy decodes it once, SQLite a second time
    return f"sqlite:///file:{quote(quote(path))}?uri=true"


def forget_moved_table(store: Store, table: str, root: str) -> None:
    """Drop a table from the catalog if it was made where the output lay before.

    That is one whose metadata lies here, and states the place that the catalog states.
    """
    if not store.local or not Path(store.path(_PATH)).is_file():
        return
    _check(store)
    namespace, _, name = table.rpartition(".")
    row = (CATALOG_NAME, namespace, name)
    with contextlib.closing(_connect(store)) as connection:
        try:
            location = connection.execute(
                "SELECT metadata_location FROM iceberg_tables "
                "WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
                row,
            ).fetchone()
        except sqlite3.Error:
            return  # no catalog yet, or a damaged one: pyiceberg says which
        folder, _, file_name = str(location[0] if location else "").rpartition("/")
        old_root = folder.removesuffix(f"/{layout.ICEBERG}/{table}/metadata")
        if old_root in (folder, root) or not _states(store, table, file_name, old_root):
            return
        connection.execute(
            "DELETE FROM iceberg_tables "
            "WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
            row,
        )
        connection.commit()


def _states(store: Store, table: str, file_name: str, old_root: str) -> bool:
    """Whether the metadata file of that name is here, and says that it was written for an output at
    `old_root`."""
    path = f"{layout.ICEBERG}/{table}/metadata/{file_name}"
    if store.list(f"{layout.ICEBERG}/{table}").get(path, MAX_METADATA_BYTES) >= MAX_METADATA_BYTES:
        return False
    try:
        metadata = json.loads(store.read(path))
        stated = (metadata["location"], metadata["properties"][OUTPUT])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return stated == (f"{old_root}/{layout.ICEBERG}/{table}", old_root)


def _connect(store: Store) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(store.path(_PATH))}", uri=True, timeout=30)


def _check(store: Store) -> None:
    """Raises OutputError when the catalog holds anything but tables: a view or a trigger would act
    on what a library does with it."""
    path = Path(store.path(_PATH))
    if not path.exists():
        return
    problem = f"has {path.stat().st_size} bytes" if path.stat().st_size > MAX_METADATA_BYTES else ""
    if not problem:
        with contextlib.closing(_connect(store)) as connection:
            try:
                entries = connection.execute(
                    "SELECT type, name FROM sqlite_master "
                    "WHERE type NOT IN ('table', 'index') LIMIT 1"
                ).fetchall()
            except sqlite3.Error as error:
                problem = f"cannot be read: {error}"
            else:
                problem = f"has the {entries[0][0]} '{entries[0][1]}'" if entries else ""
    if problem:
        raise OutputError(
            f"{store.shown_uri}/{_PATH}: {problem}, which no catalog of this package has. It is "
            "damaged, or somebody changed it. Remove it, then publish again: the tables are made "
            "again from the snapshots."
        )
