"""The rows of a part and the distinct texts that they need.

In: the good records of a part; later the vectors of its texts. Out: a row for each document or
chunk, which names its texts by number, and those texts, each once; later the vectors of the rows.
Cost: one pass over the texts, and a SHA-256 of each row's text.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.resolve import Job
from pipeline.prepare.chunk import chunk
from pipeline.tokenize import Tokenizer

DIGESTED_TEXTS = 8192


def rows_of(good: pa.Table, job: Job, tokenizer: Tokenizer) -> tuple[pa.Table, list[str]]:
    """Rows of the good records of a part, and the distinct texts that the model has to see."""
    spec = job.spec.prepare
    owner = starts = ends = documents = np.arange(good.num_rows, dtype=np.int64)
    texts = good["text"].combine_chunks()
    if spec.long_documents != "truncate" and good.num_rows:
        limit, overlap = chunk_limits(job, tokenizer)
        owner, starts, ends, slices = chunk(
            texts,
            tokenizer.count,
            max_tokens=limit,
            overlap_tokens=overlap,
            boundary=spec.chunk.boundary,
        )
        texts = slices.cast(pa.string())
    distinct = (
        pc.dictionary_encode(texts) if len(texts) else pa.array([], pa.string()).dictionary_encode()
    )
    indices = distinct.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    first = np.searchsorted(owner, documents)
    if spec.long_documents == "chunk":
        good = _of_chunks(good, owner)
        number = np.arange(len(owner)) - first[owner]
        row_starts = np.arange(len(owner) + 1)
        row_texts = texts
        row_documents = owner
    else:  # one row a document; after chunk_and_pool it spans all its chunks
        number = starts = np.zeros_like(documents)
        row_starts = np.append(first, len(owner))
        row_documents = documents
        row_texts = good["text"]
        ends = pc.utf8_length(row_texts).to_numpy()
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
            "text_sha256": _digests(row_texts),
            **{name: good[name] for name in ("source_uri", "source_etag", "source_record")},
            "char_start": pa.array(starts, pa.int64()),
            "char_end": pa.array(ends, pa.int64()),
        }
    )
    return rows, distinct.dictionary.to_pylist()


def chunk_limits(job: Job, tokenizer: Tokenizer) -> tuple[int, int]:
    """(tokens of a chunk, tokens that it shares with the next): as asked, where the model has room
    beside its special tokens and the prompt."""
    asked = job.spec.prepare.chunk
    room = job.max_tokens - tokenizer.special_tokens - tokenizer.prompt_tokens
    limit = max(1, min(asked.max_tokens, room))
    return limit, min(asked.overlap_tokens, limit - 1)


def _of_chunks(documents: pa.Table, owner: npt.NDArray[np.int64]) -> pa.Table:
    """The columns of documents for their chunks: strings once a document, as dictionaries, since a
    document can have a hundred thousand chunks. owner: (M,) the document of each chunk."""
    names = [name for name in documents.column_names if name != "text"]
    columns = {}
    for name in names:
        values = documents[name].combine_chunks()
        if pa.types.is_string(values.type):
            is_null = values.is_null().to_numpy(zero_copy_only=False)
            indices = pa.array(owner.astype(np.int32), mask=is_null[owner])
            columns[name] = pa.DictionaryArray.from_arrays(indices, values)
        else:
            columns[name] = values.take(pa.array(owner))
    return pa.table(columns)


def _digests(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """SHA-256 of each text, in hex; texts become Python objects a few at a time."""
    blocks = [pa.array([], pa.string())]
    for start in range(0, len(texts), DIGESTED_TEXTS):
        block = pc.cast(texts.slice(start, DIGESTED_TEXTS), pa.binary()).to_pylist()
        blocks.append(pa.array([hashlib.sha256(text).hexdigest() for text in block], pa.string()))
    return pa.concat_arrays(blocks)


def vectors_of_rows(
    rows: pa.Table,
    vectors: npt.NDArray[np.float32],
    n_tokens: npt.NDArray[np.int64],
    normalize: bool,
) -> npt.NDArray[np.float32]:
    """(N rows, D) float32 from the vectors (texts, D) of their texts, where text i has
    `n_tokens[i]` tokens.

    A row of several texts (chunk_and_pool) gets the mean of their vectors weighted by tokens,
    normalised again where the model normalises. A row with a reused vector keeps that one.
    """
    is_new = rows["texts"].is_valid().to_numpy()
    members, starts = list_members(rows["texts"].drop_null())
    is_one_to_one = len(members) == len(starts) == len(vectors) and bool(
        (members[1:] > members[:-1]).all()
    )
    if is_one_to_one and is_new.all():
        return vectors  # hundreds of megabytes, and the GPU waits while they are copied
    pooled = vectors[members]
    if len(members) != len(starts):
        weights = n_tokens[members].astype(np.float32)[:, None]
        pooled = np.add.reduceat(pooled * weights, starts, axis=0)  # (new rows, D)
        pooled /= np.add.reduceat(weights, starts, axis=0)
        if normalize:
            pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    reused = pc.list_flatten(rows["reused"]).to_numpy()
    merged = np.empty((rows.num_rows, vectors.shape[1]), np.float32)  # (N, D)
    merged[is_new] = pooled
    merged[~is_new] = reused.reshape(-1, vectors.shape[1])
    return merged


def list_members(lists: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Flat values of a list<int32> column without empty lists, and the position at which each
    list starts (for reduceat)."""
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return pc.list_flatten(lists).to_numpy(), np.cumsum(lengths) - lengths


def renumbered(lists: pa.ChunkedArray) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Lists of numbers of texts with the numbers made dense, and the texts (K,) they stand for."""
    members, starts = list_members(lists)
    used, dense = np.unique(members, return_inverse=True)
    array = pa.ListArray.from_arrays(
        np.append(starts, len(members)).astype(np.int32), dense.astype(np.int32)
    )
    return pa.chunked_array([array]), used.astype(np.int64)


def reduced(
    function: np.ufunc, values: npt.NDArray[Any], starts: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """`function` over the values from each start to the next: one result for each start."""
    return function.reduceat(values, starts) if len(starts) else values[:0]
