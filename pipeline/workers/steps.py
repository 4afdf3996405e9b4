"""The way of one part up to its vectors, as plain functions: records ─► rows and tokens ─► vectors.

In: a part as `pipeline/read/parts.py` cut it. `prepare` cleans, chunks and tokenizes it; `embed`
runs the engine over its distinct new texts. `pipeline/write/part.py` takes over from there,
`pipeline/workers/stages.py` puts each function into Ray. Memory is bounded by one part:
`part_bytes` of records, `part_records` documents, and their vectors.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.resolve import Job
from pipeline.output.known_vectors import UNKNOWN, Index
from pipeline.prepare.chunk import chunk
from pipeline.prepare.clean import clean
from pipeline.read.parts import Part
from pipeline.storage import schema
from pipeline.storage.layout import MAX_PARTITION_STEP, partition_step
from pipeline.storage.lineage import part_id
from pipeline.tokenize import Tokenizer


class Embeds(Protocol):
    """What this module needs of an engine."""

    def embed(
        self, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]: ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A part ready for the model.

    header: plain facts that end in the manifest. rows: one per future row, without vectors, plus
    `document` (int64, which good record of the part), `texts` (list<int32>, the distinct texts
    whose vectors make the row's) and `reused` (list<float32>, its vector where an earlier run made
    it); one of the two is null. tokens: `ids` (list<int32>), one per distinct text. rejects:
    schema.rejects_schema.
    """

    header: dict[str, Any]
    rows: pa.Table
    tokens: pa.Table
    rejects: pa.Table


