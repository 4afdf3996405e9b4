"""What an output no longer needs, as a `VacuumPlan`, which is carried out with `delete`.

Kept is everything that these need: the newest `keep_snapshots` complete snapshots that can be read
and every snapshot after the oldest of them; for each published table that cannot be brought up to
date, the snapshot that it shows, until it is brought up or forgotten; what an unfinished run could
resume from, and what work that is under way could adopt, at any age
(`pipeline/tools/needed_objects.py`); and whatever is younger than `older_than` by the store's own
clock. The rest of what this package writes goes:
dropped snapshots and their file lists, parts that only they name (manifest, data files, rejects),
parts of an abandoned fingerprint, parts that the last complete run had no use for, data files and
rejects without a manifest, run records and generations that no kept row names, probes, temporary
files. Objects whose names this package does not make are never touched.

Order of deletion: snapshots first, so that every snapshot that is listed can be read; then
manifests, so that no plan counts a part as done whose files are gone; then files. A vacuum that
dies is finished by the next one. Runs, compactions and publications that start meanwhile wait for
its end (`pipeline/output/work.py`). Cost: one listing, one read for each file list, and those of
`needed_objects`.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import OutputError
from pipeline.output import lake
from pipeline.output.lease import Pulse
from pipeline.output.snapshots import load_snapshot, snapshot_numbers
from pipeline.output.work import under_way, vacuuming
from pipeline.storage import layout
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store
from pipeline.tools.living_work import living_work
from pipeline.tools.needed_objects import (
    Content,
    contents,
    needed_paths,
    records_of_kept_rows,
)
from pipeline.tools.stored_objects import list_objects

_REASONS = {
    "snapshot": "older than the kept snapshots",
    "manifest": "a part that no kept snapshot names",
    "data": "a data file that no kept part names",
    "rejects": "rejects that no kept part names",
    "file list": "no kept snapshot names it",
    "current list": "never: there is one, and it is replaced",
    "index": "a larger segment covers its parts, or they are gone",
    "ids": "larger ones cover its parts, or they are gone",
    "generation": "nothing kept has its fingerprint",
    "run record": "nothing kept is from this run",
    "lease": "of a refresh that ended or died",
    "work": "of a process that died",
    "live record": "of a run that ended or died",
    "table": "a later state of the table took its place",
    "probe": "left behind by a check for conditional writes",
    "temporary": "left behind by a write that was killed",
}
"""Why an object of each kind of `layout.KINDS` is no longer needed."""
_UNREADABLE = "files that it names are gone, so it cannot be read any more"


class Group(NamedTuple):
    """Objects that go for one reason. example: the path of one of them."""

    reason: str
    n_objects: int
    n_bytes: int
    example: str


@dataclasses.dataclass(frozen=True)
class VacuumPlan:
    """What is to be deleted, or was (`deleted`). paths: the reason for each relative path, in the
    order of deletion; sizes: in bytes by path. n_too_young: objects that nothing needs, but younger
    than `older_than`. work_under_way: whether a run, a compaction or a publication is alive, for
    which objects were left. tables_behind: a sentence for each published table that could not be
    brought up to date.
    """

    deleted: bool
    kept_snapshots: tuple[int, ...]
    n_bytes: int
    n_too_young: int
    work_under_way: bool
    tables_behind: tuple[str, ...]
    paths: dict[str, str]
    sizes: dict[str, int]

    def by_reason(self) -> list[Group]:
        """The objects to delete, one group a reason, in the order of deletion."""
        groups: dict[str, list[str]] = {}
        for path, reason in self.paths.items():
            groups.setdefault(reason, []).append(path)
        return [
            Group(reason, len(paths), sum(self.sizes[path] for path in paths), paths[0])
            for reason, paths in groups.items()
        ]


def vacuum(
    uri: str,
    *,
    keep_snapshots: int = 2,
    older_than: datetime.timedelta = datetime.timedelta(days=1),
    delete: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> VacuumPlan:
    """Find what is not needed any more; remove it only with `delete`.

    Writes (and removes) one probe object to learn the time by the store's clock. Raises OutputError
    when no complete snapshot can be read or the newest one cannot, StorageError when the store
    refuses.
    """
    store = Store(uri, storage_options)
    if keep_snapshots < 1:
        raise OutputError(
            f"keep_snapshots is {keep_snapshots}: at least the newest complete snapshot is kept"
        )
    if not snapshot_numbers(store):  # asked before anything is written, a probe for the time too
        raise _nothing_complete(store)
    if not delete:
        return _planned(store, keep_snapshots, older_than, lake.states_behind(store))[0]
    with under_way(store, "publish", waits=False):  # two vacuums do each other no harm
        outcomes = lake.bring_up_recorded(store)
    with vacuuming(store) as pulse:
        # by now, a run may have committed what the tables lack: they keep what they show
        states = [outcome.state for outcome in outcomes]
        plan, kept = _planned(store, keep_snapshots, older_than, states)
        outcomes = [lake.drop_versions(store, outcome, kept) for outcome in outcomes]
        for path in plan.paths:
            _check_pulse(store, pulse)
            store.delete(path)
    behind = tuple(str(outcome.error) for outcome in outcomes if outcome.error)
    return dataclasses.replace(plan, deleted=True, tables_behind=behind)


def _planned(
    store: Store,
    keep_snapshots: int,
    older_than: datetime.timedelta,
    states: Sequence[lake.TableState],
) -> tuple[VacuumPlan, list[Snapshot]]:
    """The plan, and the snapshots that are kept. states: of tables, which keep what they show."""
    now = store.time()
    limit = now - older_than.total_seconds()
    # listed before snapshots are read: a snapshot made in between names nothing that could be
    # judged without it
    objects = dict(list_objects(store))
    work = living_work(store, objects, now)
    loaded = (load_snapshot(store, number) for number in snapshot_numbers(store))
    history = list(contents(store, filter(None, loaded), objects))
    kept, dropped = _divided(store, history, keep_snapshots, states, keep_all=work.publishes)
    needed = needed_paths(store, kept, dropped, objects, work)
    unneeded = {path: item for path, item in objects.items() if path not in needed}
    old = {path: item for path, item in unneeded.items() if item.changed_at < limit}
    n_too_young = len(unneeded) - len(old)
    for path in records_of_kept_rows(store, old, needed):
        del old[path]
    order = list(_REASONS)
    reasons = {
        **{path: _REASONS[item.location.kind] for path, item in old.items()},
        **{
            path: _UNREADABLE
            for content in dropped
            if content.is_gone and (path := layout.snapshot(content.snapshot.number)) in old
        },
    }
    # what cannot be read goes before what can
    ordered = sorted(
        old,
        key=lambda path: (
            order.index(old[path].location.kind),
            reasons[path] != _UNREADABLE,
            path,
        ),
    )
    plan = VacuumPlan(
        deleted=False,
        kept_snapshots=tuple(content.snapshot.number for content in kept),
        n_bytes=sum(item.size_bytes for item in old.values()),
        n_too_young=n_too_young,
        work_under_way=work.is_any,
        tables_behind=tuple(state.behind for state in states if state.behind),
        paths={path: reasons[path] for path in ordered},
        sizes={path: old[path].size_bytes for path in ordered},
    )
    return plan, [content.snapshot for content in kept]


def _divided(
    store: Store,
    history: Sequence[Content],
    keep_snapshots: int,
    states: Sequence[lake.TableState],
    *,
    keep_all: bool,
) -> tuple[list[Content], list[Content]]:
    """Snapshots to keep and to drop. Those whose files are gone are dropped, unless one of them is
    the newest: then nothing is judged. One whose file list is damaged counts for nothing, but is
    not dropped for that. A table keeps the one snapshot that it shows, by `states`.
    """
    complete = [
        content.snapshot.number
        for content in history
        if content.snapshot.complete and content.parts is not None
    ]
    if history and history[-1].parts is None:
        raise OutputError(
            f"{store.shown_uri}: files that snapshot {history[-1].snapshot.number}, the newest "
            "one, names are gone or damaged, so nothing was deleted: what is left may be needed to "
            "restore it. `corpus-embed verify` says which; `corpus-embed run` makes them anew."
        )
    if not complete:
        raise _nothing_complete(store)
    first_kept = 0 if keep_all else complete[-keep_snapshots:][0]
    kept = [
        content
        for content in history
        if not content.is_gone
        and (
            content.snapshot.number >= first_kept
            or any(state.shows(content.snapshot) for state in states)
        )
    ]
    numbers = {content.snapshot.number for content in kept}
    return kept, [content for content in history if content.snapshot.number not in numbers]


def _nothing_complete(store: Store) -> OutputError:
    return OutputError(
        f"{store.shown_uri}: this output has no complete snapshot, so vacuum cannot tell what is "
        "still needed. Check the URI, or let `corpus-embed run SPEC` end first."
    )


def _check_pulse(store: Store, pulse: Pulse) -> None:
    """Raises OutputError once others may count this process as dead: they no longer wait for it."""
    if pulse.is_lost:
        raise OutputError(
            f"{store.shown_uri}: this vacuum was suspended, or could not reach the store, for too "
            "long, so that other commands no longer wait for it. It stopped here. Run it again."
        )
