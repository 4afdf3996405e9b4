"""The plan of a run: what remains to be done, from the listing of the input and the manifests of
the output.

A plan is set arithmetic. Shards are what the store lists now. A finished or half-finished split
whose shards are all still the same objects (URI, ETag, size) is kept as it was cut, and what it
does not cover is cut again. So a resumed run embeds nothing that has a manifest, a new file costs
only itself, and a changed one only its own parts, even when `runtime.part_bytes` has changed. Cost:
two listings, one small read per manifest that no snapshot lists yet, and a footer per Parquet shard
larger than a part. Neither torch nor ray is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.driver.planning.overlap import check_apart
from pipeline.driver.planning.splits import (
    claim,
    cut_rest,
    estimated_bytes,
    first_split,
    with_stored_versions,
)
from pipeline.driver.planning.takeover import Takeover, question, takeover_of
from pipeline.driver.planning.tally import ShardChanges, shard_changes
from pipeline.embed.choice import Choice, choose
from pipeline.errors import ShardChanged
from pipeline.job.resolve import Job
from pipeline.output import lake
from pipeline.output.checks import lost_objects
from pipeline.output.snapshots import live_parts, load_manifests, load_snapshot
from pipeline.read.input.shards import Listing
from pipeline.read.parts import Todo
from pipeline.storage.lineage import (
    Manifest,
    Shard,
    Snapshot,
    content_hash,
    is_complete,
)
from pipeline.storage.store import Store
from pipeline.storage.versions import is_size_only

MAX_LISTINGS = 3
"""How often the input is listed at most, when shards change between being listed and being opened.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole content that the next snapshot should have, and what is missing for it.

    shards: the input. todo: splits to read. done: finished parts of the planned content. live:
    parts of the head. stale: live parts that the next snapshot does not have. earlier: parts of
    this fingerprint from other runs, live or not, whose vectors can be reused; parts of this very
    run are not among them, because they are done and indexing them would make resuming a first run
    slower. lost: the ids of live parts whose files are gone; they are made again.
    takeover: how the head differs from what this job makes.
    passed_over: the listed objects that are no shards, see `PassedOver.summary`. engine: which one
    will run; None for the job of a stored snapshot.
    """

    job: Job
    shards: Sequence[Shard]
    todo: Sequence[Todo]
    done: Sequence[Manifest]
    live: Sequence[Manifest]
    stale: Sequence[Manifest]
    earlier: Sequence[Manifest]
    lost: Collection[str]
    head: Snapshot | None
    run_id: str
    takeover: Takeover
    changes: ShardChanges
    passed_over: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    engine: Choice | None = None

    @property
    def nothing_to_do(self) -> bool:
        if self.todo or self.stale or self.head is None:
            return False
        return self.head.complete and self.head.n_parts == len(self.done)

    @property
    def changed_identity(self) -> Sequence[str]:
        """Dotted names of what differs from the identity of the head."""
        return self.takeover.changed_identity

    @property
    def consent_wanted(self) -> str | None:
        """Why a run wants `--full-refresh`, as a sentence; None where it does not. Parts of this
        very content that are finished show that somebody has agreed before."""
        if self.head is None or self.done or not self.takeover.wants_consent:
            return None
        return question(self.takeover, self.job, self.head)

    def parts_of(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Those of `manifests` that belong to the planned content."""
        split_ids = {todo.split.split_id for todo in self.todo}
        split_ids |= {part.split.split_id for part in self.done}
        return [part for part in manifests if part.split.split_id in split_ids]

    @property
    def unversioned(self) -> list[Shard]:
        """Shards of which the store tells nothing but the size: a change that keeps it is not
        seen."""
        return [shard for shard in self.shards if is_size_only(shard.etag)]

    @property
    def todo_bytes(self) -> int:
        """Estimate of the decompressed bytes to read, without those of finished parts."""
        split_bytes = sum(map(self._split_bytes, self.todo))
        split_ids = {todo.split.split_id for todo in self.todo}
        finished = [part for part in self.done if part.split.split_id in split_ids]
        return max(0, split_bytes - sum(part.record_bytes for part in finished))

    @property
    def todo_parts(self) -> int:
        """Number of parts to do: an estimate, since a split is cut into parts while it is read."""
        counts = [
            self._split_bytes(todo) / todo.split.part_bytes - len(todo.finished)
            for todo in self.todo
        ]
        return sum(max(1, round(count)) for count in counts)

    def _split_bytes(self, todo: Todo) -> int:
        return estimated_bytes(todo.split, self.job.spec.input.format, todo.max_records)

    def summary(self) -> dict[str, Any]:
        """The plan as plain data, which a dry run shows."""
        return {
            "run_id": self.run_id,
            "fingerprint": self.job.fingerprint,
            "model": self.job.spec.model.path,
            "model_license": self.job.model_license,
            "prompt": self.job.prompt,
            "prompt_source": self.job.prompt_source,
            "dtype": self.job.engine.dtype,
            "device": self.job.engine.device,
            "engine": self.engine and self.engine.engine,
            "engine_reason": self.engine and self.engine.reason,
            "shards": len(self.shards),
            "shard_changes": {
                name: getattr(self.changes, name)
                for name in ("unchanged", "changed", "new", "removed")
            },
            "passed_over": dict(self.passed_over),
            "unversioned_shards": len(self.unversioned),
            "input_bytes": sum(shard.size_bytes for shard in self.shards),
            "parts_todo": self.todo_parts,
            "parts_done": len(self.done),
            "parts_stale": len(self.stale),
            "parts_lost": len(self.lost),
            "splits_todo": len(self.todo),
            "bytes_todo": self.todo_bytes,
            "documents_done": sum(part.n_documents for part in self.done),
            "documents_removed_at_most": sum(part.n_documents for part in self.stale),
            "head": self.head.number if self.head else None,
            "changed_identity": list(self.takeover.changed_identity),
            "reuses_vectors": self.takeover.reuses_vectors,
            "owner": self.takeover.owner or self.job.spec.name,
            "consent_wanted": self.consent_wanted,
            "nothing_to_do": self.nothing_to_do,
        }


