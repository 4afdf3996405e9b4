"""What is to be done: listing and manifests in, a `Plan` out; it prints itself as the dry run.

A plan is set arithmetic. Shards are what the store lists now. A finished or half-finished split whose shards are all
still the same objects (URI, ETag, size) is kept as it was cut; what it does not cover is cut afresh. So a resume
re-embeds nothing that has a manifest, a new file costs only itself, and a changed one only its own parts, whatever
`runtime.part_bytes` says today. Cost: one listing, one small read per manifest that no snapshot lists yet, and a
footer per Parquet shard larger than a part. Neither torch nor ray is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, model_dir
from pipeline.errors import ModelError, SpecError
from pipeline.lineage import Generation, Manifest, Shard, Snapshot, Span, Split, content_hash
from pipeline.model_dir import ModelDir
from pipeline.read import READERS, format_of, is_compressed
from pipeline.shards import list_shards, open_shard
from pipeline.spec import JobSpec
from pipeline.storage import Store
from pipeline.tokenize.versions import versions

COMPRESSION_RATIO = 4
"""Guess of decompressed over compressed bytes of text: only sizes of groups and the display depend on it."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A spec with every `auto` resolved, and its fingerprint: what each worker needs to know."""

    spec: JobSpec
    device: str
    dtype: str
    pooling: str
    normalize: bool
    prompt: str | None
    max_tokens: int
    identity: dict[str, Any]
    model_license: str | None

    @functools.cached_property
    def fingerprint(self) -> str:
        return content_hash(self.identity, 16)

    def model(self) -> ModelDir:
        """The model directory on this node. Raises ModelError if its files are not the ones that were planned."""
        found = _model(self.spec)
        if found.files != self.identity["model"]["files"]:
            raise ModelError(
                f"{self.spec.model.path}: the model files on this node differ from those the run was planned with. "
                "Give every node the same files, or name an object-store prefix or a Hub id with a revision."
            )
        return found


