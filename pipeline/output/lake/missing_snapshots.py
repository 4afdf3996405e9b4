"""How one table is brought up to the newest snapshot of its output.

In: a table and the store of its output. Out: the snapshots that were added, in order. A table knows
a snapshot by number, run and file list. One that shows a snapshot of the output lacks what is
newer; one that shows anything else is from before a roll-back or a restore, and gets what follows
the newest snapshot that its history and the output have in common. Cost: one look at the table,
and one commit for each snapshot that it lacks.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pipeline.errors import CorpusEmbedError, OutputError
from pipeline.output import dataset
from pipeline.output.lake.table import CannotHold, Table, columns_of, columns_problem, is_shown
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store

T = TypeVar("T")

STEP_LIMIT_S = 600.0
"""How long, in seconds, a catalog may take for one step, such as one commit, before its table
counts as behind."""


def catch_up(store: Store, table: Table) -> Iterator[Snapshot]:
    """Add what a table lacks; yields each snapshot that it shows, the newest one last."""
    head = load_snapshot(store)
    state = within_limit(table.name, table.state)
    if head is None or (state and is_shown(state, head)):
        yield from [head] if head else []
        return
    due = [number for number in snapshot_numbers(store) if number <= head.number]
    if state:
        first = state.number
        if any(number == first for number in due) or first > head.number:
            shown = dataset.read_head(store, first)[0] if first in due else None
            if shown is None or not is_shown(state, shown):  # rolled back, or restored
                first = _last_common(store, table, due)
        due = [number for number in due if number > first] or [head.number]
    _, newest = dataset.read_head(store, head.number)
    columns = state.columns if state else columns_of(newest)
    if problem := columns_problem(columns, columns_of(newest)):
        raise OutputError(
            f"{table.name}: {problem} in snapshot {head.number} of {store.shown_uri}. A table "
            "keeps its columns: publish to another table, or use another output.uri. Nothing was "
            "changed."
        )
    for number in due:
        try:
            snapshot, generation = dataset.read_head(store, number)
            parts = live_parts(store, snapshot)
        except OutputError:  # vacuumed meanwhile, or damaged: only the newest one is missed
            if number == head.number:
                raise
            continue
        if columns_of(generation) != columns:
            continue
        try:
            within_limit(table.name, functools.partial(table.add, snapshot, generation, parts))
        except CannotHold:  # a table may well hold the next one
            if number == head.number:
                raise
            continue
        yield snapshot


def _last_common(store: Store, table: Table, numbers: Sequence[int]) -> int:
    """The newest snapshot that both the output and a table's history have; 0 if there is none."""
    history = within_limit(table.name, table.history)
    for number in reversed(numbers):
        with contextlib.suppress(OutputError):
            snapshot, _ = dataset.read_head(store, number)
            if any(is_shown(state, snapshot) for state in history):
                return number
    return 0


def within_limit(name: str, step: Callable[[], T], limit_s: float | None = None) -> T:
    """The result of `step`, which a catalog that never answers must not make everybody wait for.

    Raises OutputError after `limit_s`, by default STEP_LIMIT_S; the step goes on in its thread and
    ends with the process.
    """
    limit_s = STEP_LIMIT_S if limit_s is None else limit_s
    results: list[T] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            results.append(step())
        except Exception as error:  # noqa: BLE001  raised again below
            errors.append(error)

    thread = threading.Thread(target=body, name="publish", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise OutputError(
            f"{name}: its catalog has not answered for {limit_s:.0f} s. Check the catalog, "
            "then run `corpus-embed publish`."
        )
    return results[0]


@contextlib.contextmanager
def as_output_errors(store: Store) -> Iterator[None]:
    """Turn errors of a catalog or a table library, of any class, into OutputError."""
    try:
        yield
    except CorpusEmbedError:
        raise
    except Exception as error:
        raise OutputError(
            f"{store.shown_uri}: the snapshots are committed, but publishing them failed: "
            f"{reason(error)}. Fix the catalog, then run `corpus-embed publish`; it resumes where "
            "this stopped."
        ) from error
