"""Snapshots as tables of other catalogs, as `publish` in a spec or the command of that name asks.

A publication is derived: it comes after the snapshot, and every kept snapshot that a table lacks is
added in order, one commit each, so that the table's time travel is that of the output. Data files
are registered where they lie; none is read or written again. A table that cannot be brought up to
date is behind, which is recorded (`pipeline/output/table_records.py`) and costs the data and the
other tables nothing. A table knows a snapshot by number, run and file list: where the output was
rolled back or restored, what it shows is replaced. Which catalog is contacted and where metadata is
written comes from the operator. The table libraries are extras and are imported on first use.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.errors import CorpusEmbedError, OutputError, SpecError
from pipeline.job.sections import IcebergSpec, PublishSpec
from pipeline.output import work
from pipeline.output.lake.missing_snapshots import as_output_errors, catch_up, within_limit
from pipeline.output.lake.table import Table
from pipeline.output.table_records import (
    Publication,
    TableState,
    last_state,
    publications_of,
    record,
    record_state,
    recorded_publications,
)
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store

__all__ = [
    "Outcome",
    "TableState",
    "ask_catalog",
    "bring_up",
    "bring_up_recorded",
    "check_installed",
    "drop_versions",
    "publish",
    "publish_recorded",
    "states_behind",
]


class Outcome(NamedTuple):
    """What became of one table. number: of the snapshot that it shows, None where that is unknown.
    error: why it is behind. table: None where it could not even be opened. state: see TableState.
    """

    name: str
    number: int | None
    error: CorpusEmbedError | None
    table: Table | None
    state: TableState


def check_installed(publications: PublishSpec) -> None:
    """Raises SpecError when a package that a publication needs is not installed."""
    needed = {"delta": ("deltalake",), "iceberg": ("pyiceberg", "sqlalchemy")}
    for kind, packages in needed.items():
        absent = [name for name in packages if not importlib.util.find_spec(name)]
        if getattr(publications, kind) and absent:
            raise SpecError(_hint(kind, f"the package {absent[0]} is not installed"))


def ask_catalog(store: Store, publications: PublishSpec, *, is_plan: bool) -> None:
    """Ask the catalog that a spec names, before any work: see `catalog_check.ask`."""
    check_installed(publications)
    if publications.iceberg:
        with _extra("iceberg"):
            from pipeline.output.lake.catalog_check import ask
        ask(publications.iceberg, is_local=store.local, is_plan=is_plan)


def publish(store: Store, publications: PublishSpec) -> dict[str, int]:
    """Bring the tables of a spec up to the newest snapshot, and record them; returns the number
    that each one holds.

    Raises SpecError where an extra is missing, OutputError where a table cannot hold the rows,
    CommitConflict where another writer was first; but first it brings up the others. The snapshots
    of the output are committed in any case.
    """
    check_installed(publications)
    with work.under_way(store, "publish"):
        outcomes = []
        for publication in publications_of(publications):
            outcomes.append(_attempt(store, publication))
            if outcomes[-1].error is None:
                record(store, publication)
    return _held(outcomes)


def bring_up(store: Store, publications: PublishSpec) -> list[Outcome]:
    """Bring the tables of a spec up to the newest snapshot after a run, whose data does not wait
    for them: no outcome is raised. Each table is recorded, so that `status` and later commands know
    it, also if this attempt fails."""
    tables = list(publications_of(publications))
    if not tables:
        return []
    with work.under_way(store, "publish"):
        for publication in tables:
            with contextlib.suppress(OSError, CorpusEmbedError):
                record(store, publication)
        return [_attempt(store, publication) for publication in tables]


def bring_up_recorded(store: Store) -> list[Outcome]:
    """Bring every table that the output was published to up to the newest snapshot. One that failed
    costs the others nothing, and a catalog is not contacted where only the output names it."""
    return [
        _attempt(store, publication, is_recorded=True)
        for publication in recorded_publications(store)
    ]


def publish_recorded(store: Store) -> tuple[dict[str, int], list[CorpusEmbedError]]:
    """`bring_up_recorded`, as the number that each table holds, and an error for each table that is
    behind."""
    with work.under_way(store, "publish"):
        outcomes = bring_up_recorded(store)
    held = {item.name: item.number for item in outcomes if not item.error and item.number}
    return held, [item.error for item in outcomes if item.error]


def drop_versions(store: Store, outcome: Outcome, kept: Sequence[Snapshot]) -> Outcome:
    """Drop what a table has of snapshots that are not kept, before their files are deleted."""
    if outcome.table is None or outcome.error:
        return outcome
    try:
        with as_output_errors(store):
            within_limit(outcome.name, functools.partial(outcome.table.forget, kept))
    except CorpusEmbedError as error:
        return outcome._replace(error=error)
    return outcome


def states_behind(store: Store) -> list[TableState]:
    """What the recorded tables that are behind were last seen to show."""
    states = [last_state(store, item.key) for item in recorded_publications(store)]
    return [state for state in states if state.behind]


def _held(outcomes: Sequence[Outcome]) -> dict[str, int]:
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    return {outcome.name: outcome.number or 0 for outcome in outcomes}


def _attempt(store: Store, publication: Publication, *, is_recorded: bool = False) -> Outcome:
    """Bring one table up, and record what it shows then, or why it is behind."""
    table: Table | None = None
    state = last_state(store, publication.key)
    error: CorpusEmbedError | None = None
    name = publication.name(store)
    try:
        with as_output_errors(store):
            spec = publication.spec or PublishSpec()
            if is_recorded:
                spec = _checked(store, publication)
            ((_, table),) = within_limit(name, lambda: list(_tables(store, spec)))
            for snapshot in catch_up(store, table):
                state = TableState(
                    number=snapshot.number,
                    run_id=snapshot.run_id,
                    file_list=snapshot.file_list,
                )
    except CorpusEmbedError as problem:
        error = problem
        state = state.model_copy(update={"behind": str(problem)})
    record_state(store, publication.key, state)
    return Outcome(name, state.number, error, table, state)


def _checked(store: Store, publication: Publication) -> PublishSpec:
    """The spec of a recorded table. Raises OutputError when the record is damaged, or names a
    catalog or a location that the operator's own configuration does not name."""
    spec = publication.spec
    if spec is None:
        raise OutputError(
            f"{publication.name(store)}: names no table. Remove it: corpus-embed publish OUTPUT "
            f"--forget {publication.key}"
        )
    if spec.iceberg and spec.iceberg != IcebergSpec(table=spec.iceberg.table):
        with _extra("iceberg"):
            from pipeline.output.lake.iceberg import is_configured
        if not is_configured(store, spec.iceberg):
            table = spec.iceberg.table
            raise OutputError(
                f"Iceberg table {table}: only the output says which catalog has it or where it "
                "lies, so it was not contacted and may be behind. Give the catalog's properties in "
                "~/.pyiceberg.yaml or PYICEBERG_CATALOG__…, run `corpus-embed publish OUTPUT "
                f"--iceberg {table} --catalog …`, or give the table up: `corpus-embed publish "
                f"OUTPUT --forget {table}`."
            )
    return spec


def _tables(store: Store, publications: PublishSpec) -> Iterator[tuple[str, Table]]:
    if publications.iceberg:
        with _extra("iceberg"):
            from pipeline.output.lake.iceberg import IcebergTable
        yield "iceberg", IcebergTable(store, publications.iceberg)
    if publications.delta:
        with _extra("delta"):
            from pipeline.output.lake.delta import DeltaTable
        yield "delta", DeltaTable(store)


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SpecError(_hint(name, str(error))) from error


def _hint(kind: str, problem: str) -> str:
    return (
        f"publish.{kind}: {problem}. Install what it needs: pip install '.[{kind}]' in a clone of "
        f"this package, or pip install 'corpus-embed[{kind}]' where an index has it. Or leave "
        f"publish.{kind} out."
    )
