"""What is to be done: listing and manifests in, a `Plan` out; it prints itself as the dry run.

A plan is set arithmetic. Shards are what the store lists now. A finished or half-finished split
whose shards are all still the same objects (URI, ETag, size) is kept as it was cut; what it does
not cover is cut afresh. So a resume re-embeds nothing that has a manifest, a new file costs only
itself, and a changed one only its own parts, whatever `runtime.part_bytes` says today. Cost: one
listing, one small read per manifest that no snapshot lists yet, and a footer per Parquet shard
larger than a part. Neither torch nor ray is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.driver.splits import claim, cut_rest, estimated_bytes
from pipeline.driver.tally import ShardChanges, shard_changes
from pipeline.errors import ShardChanged
from pipeline.job.resolve import Job, differences, resolve
from pipeline.job.spec import JobSpec
from pipeline.output.snapshots import live_parts, load_generation, load_manifests, load_snapshot
from pipeline.read.parts import Todo
from pipeline.read.shards import list_shards
from pipeline.storage.lineage import (
    Manifest,
    Shard,
    Snapshot,
    Split,
    by_split,
    content_hash,
    is_complete,
)
from pipeline.storage.store import Store

LISTINGS = 3
"""How often the input is listed, because a shard changed between its listing and the look into it.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole content that the next snapshot should have, and what is missing for it.

    live: parts of the head, stale those that leave. earlier: parts of this fingerprint from other
    runs, live or not, whose vectors may be reused. What an earlier attempt at this very run
    finished is not among them: it is done as it is, and the resume of a first run would pay for an
    index of it.
    """

    job: Job
    shards: Sequence[Shard]
    todo: Sequence[Todo]
    done: Sequence[Manifest]
    live: Sequence[Manifest]
    stale: Sequence[Manifest]
    earlier: Sequence[Manifest]
    head: Snapshot | None
    run_id: str
    changed_identity: Sequence[str]
    changes: ShardChanges

    @property
    def nothing_to_do(self) -> bool:
        if self.todo or self.stale or self.head is None:
            return False
        return self.head.complete and self.head.n_parts == len(self.done)

    def parts_of(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Those of `manifests` that belong to the planned content."""
        targets = {todo.split.split_id for todo in self.todo} | {
            part.split.split_id for part in self.done
        }
        return [part for part in manifests if part.split.split_id in targets]

    @property
    def todo_bytes(self) -> int:
        """Bytes to read, decompressed by estimate, less what finished parts of half-done splits
        took."""
        total = sum(estimated_bytes(todo.split, self.job.spec.input.format) for todo in self.todo)
        open_splits = {todo.split.split_id for todo in self.todo}
        return max(
            0,
            total
            - sum(part.record_bytes for part in self.done if part.split.split_id in open_splits),
        )

    @property
    def todo_parts(self) -> int:
        """Parts to do; an estimate where a compressed shard is cut only while it is read."""
        sizes = (
            estimated_bytes(todo.split, self.job.spec.input.format) / todo.split.part_bytes
            - len(todo.finished)
            for todo in self.todo
        )
        return sum(max(1, round(size)) for size in sizes)

    def summary(self) -> dict[str, Any]:
        """The dry run as plain data."""
        return {
            "run_id": self.run_id,
            "fingerprint": self.job.fingerprint,
            "model": self.job.spec.model.path,
            "model_license": self.job.model_license,
            "dtype": self.job.engine.dtype,
            "device": self.job.engine.device,
            "shards": len(self.shards),
            "shard_changes": {
                name: getattr(self.changes, name)
                for name in ("unchanged", "changed", "new", "removed")
            },
            "input_bytes": sum(shard.size_bytes for shard in self.shards),
            "parts_todo": self.todo_parts,
            "parts_done": len(self.done),
            "parts_stale": len(self.stale),
            "splits_todo": len(self.todo),
            "bytes_todo": self.todo_bytes,
            "documents_done": sum(part.n_documents for part in self.done),
            "documents_removed_at_most": sum(part.n_documents for part in self.stale),
            "head": self.head.number if self.head else None,
            "changed_identity": list(self.changed_identity),
            "nothing_to_do": self.nothing_to_do,
        }


def plan_job(spec: JobSpec, address: str | None = None) -> Plan:
    """The plan of a spec; with a device in the spec, Ray is not imported. Raises what `make_plan`
    and `resolve` raise."""
    device: str = spec.runtime.device
    if device == "auto":
        from pipeline.driver.cluster import device_of

        device = device_of(spec, address)
    return make_plan(resolve(spec, device), Store(spec.output.uri, spec.output.storage_options))


def make_plan(job: Job, store: Store) -> Plan:
    """Compare what is listed with what is done.

    Raises SpecError or InputError when the input cannot be listed, ShardChanged when shards keep
    changing meanwhile, OutputError when the records of the output cannot be read.
    """
    for _ in range(LISTINGS - 1):
        # listed, and another object when its footer was read
        with contextlib.suppress(ShardChanged):
            return _plan(job, store)
    return _plan(job, store)


def _plan(job: Job, store: Store) -> Plan:
    spec = job.spec
    shards = list_shards(spec.input.uri, spec.input.storage_options, spec.input.format)
    head = load_snapshot(store)
    live = live_parts(store, head)
    manifests = load_manifests(store, job.fingerprint, live)
    kept, claims = claim(shards, manifests, {part.part_id for part in live})
    fresh = list(cut_rest(spec, shards, claims))
    todo = [Todo(split, frozenset()) for split in fresh]
    for parts in kept:
        if not is_complete(parts):
            todo.append(Todo(parts[0].split, frozenset(part.index for part in parts)))
    done = [part for parts in kept for part in parts]
    keep_ids = {part.part_id for part in done}
    targets = sorted(
        [split.split_id for split in fresh] + [parts[0].split.split_id for parts in kept]
    )
    run_id = content_hash([job.fingerprint, targets], 16)
    return Plan(
        job=job,
        shards=shards,
        todo=todo,
        done=done,
        live=live,
        earlier=[part for part in manifests if part.run_id != run_id],
        stale=[part for part in live if part.part_id not in keep_ids],
        head=head,
        run_id=run_id,
        changed_identity=_changes(store, head, job),
        changes=shard_changes(shards, live),
    )


def missing(plan: Plan, parts: Sequence[Manifest]) -> list[Split]:
    """Splits of the plan that `parts` do not cover to their end."""
    found = by_split(parts)
    return [todo.split for todo in plan.todo if not is_complete(found.get(todo.split.split_id, []))]


def _changes(store: Store, head: Snapshot | None, job: Job) -> list[str]:
    """What differs from the generation that is live now, as dotted names; empty when the
    fingerprint is the same."""
    if head is None or head.fingerprint == job.fingerprint:
        return []
    before = load_generation(store, head.fingerprint)
    return sorted(differences(before.identity if before else {}, job.identity))