@dataclasses.dataclass(frozen=True)
class Todo:
    """A split to read, and the indices of its parts that already have a manifest."""

    split: Split
    finished: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole content that the next snapshot should have, and what is missing for it."""

    job: Job
    shards: Sequence[Shard]
    todo: Sequence[Todo]
    done: Sequence[Manifest]
    stale: Sequence[Manifest]
    head: Snapshot | None
    run_id: str
    changed_identity: Sequence[str]

    @property
    def nothing_to_do(self) -> bool:
        return (
            not self.todo
            and self.head is not None
            and self.head.complete
            and not self.stale
            and not self.uncommitted
        )

    @property
    def uncommitted(self) -> bool:
        return self.head is None or self.head.n_parts != len(self.done)

    @property
    def todo_bytes(self) -> int:
        """Bytes to read, decompressed by estimate, less what finished parts of half-done splits took."""
        total = sum(_estimated_bytes(span) for todo in self.todo for span in todo.split.spans)
        open_splits = {todo.split.split_id for todo in self.todo}
        return max(
            0, total - sum(part.record_bytes for part in self.done if part.split.split_id in open_splits)
        )

    @property
    def todo_parts(self) -> int:
        """Parts to do; an estimate where a compressed shard is cut only while it is read."""
        sizes = (
            sum(map(_estimated_bytes, t.split.spans)) / t.split.part_bytes - len(t.finished)
            for t in self.todo
        )
        return sum(max(1, round(size)) for size in sizes)

    def summary(self) -> dict[str, Any]:
        """The dry run as plain data."""
        return {
            "run_id": self.run_id,
            "fingerprint": self.job.fingerprint,
            "model": self.job.spec.model.path,
            "model_license": self.job.model_license,
            "dtype": self.job.dtype,
            "device": self.job.device,
            "shards": len(self.shards),
            "input_bytes": sum(shard.size_bytes for shard in self.shards),
            "parts_todo": self.todo_parts,
            "parts_done": len(self.done),
            "parts_stale": len(self.stale),
            "splits_todo": len(self.todo),
            "bytes_todo": self.todo_bytes,
            "documents_done": sum(part.n_documents for part in self.done),
            "head": self.head.number if self.head else None,
            "changed_identity": list(self.changed_identity),
            "nothing_to_do": self.nothing_to_do,
        }


def resolve(spec: JobSpec, device: str) -> Job:
    """Settle every `auto` of a spec on a device ("cpu" or "cuda"). Raises ModelError or SpecError."""
    model = _model(spec)
    wanted = spec.model
    if wanted.prompt_name is not None and wanted.prompt_name not in model.prompts:
        raise SpecError(
            f"model.prompt_name '{wanted.prompt_name}': the model has {sorted(model.prompts) or 'no prompts'}"
        )
    name = wanted.prompt_name or model.default_prompt_name
    prompt = wanted.prompt if wanted.prompt is not None else model.prompts.get(name) if name else None
    if wanted.pooling == "auto" and model.pooling is None and not model.modules:
        raise ModelError(
            f"{wanted.path}: a plain transformers directory does not say how to pool. Set model.pooling."
        )
    dtype = wanted.dtype if wanted.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    pooling = wanted.pooling if wanted.pooling != "auto" else model.pooling or "none"
    normalize = model.normalize if wanted.normalize == "auto" else wanted.normalize
    max_tokens = model.max_tokens if wanted.max_tokens == "auto" else min(wanted.max_tokens, model.max_tokens)
    prepare = spec.prepare.model_dump(mode="json")
    if spec.prepare.long_documents == "truncate":
        del prepare["chunk"]
    identity = {
        "model": {
            "files": model.files, "pooling": pooling, "normalize": normalize, "prompt": prompt,
            "max_tokens": max_tokens, "dtype": dtype, "truncate_dim": wanted.truncate_dim or model.truncate_dim,
        },
        "tokenizer": versions(model),
        "prepare": prepare,
        "input": spec.input.model_dump(mode="json", exclude={"uri", "storage_options"}),
        "output": spec.output.model_dump(mode="json", exclude={"uri", "storage_options"}),
    }  # fmt: skip
    return Job(spec, device, dtype, pooling, normalize, prompt, max_tokens, identity, model.license)


def make_plan(job: Job, store: Store) -> Plan:
    """Compare what is listed with what is done. Raises SpecError or InputError when the input cannot be listed."""
    spec = job.spec
    accept = functools.partial(_known_format, wanted=spec.input.format)
    shards = list_shards(spec.input.uri, spec.input.storage_options, accept)
    head = commit.load_snapshot(store)
    live = commit.live_parts(store, head)
    manifests = commit.load_manifests(store, job.fingerprint, live)
    kept, claims = _claim(shards, manifests, {part.part_id for part in live})
    fresh = list(_cut(spec, shards, claims))
    todo = [Todo(split, frozenset()) for split in fresh]
    for parts in kept:
        if not _complete(parts):
            todo.append(Todo(parts[0].split, frozenset(part.index for part in parts)))
    done = [part for parts in kept for part in parts]
    keep_ids = {part.part_id for part in done}
    targets = sorted([split.split_id for split in fresh] + [parts[0].split.split_id for parts in kept])
    return Plan(
        job=job,
        shards=shards,
        todo=todo,
        done=done,
        stale=[part for part in live if part.part_id not in keep_ids],
        head=head,
        run_id=content_hash([job.fingerprint, targets], 16),
        changed_identity=_changes(store, head, job),
    )


def missing(plan: Plan, parts: Sequence[Manifest]) -> list[Split]:
    """Splits of the plan that `parts` do not cover to their end."""
    by_split = _by_split(parts)
    return [todo.split for todo in plan.todo if not _complete(by_split.get(todo.split.split_id, []))]


def plan_table(plan: Plan) -> bytes:
    """The pinned plan of a run as Parquet: one row a span of a split that was to do."""
    rows = [
        {"split_id": todo.split.split_id, "part_bytes": todo.split.part_bytes, "start": span.start, "stop": span.stop,
         "uri": span.shard.uri, "etag": span.shard.etag, "size_bytes": span.shard.size_bytes}
        for todo in plan.todo for span in todo.split.spans
    ]  # fmt: skip
    columns = {"split_id": pa.string(), "part_bytes": pa.int64(), "start": pa.int64(), "stop": pa.int64(),
               "uri": pa.string(), "etag": pa.string(), "size_bytes": pa.int64()}  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items()))), sink, compression="zstd"
    )
    return sink.getvalue()


def _model(spec: JobSpec) -> ModelDir:
    return model_dir.resolve(spec.model.path, spec.model.revision, spec.input.storage_options)


def _known_format(uri: str, wanted: str) -> bool:
    try:
        format_of(uri, wanted)
    except SpecError:
        return False
    return True


def _by_split(parts: Sequence[Manifest]) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: part.index):
        found[part.split.split_id].append(part)
    return found


def _complete(parts: Sequence[Manifest]) -> bool:
    """Whether parts of one split, by index, run from its first record to its last."""
    return [part.index for part in parts] == list(range(len(parts))) and any(part.last for part in parts)


Claims = Mapping[str, Sequence[tuple[int, float]]]


def _claim(
    shards: Sequence[Shard], manifests: Sequence[Manifest], live_ids: set[str]
) -> tuple[list[list[Manifest]], Claims]:
    """Splits to keep as they are, and the intervals of shards that they cover.

    Where two finished splits overlap (shards were grouped in another way by an earlier plan), the one that is live
    wins, then the complete one.
    """
    current = {shard.uri: shard for shard in shards}
    claims: dict[str, list[tuple[int, float]]] = defaultdict(list)
    kept = []

    def rank(parts: list[Manifest]) -> tuple[bool, bool, str]:
        return parts[0].part_id not in live_ids, not _complete(parts), parts[0].split.split_id

    for parts in sorted(_by_split(manifests).values(), key=rank):
        spans = parts[0].split.spans
        if any(current.get(span.shard.uri) != span.shard or _overlaps(span, claims) for span in spans):
            continue
        kept.append(parts)
        for span in spans:
            claims[span.shard.uri].append(_interval(span))
    return kept, claims


def _interval(span: Span) -> tuple[int, float]:
    return span.start, float("inf") if span.stop is None else span.stop


def _overlaps(span: Span, claims: Claims) -> bool:
    start, stop = _interval(span)
    return any(
        start < other_stop and other_start < stop
        for other_start, other_stop in claims.get(span.shard.uri, ())
    )


def _cut(spec: JobSpec, shards: Sequence[Shard], claims: Claims) -> Iterator[Split]:
    """Cut what is not claimed into splits; neighbours smaller than a quarter of a part share one."""
    part_bytes = int(spec.runtime.part_bytes)
    group: list[Span] = []
    for shard in shards:
        taken = sorted(claims.get(shard.uri, ()))
        if taken and taken[0] == (0, float("inf")):
            continue
        reader = READERS[format_of(shard.uri, spec.input.format)]
        opener = functools.partial(open_shard, options=spec.input.storage_options)
        for span in reader.spans(shard, opener, part_bytes):
            for free in _free(span, taken):
                if (free.start, free.stop) != (0, None) or _estimated_bytes(free) * 4 > part_bytes:
                    yield Split(spans=(free,), part_bytes=part_bytes)
                    continue
                group.append(free)
                if sum(map(_estimated_bytes, group)) >= part_bytes:
                    yield Split(spans=tuple(group), part_bytes=part_bytes)
                    group = []
    if group:
        yield Split(spans=tuple(group), part_bytes=part_bytes)


def _free(span: Span, taken: Sequence[tuple[int, float]]) -> Iterator[Span]:
    """The pieces of a span outside the sorted intervals `taken`."""
    start, stop = _interval(span)
    for other_start, other_stop in taken:
        if other_stop <= start or other_start >= stop:
            continue
        if start < other_start:
            yield Span(shard=span.shard, start=start, stop=other_start)
        if other_stop >= stop:
            return
        start = int(other_stop)
    yield Span(shard=span.shard, start=start, stop=span.stop)


def _estimated_bytes(span: Span) -> int:
    shard = span.shard
    if (span.start, span.stop) == (0, None):
        return shard.size_bytes * (COMPRESSION_RATIO if is_compressed(shard.uri) else 1)
    stop = shard.size_bytes if span.stop is None else min(span.stop, shard.size_bytes)
    return max(stop - span.start, 0)


def _changes(store: Store, head: Snapshot | None, job: Job) -> list[str]:
    """What differs from the generation that is live now, as dotted names; empty when the fingerprint is the same."""
    if head is None or head.fingerprint == job.fingerprint:
        return []
    before: Generation | None = commit.load_generation(store, head.fingerprint)
    return sorted(_differences(before.identity if before else {}, job.identity))


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name
