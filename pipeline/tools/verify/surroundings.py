"""What lies beside a snapshot and before it: files that nobody asked for, documents that left.

In: a loaded snapshot. Out: sentences that `verify` shows as warnings, because they are no damage of
the snapshot: whoever reads `data/**` by a glob reads more than the snapshot has, and a run that was
allowed to may have dropped documents. Cost: two listings; for the documents, four columns of the
parts in which the snapshot differs from its parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.errors import OutputError
from pipeline.output import current_list
from pipeline.output.departures import departures
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.output.table_records import last_state, recorded_publications
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.words import counted
from pipeline.tools.loaded_snapshot import LoadedSnapshot

MAX_SHOWN = 3
_OF_TABLES = (f"{layout.PUBLICATIONS}/", f"{layout.ICEBERG}/")


def extra_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """Files under `data/` that belong to no finished part, and names under `_meta` that this
    package does not give."""
    store = loaded.store
    finished = {
        location.part_id
        for path in store.list(layout.MANIFESTS)
        if (location := layout.locate(path)) and location.part_id
    }
    finished -= {manifest.part_id for manifest in loaded.manifests}
    live = set(loaded.data_paths)
    extra = []
    for path in store.list(layout.DATA):
        location = layout.locate(path)
        # a file whose rows differ from an earlier attempt's has digits of its own behind the id
        is_finished = location is not None and (location.part_id or "")[:32] in finished
        if path not in live and not is_finished:
            extra.append(path)
    if extra:
        yield (
            f"{counted(len(extra), 'file')} under {layout.DATA}/ in no snapshot and no finished "
            f"part, which readers of {layout.DATA}/** see: {_first(extra)}. Read by the file list "
            "(open_dataset), or remove them: `corpus-embed vacuum` removes those that a run left"
        )
    foreign = [
        path
        for path in store.list(layout.META)
        if layout.locate(path) is None and not path.startswith(_OF_TABLES)
    ]
    if foreign:
        yield (
            f"{counted(len(foreign), 'object')} under {layout.META}/ that this package did "
            f"not name and does not read: {_first(foreign)}"
        )


def list_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """The list of files for other readers is that of another snapshot, or of another place."""
    store = loaded.store
    data = store.read_or_none(layout.CURRENT)
    # outputs of releases before 2026-11-27 have none
    if data is None or loaded.snapshot.number != max(snapshot_numbers(store)):
        return
    expected = current_list.as_lines(store, sorted(loaded.data_paths))
    if data != expected:
        lines = data.decode(errors="replace").splitlines()
        n_other = len({*lines} - {*expected.decode().splitlines()})
        yield (
            f"{layout.CURRENT}, by which other programs read the newest snapshot, has "
            f"{counted(len(lines), 'file')}, {n_other} of them not of snapshot "
            f"{loaded.snapshot.number} at {store.shown_uri}: its writer was stopped, or the output "
            "was moved or is read under another address. `corpus-embed compact` writes it again"
        )


def deletion_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """More documents of the snapshot before are gone than the spec of the run allows: somebody has
    raised the limit on the command line, or another program has made the snapshot."""
    snapshot = loaded.snapshot
    if snapshot.parent is None:
        return
    try:
        parent = load_snapshot(loaded.store, snapshot.parent)
        before = live_parts(loaded.store, parent)
    except OutputError:
        return  # vacuum has removed it
    has_ids = loaded.spec.input.id_column is not None
    by_shard = departures(loaded.store, before, loaded.manifests, has_ids=has_ids)
    limit = loaded.spec.runtime.max_delete_fraction
    n_before = parent.n_documents if parent else 0
    if by_shard.total() > limit * n_before:
        uri, number = by_shard.most_common(1)[0]
        yield (
            f"{by_shard.total()} of {n_before} documents of snapshot {snapshot.parent} are not in "
            f"snapshot {snapshot.number}, {number} of them from {shown(uri)}; the spec of run "
            f"{snapshot.run_id} allows {limit:.0%} (runtime.max_delete_fraction)"
        )


def table_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """Tables that showed another snapshot under the number of this one, or a later one that is not
    there: the output was restored from a backup, or its head was rolled back. No catalog is
    asked."""
    store = loaded.store
    newest = max(snapshot_numbers(store), default=0)
    for publication in recorded_publications(store):
        state = last_state(store, publication.key)
        is_other = state.number == loaded.snapshot.number and not state.shows(loaded.snapshot)
        if is_other or (state.number or 0) > newest:
            yield (
                f"{publication.name(store)} showed a snapshot {state.number} of run {state.run_id} "
                "when it was last seen, which is not the one here: the output was restored or "
                "rolled back. Run `corpus-embed publish`, which brings the table to this one"
            )


def _first(paths: Sequence[str]) -> str:
    return ", ".join(paths[:MAX_SHOWN]) + (", …" if len(paths) > MAX_SHOWN else "")
