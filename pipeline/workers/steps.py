"""The way of one part through the workers, as plain functions without Ray.

    Part ─► prepare_part ─► PreparedPart ─► embed_part ─► EmbeddedPart ─► write_part ─► Manifest

`pipeline/workers/stages.py` runs each function in a stage of its own; `do_part` and `do_splits` run
them one after the other in this process. Memory is bounded by one part: `part_bytes` of records,
`part_records` documents, and their vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.embed.buckets import Ids, Offsets, Vectors
from pipeline.embed.stats import EngineStats, OnBucket
from pipeline.job.resolve import Job
from pipeline.output.known_vectors import UNKNOWN, Index
from pipeline.prepare.clean import clean, count_replaced
from pipeline.read.parts import Part, Todo, cut, first_records, read
from pipeline.storage import schema
from pipeline.storage.lineage import Manifest, PartFacts, Shard, Source, part_id
from pipeline.storage.store import Store
from pipeline.tokenize import Tokenizer
from pipeline.workers.bounds import reject_out_of_bounds
from pipeline.workers.isolate import Crashed
from pipeline.workers.rows import list_members, reduced, renumbered, rows_of, vectors_of_rows
from pipeline.write.create import create_generation
from pipeline.write.part import FAILURES, EmbeddedPart, generation_of, write_part


class Embeds(Protocol):
    """What a worker needs of an engine."""

    name: str
    device: str
    device_name: str
    dtype: str
    dim: int

    @property
    def tuning(self) -> Mapping[str, str]: ...

    def embed(self, ids: Ids, offsets: Offsets, stats: EngineStats) -> Vectors: ...


@dataclasses.dataclass(frozen=True)
class PreparedPart:
    """A part ready for the model.

    rows: one for each future row, without vectors, plus `document` (int64, which good record of the
    part), `texts` (list<int32>, the distinct texts whose vectors make up the row's) and `reused`
    (list<float32>, its vector where an earlier run computed it); one of the last two is null.
    tokens: `ids` (list<int32>), one list for each distinct text. rejects: schema.REJECT_COLUMNS.
    """

    facts: PartFacts
    rows: pa.Table
    tokens: pa.Table
    rejects: pa.Table


def do_splits(
    splits: Iterable[Todo],
    prepare: Callable[[Part], PreparedPart],
    embed: Callable[[PreparedPart], EmbeddedPart],
    job: Job,
    store: Store,
) -> Iterator[Manifest]:
    """Do the unfinished parts of some splits in this process, one after the other: what the stages
    do, without Ray. `prepare` and `embed` are `prepare_part` and `embed_part` with their models."""
    for todo in splits:
        for part in unfinished_parts(todo, job):
            yield do_part(part, prepare, embed, job, store)


def do_part(
    part: Part,
    prepare: Callable[[Part], PreparedPart],
    embed: Callable[[PreparedPart], EmbeddedPart],
    job: Job,
    store: Store,
) -> Manifest:
    """One part from its records to its manifest. Raises OutputError where the output is not the
    job's."""
    embedded = embed(prepare(part))
    create_generation(store, generation_of(job, embedded.vectors.shape[1]))
    return write_part(embedded, job, store)


def unfinished_parts(
    todo: Todo, job: Job, tables: Iterable[tuple[Shard, pa.Table]] | None = None
) -> Iterator[Part]:
    """The parts of a split that have no manifest yet. tables: as in `cut`."""
    if todo.max_records is not None:
        tables = first_records(tables or read(todo.split, job), todo.max_records)
    return (part for part in cut(todo.split, job, tables) if part.index not in todo.finished)


def prepare_part(
    part: Part, job: Job, tokenizer: Tokenizer, run_id: str, index: Index | None = None
) -> PreparedPart:
    """Clean, chunk and tokenize one part. Every record ends in `rows` (once, or in chunks) or in
    `rejects`.

    Rows whose text has a vector in the `index` take it from there; only the other texts are
    tokenized.
    """
    spec = job.spec
    records = clean(part.records, unicode=spec.prepare.unicode, min_chars=spec.prepare.min_chars)
    records = reject_out_of_bounds(records, spec)
    is_good = pc.is_null(records["reason"])
    documents = records.filter(is_good)
    rows, distinct = rows_of(documents, job, tokenizer)
    nothing = UNKNOWN.take(pa.nulls(rows.num_rows, pa.int64()))
    known = index.find(rows["text_sha256"]) if index else nothing
    is_new = known["reused"].is_null()
    texts, used = renumbered(rows["texts"].filter(is_new))
    encoded = tokenizer.encode([distinct[number] for number in used.tolist()])
    members, starts = list_members(texts)
    n_tokens = np.diff(encoded.offsets).astype(np.int32)
    fresh = pa.table(
        {
            "texts": texts,
            "n_tokens": reduced(np.add, n_tokens[members], starts),
            "truncated": reduced(np.logical_or, encoded.truncated[members], starts),
        }
    )
    # null where known
    fresh = fresh.take(pa.array(np.cumsum(is_new) - 1, mask=pc.invert(is_new).to_numpy()))
    rows = (
        rows.drop_columns(["texts"])
        .append_column("texts", fresh["texts"])
        .append_column("reused", known["reused"])
    )
    for name in ("n_tokens", "truncated"):
        rows = rows.append_column(name, pc.coalesce(fresh[name], known[name]))
    ids = pa.ListArray.from_arrays(
        pa.array(encoded.offsets, pa.int32()), pa.array(encoded.ids, pa.int32())
    )
    facts = PartFacts(
        part_id=part_id(job.fingerprint, part.split.split_id, part.index),
        fingerprint=job.fingerprint,
        run_id=run_id,
        split=part.split,
        index=part.index,
        last=part.last,
        sources=_with_replaced(part.sources, documents),
        record_bytes=_bytes_read(records),
        n_embedded=len(used),
    )
    columns = [name for name in schema.REJECT_COLUMNS if name in records.column_names]
    rejects = records.filter(pc.invert(is_good)).select(columns)
    return PreparedPart(facts, rows, pa.table({"ids": ids}), rejects)


def _with_replaced(sources: tuple[Source, ...], documents: pa.Table) -> tuple[Source, ...]:
    """The sources with the number of their documents that hold U+FFFD."""
    counts = count_replaced(documents["text"], documents["source_uri"])
    return tuple(
        source.model_copy(update={"n_replaced": counts.get(source.uri, 0)}) for source in sources
    )


def _bytes_read(records: pa.Table) -> int:
    """The bytes of all records, without those that a damaged shard lacks."""
    is_damage = pc.fill_null(pc.equal(records["reason"], "damaged_shard"), False)
    return pc.sum(pc.if_else(is_damage, 0, records["record_bytes"])).as_py() or 0


def embed_part(
    part: PreparedPart,
    engine: Embeds,
    job: Job,
    embed_texts: Callable[
        [Embeds, Ids, Offsets, EngineStats], tuple[Vectors, Mapping[int, Crashed]]
    ]
    | None = None,
    on_bucket: OnBucket | None = None,
) -> EmbeddedPart:
    """Vectors for the distinct texts of a prepared part, spread over its rows.

    embed_texts: runs the engine; returns the vectors (texts, D), and by number the texts that have
    none. By default the engine runs unguarded. on_bucket: takes the number of tokens of each bucket
    as soon as it is embedded.
    """
    ids = part.tokens["ids"].combine_chunks()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    flat = ids.values.to_numpy()[offsets[0] : offsets[-1]]
    stats = EngineStats(on_bucket=on_bucket)  # of this part alone, beside whatever else runs
    crashes: Mapping[int, Crashed] = {}
    if embed_texts is None:
        vectors = engine.embed(flat, offsets - offsets[0], stats)  # (texts, D)
    else:
        vectors, crashes = embed_texts(engine, flat, offsets - offsets[0], stats)
    facts = part.facts.model_copy(
        update={
            "n_embedded_tokens": stats.n_tokens,
            "n_padded_tokens": stats.n_padded_tokens,
            "n_oom_halvings": stats.n_oom_halvings,
            "engine": {
                "name": engine.name,
                "device": engine.device,
                "device_name": engine.device_name,
                "dtype": engine.dtype,
                **engine.tuning,
            },
        }
    )
    return EmbeddedPart(
        facts=facts,
        rows=part.rows.drop_columns(["reused"]),
        rejects=part.rejects,
        vectors=vectors_of_rows(part.rows, vectors, np.diff(offsets), job.engine.normalize),
        failures=_failures(part.rows, crashes),
    )


def _failures(rows: pa.Table, crashes: Mapping[int, Crashed]) -> pa.Table:
    """FAILURES of the documents with a text that has no vector."""
    by_document: dict[int, Crashed] = {}
    if crashes:
        for row in rows.select(["document", "texts"]).to_pylist():
            for text in row["texts"] or ():
                if text in crashes:
                    by_document[row["document"]] = crashes[text]
    return pa.Table.from_pylist(
        [
            {"document": document, "reason": crash.reason, "detail": crash.detail}
            for document, crash in by_document.items()
        ],
        schema=FAILURES,
    )
