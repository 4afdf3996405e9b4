"""What an output records about its tables: which there are, and what each one showed when it was
last seen.

    _meta/publications/<key>.json       a table that snapshots are published to, as a PublishSpec
    _meta/tables/<key>/<number>.json    its state after the number-th attempt that changed it

Both are for the next command, and neither is trusted: a record names no catalog that the operator
does not name, and a state is what `status` shows, without asking any catalog, and what `vacuum`
keeps for a table that it cannot bring up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pydantic

from pipeline.errors import CorpusEmbedError, OutputError, SpecError
from pipeline.job.sections import PublishSpec
from pipeline.output.snapshots import load_snapshot
from pipeline.storage import layout
from pipeline.storage.lineage import Snapshot, content_hash
from pipeline.storage.store import Store
from pipeline.storage.stored_record import FORMAT_VERSION, StoredRecord

MAX_SHOWN = 1000
"""How many characters of a recorded cause are shown."""


class TableState(StoredRecord):
    """What a table showed when it was last seen: a snapshot by number, run and file list, or None.
    behind: why it could not be brought up to the newest snapshot."""

    format_version: int = FORMAT_VERSION
    number: int | None = None
    run_id: str | None = None
    file_list: str | None = None
    behind: str | None = None

    def shows(self, snapshot: Snapshot) -> bool:
        """Whether the table showed this snapshot, and not another one of its number."""
        identity = (snapshot.number, snapshot.run_id, snapshot.file_list)
        return (self.number, self.run_id, self.file_list) == identity


class Publication(NamedTuple):
    """A table that snapshots are published to. path: of its record. spec: that of this one table;
    None where the record is damaged."""

    path: str
    spec: PublishSpec | None

    @property
    def key(self) -> str:
        """What the table is called under `_meta`."""
        return self.path.rpartition("/")[2].removesuffix(".json")

    def name(self, store: Store) -> str:
        """The table for people."""
        if self.spec is None:
            return f"{store.shown_uri}/{self.path}"
        if self.spec.iceberg:
            return f"Iceberg table {self.spec.iceberg.table}"
        return f"Delta table {store.shown_uri}"

    @property
    def short_name(self) -> str:
        """What `publish --forget` calls the table."""
        if self.spec is None:
            return self.key
        return self.spec.iceberg.table if self.spec.iceberg else "delta"


class TableStatus(NamedTuple):
    """What `status` says of a table. number: of the snapshot that it shows, None where that is
    unknown. behind: why it does not show the newest one; None where it does."""

    name: str
    number: int | None
    behind: str | None


def publications_of(spec: PublishSpec) -> Iterator[Publication]:
    """One publication for each table that a spec names."""
    for kind in ("iceberg", "delta"):
        if getattr(spec, kind):
            record = spec.model_dump_json(include={kind})
            path = layout.publication(kind, content_hash(record, 16))
            yield Publication(path, PublishSpec.model_validate_json(record))


def recorded_publications(store: Store) -> Iterator[Publication]:
    """The tables that an output was published to."""
    for path, data in store.read_many(store.list(layout.PUBLICATIONS)):
        spec = None
        with contextlib.suppress(pydantic.ValidationError):
            spec = PublishSpec.model_validate_json(data)
        yield Publication(path, spec)


def record(store: Store, publication: Publication) -> None:
    if publication.spec:
        kind = "iceberg" if publication.spec.iceberg else "delta"
        data = publication.spec.model_dump_json(include={kind}).encode()
        store.put_if_absent(publication.path, data)


def last_state(store: Store, key: str) -> TableState:
    """What a table showed when it was last seen; of one that was never seen, nothing is known."""
    paths = [path for path in store.list(layout.table_states(key)) if layout.locate(path)]
    if not paths:
        return TableState()
    try:
        return TableState.from_json(store.read(paths[-1]), f"{store.shown_uri}/{paths[-1]}")
    except (OutputError, FileNotFoundError):  # damaged, or replaced at this moment
        return TableState()


def record_state(store: Store, key: str, state: TableState) -> None:
    """Replace what is recorded of a table, if it has changed. A store that refuses costs the record
    and nothing else."""
    if state == last_state(store, key):
        return
    paths = [path for path in store.list(layout.table_states(key)) if layout.locate(path)]
    numbers = [location.number or 0 for path in paths if (location := layout.locate(path))]
    with contextlib.suppress(OSError, CorpusEmbedError):
        store.put_if_absent(layout.table_state(key, max(numbers, default=0) + 1), state.to_json())
        for path in paths:
            store.delete(path)


def table_statuses(store: Store) -> list[TableStatus]:
    """What is recorded of every table, compared with the newest snapshot; no catalog is asked."""
    head = load_snapshot(store)
    lines = []
    for publication in recorded_publications(store):
        state = last_state(store, publication.key)
        behind = state.behind and state.behind[:MAX_SHOWN]
        if behind is None and state.number is not None and head and not state.shows(head):
            is_other = state.number >= head.number
            behind = (
                "shows another snapshot of that number, from before the output was restored or "
                "rolled back"
                if is_other
                else f"the newest snapshot is {head.number}"
            ) + "; corpus-embed publish brings it up to date"
        lines.append(TableStatus(publication.name(store), state.number, behind))
    return lines


def forget_table(store: Store, name: str) -> list[str]:
    """Remove the records of a table, so that no command brings it up to date or waits for it;
    returns the names of what was forgotten. The table itself stays as it is.

    name: `delta`, the name of an Iceberg table, or the name of a record without its suffix. Raises
    SpecError where there is none.
    """
    publications = list(recorded_publications(store))
    chosen = [item for item in publications if name in (item.short_name, item.key)]
    if not chosen:
        known = ", ".join(sorted({item.short_name for item in publications})) or "none"
        raise SpecError(
            f"{store.shown_uri}: no table '{name}' is recorded here; recorded are {known}."
        )
    for publication in chosen:
        store.delete(publication.path)
        for path in store.list(layout.table_states(publication.key)):
            store.delete(path)
    return [publication.name(store) for publication in chosen]