def make_plan(
    job: Job, store: Store, limit: int | None = None, listing: Listing | None = None
) -> Plan:
    """Compare the shards that are listed with the parts that are done. limit: plan only the first
    so many records, for an output that is new. listing: of the input, where there is one already.

    Raises ModelError for options that the model cannot follow, SpecError or InputError when the
    input cannot be listed or the output lies in it,
    ShardChanged when shards keep changing meanwhile, OutputError when the metadata of the output
    cannot be read.
    """
    check_apart(job.spec)
    lake.check_installed(job.spec.publish)
    listing = listing or Listing(job.spec.input)
    for _ in range(MAX_LISTINGS - 1):
        # ShardChanged: a shard was replaced after it was listed and before its footer was read.
        with contextlib.suppress(ShardChanged):
            return _plan(job, store, limit, listing)
        listing = Listing(job.spec.input)
    return _plan(job, store, limit, listing)


def _plan(job: Job, store: Store, limit: int | None, listing: Listing) -> Plan:
    spec = job.spec
    listed = listing.shards
    head = load_snapshot(store)
    live = live_parts(store, head)
    recorded = load_manifests(store, job.fingerprint, live)
    lost = lost_objects(store, recorded)
    manifests = [part for part in recorded if part.part_id not in lost]
    shards = with_stored_versions(listed, manifests)
    kept, claims = claim(shards, manifests, {part.part_id for part in live})
    device = job.engine.device
    new_splits = (
        list(cut_rest(spec, shards, claims, device))
        if limit is None
        else [first_split(shards, limit)]
    )
    todo = [Todo(split, frozenset(), limit) for split in new_splits]
    for parts in kept:
        if not is_complete(parts):
            todo.append(Todo(parts[0].split, frozenset(part.index for part in parts)))
    done = [part for parts in kept for part in parts]
    done_ids = {part.part_id for part in done}
    split_ids = [split.split_id for split in new_splits]
    split_ids += [parts[0].split.split_id for parts in kept]
    run_id = content_hash([job.fingerprint, sorted(split_ids)], 16)
    takeover = takeover_of(job, store, head, live, shards)
    others = live if takeover.changed_identity and takeover.reuses_vectors else []
    return Plan(
        job=job,
        shards=shards,
        todo=todo,
        done=done,
        live=live,
        lost=[part.part_id for part in live if part.part_id in lost],
        earlier=[*(part for part in manifests if part.run_id != run_id), *others],
        stale=[part for part in live if part.part_id not in done_ids],
        head=head,
        run_id=run_id,
        takeover=takeover,
        changes=shard_changes(shards, live),
        passed_over=listing.passed_over.summary(),
        engine=choose(job.model_here, job.engine) if job.model_here else None,
    )
