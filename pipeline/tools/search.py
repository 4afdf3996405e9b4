"""The k rows nearest to a text, exactly: a look at whether the vectors mean something.

In: an output and a query. Out: `Hit`s, best first. The query goes through the very model of the
snapshot (its files are checked against the fingerprint); every vector of the snapshot is compared,
a batch at a time, then the few winning rows are read. No index, no approximation. Cost: one read of
the embedding column (numpy compares about 10 million 384-d float32 vectors a minute on one core).
Memory: one batch and k candidates.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ModelError, SpecError
from pipeline.job.model.prompts import query_prompt
from pipeline.output import dataset
from pipeline.storage import data_rows, schema
from pipeline.tokenize import load_tokenizer
from pipeline.tools.loaded_snapshot import LoadedSnapshot, load_snapshot_with_lineage

FloatVector = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Hit:
    """One row of the result. columns: the kept columns; values that JSON has no type for are
    text."""

    score: float
    doc_id: str
    chunk: int
    text: str | None
    source_uri: str
    source_record: int
    columns: dict[str, Any]


class _Candidate(NamedTuple):
    """A row by the index of its data file and its index in that file."""

    score: float
    file: int
    row: int


def search(
    uri: str,
    text: str,
    *,
    k: int = 10,
    snapshot: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    model_path: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The `k` rows with the highest cosine similarity to `text`; equal scores in the order of parts
    and rows.

    prompt: the text in front of the query, "" for none. prompt_name: which of the model's prompts
    it gets otherwise; by default its "query" prompt, then its default prompt, then none (as
    `SentenceTransformer.encode_query` does). model_path: where the model is now, if not where the
    run found it. Scores by vector_precision: float32, float16,
    bfloat16: cosine. int8: cosine of the query in float32 with the int8 values (a row's scale does
    not change a cosine). ubinary: cosine of ±1 vectors, 1 - 2 * Hamming distance / dimension, with
    the query packed to bits. Raises OutputError without a snapshot, ModelError when the model is
    not the snapshot's, SpecError for an empty text or an unknown prompt.
    """
    if not text.strip() or k < 1:
        raise SpecError(f"search needs a text and k >= 1; got {text!r} and k = {k}")
    loaded = load_snapshot_with_lineage(uri, storage_options, snapshot, model_path=model_path)
    query = embed_query(loaded, text, prompt_name, prompt)
    types = dataset.arrow_schema(loaded.generation)
    best: list[_Candidate] = []
    for file, first_row, batch in data_rows.scan(
        loaded.store, loaded.data_paths, ["embedding"], types
    ):
        scores = similarities(dataset.vectors_of(batch.column(0)), query)
        best += [
            _Candidate(float(scores[row]), file, first_row + int(row)) for row in _top(scores, k)
        ]
        best = sorted(best, key=lambda hit: (-hit.score, hit.file, hit.row))[:k]
    return _hits(loaded, best)


def embed_query(
    loaded: LoadedSnapshot, text: str, prompt_name: str | None = None, prompt: str | None = None
) -> FloatVector:
    """Vector (D,) float32 of a query, by the model of a snapshot.

    Raises ModelError when the model is not the snapshot's, SpecError for an unknown prompt.
    """
    job = loaded.job
    model = loaded.model
    prompt = query_prompt(job.spec.model.path, model, prompt, prompt_name)
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=prompt)
    # imported late: torch takes seconds, and callers of `similarities` do not need it
    from pipeline.embed.loading import load_engine

    engine = load_engine(model, job.engine, tokenizer.prompt_tokens)
    if engine.dim != loaded.generation.dimension:
        raise ModelError(
            f"{job.spec.model.path}: gives vectors of dimension {engine.dim}, the snapshot has "
            f"{loaded.generation.dimension}"
        )
    tokens = tokenizer.encode([_cleaned(text, job.spec.prepare.unicode)])
    vector: FloatVector = engine.embed(tokens.ids, tokens.offsets)[0]
    return vector


def _cleaned(text: str, unicode: str) -> str:
    """A query in the normal form of the documents, without halves of surrogate pairs."""
    text = text.encode("utf-8", "replace").decode()
    return text if unicode == "none" else str(pc.utf8_normalize(pa.scalar(text), unicode))


def similarities(vectors: npt.NDArray[Any], query: FloatVector) -> npt.NDArray[np.float64]:
    """Scores (N,) of stored vectors (N, W) against a query (D,), as `search` describes them."""
    if vectors.dtype == np.uint8:
        distance = np.bitwise_count(vectors ^ np.packbits(query > 0)).sum(axis=1, dtype=np.int64)
        return 1 - 2 * distance / len(query)
    floats = vectors.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", floats, floats, dtype=np.float64))  # (N,)
    lengths *= np.linalg.norm(query.astype(np.float64))
    products = (floats @ query).astype(np.float64)  # (N,)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _top(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """Indices of the k best scores. Of those that equal the k-th the first are taken, so that ties
    are settled by order and not by chance."""
    if len(scores) <= k:
        return np.arange(len(scores))
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > limit)
    return np.concatenate([above, np.flatnonzero(scores == limit)[: k - len(above)]])


_FIELDS = ("doc_id", "chunk", "text", "source_uri", "source_record")


def _hits(loaded: LoadedSnapshot, best: list[_Candidate]) -> list[Hit]:
    """The winning rows without their vectors: only the row groups that hold them are read."""
    types = dataset.arrow_schema(loaded.generation)
    files = [file for manifest in loaded.manifests for file in manifest.data_files]
    kept = [name for name in types.names if name not in schema.RESERVED]
    candidates_by_file: dict[int, list[_Candidate]] = defaultdict(list)
    for candidate in sorted(best, key=lambda candidate: candidate.row):
        candidates_by_file[candidate.file].append(candidate)
    hits: dict[_Candidate, Hit] = {}
    for number, candidates in candidates_by_file.items():
        indices = np.array([candidate.row for candidate in candidates])
        columns = (*_FIELDS, *kept)
        table = data_rows.rows_at(loaded.store, files[number].path, indices, columns, types)
        rows = dataset.with_partition(table, files[number], types).to_pylist()
        for candidate, row in zip(candidates, rows, strict=True):
            hits[candidate] = Hit(
                score=min(1.0, candidate.score),
                columns={name: _plain(row[name]) for name in kept},
                **{name: row.get(name) for name in _FIELDS},
            )
    return [hits[candidate] for candidate in best]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