def prepare(
    part: Part, job: Job, tokenizer: Tokenizer, run_id: str, index: Index | None = None
) -> Prepared:
    """Clean, chunk and tokenize one part. Every record ends in `rows` (once, or in chunks) or in
    `rejects`.

    Rows whose text has a vector in the `index` take it from there; only the others are tokenized
    here.
    """
    spec = job.spec
    records = clean(
        _with_sources(part, job), unicode=spec.prepare.unicode, min_chars=spec.prepare.min_chars
    )
    records = _reject_long_partitions(records, spec.output.partition_by)
    is_good = pc.is_null(records["reason"])
    rows, distinct = _rows(records.filter(is_good), job, tokenizer)
    known = (
        index.find(rows["text_sha256"])
        if index
        else UNKNOWN.take(pa.nulls(rows.num_rows, pa.int64()))
    )
    is_new = known["reused"].is_null()
    texts, used = renumbered(rows["texts"].filter(is_new))
    encoded = tokenizer.encode([distinct[number] for number in used.tolist()])
    members, starts = list_members(texts)
    n_tokens = np.diff(encoded.offsets).astype(np.int32)
    truncated = reduced(np.logical_or, encoded.truncated[members], starts)
    fresh = pa.table(
        {
            "texts": texts,
            "n_tokens": reduced(np.add, n_tokens[members], starts),
            "truncated": truncated,
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
    header = {
        "part_id": part_id(job.fingerprint, part.split.split_id, part.index),
        "split": part.split.model_dump(mode="json"),
        "index": part.index,
        "last": part.last,
        "run_id": run_id,
        "record_bytes": pc.sum(records["record_bytes"]).as_py() or 0,
        "sources": _sources(records),
        "n_embedded": len(used),
    }
    columns = [name for name in schema.REJECT_COLUMNS if name in records.column_names]
    rejects = records.filter(pc.invert(is_good)).select(columns)
    return Prepared(header, rows, pa.table({"ids": ids}), rejects)


def embed(
    tokens: pa.Table, rows: pa.Table, engine: Embeds, normalize: bool
) -> npt.NDArray[np.float32]:
    """Vectors (N rows, D) float32 of a prepared part, in the order of its rows.

    A row of several texts (chunk_and_pool) gets the mean of their vectors weighted by tokens,
    normalised again where the model normalises. A row with a reused vector keeps that one.
    """
    ids = tokens["ids"].combine_chunks()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    # (texts, D)
    vectors = engine.embed(ids.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])
    is_new = rows["texts"].is_valid().to_numpy()
    members, starts = list_members(rows["texts"].drop_null())
    is_one_to_one = len(members) == len(starts) == len(vectors) and bool(
        (members[1:] > members[:-1]).all()
    )
    if is_one_to_one and is_new.all():
        return vectors  # hundreds of megabytes, and the GPU waits while they are copied
    pooled = vectors[members]
    if len(members) != len(starts):
        weights = np.diff(offsets)[members].astype(np.float32)[:, None]
        pooled = np.add.reduceat(pooled * weights, starts, axis=0)  # (new rows, D)
        pooled /= np.add.reduceat(weights, starts, axis=0)
        if normalize:
            pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    merged = np.empty((rows.num_rows, vectors.shape[1]), np.float32)  # (N, D)
    merged[is_new], merged[~is_new] = (
        pooled,
        pc.list_flatten(rows["reused"]).to_numpy().reshape(-1, vectors.shape[1]),
    )
    return merged


def _with_sources(part: Part, job: Job) -> pa.Table:
    """All records of a part as one table, with source_uri, source_etag and, where no column names
    ids, doc_id."""
    empty = schema.records_schema(job.spec.input.keep).empty_table()
    table = pa.concat_tables([empty, *(piece for _, piece in part.pieces)])
    owner = pa.array(
        np.repeat([n for n, _ in part.pieces], [p.num_rows for _, p in part.pieces]).astype(
            np.int64
        )
    )
    shards = [span.shard for span in part.split.spans]
    for name in ("uri", "etag"):
        values = pa.array([getattr(shard, name) for shard in shards], pa.string())
        table = table.append_column(f"source_{name}", values.take(owner))
    if job.spec.input.id_column is None:
        record = pc.cast(table["source_record"], pa.string())
        default = pc.binary_join_element_wise(table["source_uri"], record, "#")
        table = table.set_column(
            table.column_names.index("doc_id"), "doc_id", pc.coalesce(table["doc_id"], default)
        )
    return table


def _reject_long_partitions(records: pa.Table, by: Sequence[str]) -> pa.Table:
    """Reject records whose partition value makes a folder name longer than file systems allow."""
    for name in by:
        values = pc.cast(records[name], pa.string())
        distinct = [value for value in values.unique().to_pylist() if value is not None]
        long = [
            value
            for value in distinct
            if len(partition_step(name, value).encode()) > MAX_PARTITION_STEP
        ]
        if long:
            bad = pc.and_(pc.is_null(records["reason"]), pc.is_in(values, pa.array(long)))
            for column, value in (
                ("reason", "invalid_column"),
                ("detail", f"partition column {name} is too long"),
            ):
                filled = pc.if_else(bad, value, records[column])
                records = records.set_column(records.column_names.index(column), column, filled)
    return records


def _rows(good: pa.Table, job: Job, tokenizer: Tokenizer) -> tuple[pa.Table, list[str]]:
    """Rows of the good records of a part, and the distinct texts that the model has to see."""
    spec = job.spec.prepare
    owner = starts = ends = documents = np.arange(good.num_rows, dtype=np.int64)
    texts = good["text"].combine_chunks()
    if spec.long_documents != "truncate" and good.num_rows:
        room = job.max_tokens - tokenizer.special_tokens - tokenizer.prompt_tokens
        limit = max(1, min(spec.chunk.max_tokens, room))
        overlap = min(spec.chunk.overlap_tokens, limit - 1)
        owner, starts, ends, texts = chunk(
            texts,
            tokenizer.count,
            max_tokens=limit,
            overlap_tokens=overlap,
            boundary=spec.chunk.boundary,
        )
    distinct = (
        pc.dictionary_encode(texts) if len(texts) else pa.array([], pa.string()).dictionary_encode()
    )
    indices = distinct.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    first = np.searchsorted(owner, documents)
    if spec.long_documents == "chunk":
        good, number = good.take(pa.array(owner)), np.arange(len(owner)) - first[owner]
        row_starts, row_texts, row_documents = np.arange(len(owner) + 1), texts, owner
    else:  # one row a document; after chunk_and_pool it spans all its chunks
        number = starts = np.zeros_like(documents)
        row_starts, row_documents, row_texts = np.append(first, len(owner)), documents, good["text"]
        ends = pc.utf8_length(row_texts).to_numpy()
    digests = [
        hashlib.sha256(text).hexdigest() for text in pc.cast(row_texts, pa.binary()).to_pylist()
    ]
    rows = pa.table(
        {
            "document": pa.array(row_documents, pa.int64()),
            "texts": pa.ListArray.from_arrays(
                pa.array(row_starts.astype(np.int32)), pa.array(indices)
            ),
            "doc_id": good["doc_id"],
            "chunk": pa.array(number.astype(np.int32)),
            "text": row_texts,
            **{name: good[name] for name in job.spec.input.keep},
            "text_sha256": pa.array(digests, pa.string()),
            **{name: good[name] for name in ("source_uri", "source_etag", "source_record")},
            "char_start": pa.array(starts, pa.int64()),
            "char_end": pa.array(ends, pa.int64()),
        }
    )
    return rows, distinct.dictionary.to_pylist()


def _sources(records: pa.Table) -> list[dict[str, Any]]:
    """What a part took from each shard, in order (`n_rejects` is counted when the part is
    published)."""
    with_damage = records.append_column(
        "damaged", pc.fill_null(pc.equal(records["reason"], "damaged_shard"), False)
    )
    grouped = with_damage.group_by(["source_uri", "source_etag"], use_threads=False).aggregate(
        [("source_record", "min"), ("source_record", "count"), ("damaged", "any")]
    )
    names = ["uri", "etag", "first_record", "n_records", "damaged"]
    order = ["source_uri", "source_etag", "source_record_min", "source_record_count", "damaged_any"]
    return list(grouped.select(order).rename_columns(names).to_pylist())


def list_members(lists: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Flat values of a list<int32> column without empty lists, and where each row's run starts (for
    reduceat)."""
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return pc.list_flatten(lists).to_numpy(), np.cumsum(lengths) - lengths


def renumbered(lists: pa.ChunkedArray) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Lists of numbers of texts with the numbers made dense, and which texts (K,) they stand for."""
    members, starts = list_members(lists)
    used, dense = np.unique(members, return_inverse=True)
    array = pa.ListArray.from_arrays(
        np.append(starts, len(members)).astype(np.int32), dense.astype(np.int32)
    )
    return pa.chunked_array([array]), used.astype(np.int64)


def reduced(
    function: np.ufunc, values: npt.NDArray[Any], starts: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """`function` over each run of `values`: one result a start."""
    return function.reduceat(values, starts) if len(starts) else values[:0]
