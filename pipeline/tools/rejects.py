"""The rejected records of an output: how many for which reason, and examples with their text.

In: an output. Out: `Rejects`. Counts come from the manifests; of the files of rejects only those
are read that examples, or the shard that was asked for, need, one at a time. Parts that no snapshot
has yet count, too: a run that stopped because of its rejects has made no snapshot. The text of an
example is read again from its source, by the rules of `pipeline/tools/source_places.py`. Cost: the
file list, a listing of manifests, and at most a file and a record an example.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError, SpecError
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage import data_files, schema
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.problems import reason as reason_of
from pipeline.storage.store import Store
from pipeline.tools.reject_texts import extended, with_texts
from pipeline.tools.waiting_parts import waiting_parts

EXAMPLE_COLUMNS = {**schema.REJECT_COLUMNS, "source_text": pa.string(), "problem": pa.string()}
"""The columns of the examples: source_text is the beginning of the record's text, or of its line
where it has none; problem: why the source was not read."""


@dataclasses.dataclass(frozen=True)
class Rejects:
    """Rejected records of an output, as far as they were asked for.

    snapshot: its number, None where the output has none. n_waiting_parts: finished parts that no
    snapshot has, which are counted instead of what they replace. n_records: the records of the
    shards in question, rejected or not. counts: rejects by reason, the most frequent first.
    examples: a table of EXAMPLE_COLUMNS.
    """

    snapshot: int | None
    n_waiting_parts: int
    n_records: int
    counts: dict[str, int]
    examples: pa.Table = dataclasses.field(repr=False)

    @property
    def n_rejects(self) -> int:
        return sum(self.counts.values())


def rejects(
    uri: str,
    *,
    reason: str | None = None,
    shard: str | None = None,
    n: int | None = 3,
    snapshot: int | None = None,
    texts: bool = True,
    source_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Rejects:
    """Count rejected records, and give `n` examples for each reason (None: all of them).

    reason: only this one of `schema.REASONS`. shard: only records of shards with this URI, with
    one that ends in it, or of those that it matches as a pattern with `*`. snapshot: one by number;
    by default the newest, with the parts that were finished after it. texts: whether the sources of
    the examples are read; source_options: storage options for that, without which a source on a
    server that only the output names is not asked. Raises SpecError for an unknown reason or shard,
    OutputError when there is no such snapshot, nothing was finished yet, or a record is damaged.
    """
    if reason is not None and reason not in schema.REASONS:
        raise SpecError(f"--reason {reason}: the reasons are {', '.join(schema.REASONS)}")
    store = Store(uri, storage_options)
    head = load_snapshot(store, snapshot)
    live = live_parts(store, head)
    waiting = waiting_parts(store, head, live) if snapshot is None else []
    if head is None and not waiting:
        raise OutputError(
            f"{store.shown_uri}: this output has no snapshot and no finished part yet. Run "
            "`corpus-embed run SPEC` first, or check the URI."
        )
    replaced = {source.uri for part in waiting for source in part.sources}
    kept = [part for part in live if not replaced & {source.uri for source in part.sources}]
    rejected = rejects_of(
        store,
        head,
        [*waiting, *kept],
        reason=reason,
        shard=shard,
        n=n,
        texts=texts,
        source_options=source_options,
    )
    return dataclasses.replace(rejected, n_waiting_parts=len(waiting))


def rejects_of(
    store: Store,
    head: Snapshot | None,
    parts: Sequence[Manifest],
    *,
    reason: str | None = None,
    shard: str | None = None,
    n: int | None = 3,
    texts: bool = True,
    source_options: Mapping[str, Any] | None = None,
) -> Rejects:
    """The same of some parts, as `rejects` describes it, for who has read them already."""
    is_of = _matcher(store, parts, shard)
    reasons = [reason] if reason else list(schema.REASONS)
    counts: Counter[str] = Counter()
    examples: list[pa.Table] = []
    for part in parts:
        counts.update(_counts(store, part, reasons, is_of))
        examples += _examples(store, part, _still_due(examples, reasons, n), is_of)
    table = pa.concat_tables([schema.rejects_schema().empty_table(), *examples])
    ranked = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    ranks = pc.index_in(table["reason"], pa.array(list(ranked), pa.string()))
    table = table.take(pc.sort_indices(ranks))
    if texts:
        table = with_texts(store, table, parts, head, source_options)
    else:
        table = extended(table, [None] * len(table), [None] * len(table))
    sources = (source for part in parts for source in part.sources if is_of(source.uri))
    return Rejects(
        snapshot=head.number if head else None,
        n_waiting_parts=0,
        n_records=sum(source.n_records for source in sources),
        counts=ranked,
        examples=table,
    )


class _Matcher:
    """Whether the URI of a shard is one that was asked for."""

    def __init__(self, pattern: str | None) -> None:
        self.pattern = pattern

    def __call__(self, uri: str) -> bool:
        pattern = self.pattern
        return (
            pattern is None
            or uri == pattern
            or uri.endswith("/" + pattern.lstrip("/"))
            or fnmatch.fnmatchcase(uri, pattern)
        )


def _matcher(store: Store, parts: Iterable[Manifest], pattern: str | None) -> _Matcher:
    matcher = _Matcher(pattern)
    uris = sorted({source.uri for part in parts for source in part.sources})
    if pattern is not None and not any(map(matcher, uris)):
        raise SpecError(
            f"--shard {pattern}: {store.shown_uri} has no such shard among its {len(uris)}. Give "
            f"its URI, the end of it, or a pattern with *; the first one is {uris[0]}."
            if uris
            else f"--shard {pattern}: {store.shown_uri} has no shards"
        )
    return matcher


def _counts(
    store: Store, part: Manifest, reasons: Sequence[str], is_of: _Matcher
) -> dict[str, int]:
    """Rejects of a part by reason; its file is read only where shards with rejects share it and
    not all were asked for."""
    asked = [is_of(source.uri) for source in part.sources if source.n_rejects]
    if not any(asked):
        return {}
    counts: Mapping[str, int] = part.reject_reasons
    if not all(asked):
        table = _of_shards(_table(store, part), is_of)
        counts = Counter(table["reason"].to_pylist())
    return {name: counts[name] for name in reasons if counts.get(name)}


def _still_due(
    examples: Iterable[pa.Table], reasons: Iterable[str], n: int | None
) -> dict[str, int | None]:
    """How many examples of each reason are missing; None for all."""
    if n is None:
        return dict.fromkeys(reasons)
    have: Counter[str] = Counter()
    for table in examples:
        have.update(table["reason"].to_pylist())
    return {name: n - have[name] for name in reasons if have[name] < n}


def _examples(
    store: Store, part: Manifest, due: Mapping[str, int | None], is_of: _Matcher
) -> Iterator[pa.Table]:
    if not any(is_of(source.uri) for source in part.sources if source.n_rejects):
        return
    names = [name for name in part.reject_reasons if name in due]
    if names:
        table = _of_shards(_table(store, part), is_of)
        for name in names:
            rows = table.filter(pc.equal(table["reason"], name))
            yield rows.slice(0, due[name])


def _of_shards(table: pa.Table, is_of: _Matcher) -> pa.Table:
    if is_of.pattern is None:
        return table
    uris = table["source_uri"].unique().to_pylist()
    matches = pa.array([uri for uri in uris if is_of(uri)], pa.string())
    return table.filter(pc.is_in(table["source_uri"], matches))


def _table(store: Store, part: Manifest) -> pa.Table:
    """The rejects of a part."""
    path = part.rejects_path
    try:
        data = store.read(path) if path else b""
        table = data_files.read_table(data, list(schema.REJECT_COLUMNS))
        return table.cast(schema.rejects_schema())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{store.shown_uri}/{path}: the rejects of part {part.part_id} cannot be read: "
            f"{reason_of(error)}. Restore the file from a backup; `corpus-embed verify` lists all "
            "damage."
        ) from error
