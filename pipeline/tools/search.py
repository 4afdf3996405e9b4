"""The k nearest rows to a text, exactly: a person sees that the vectors mean something.

In: an output and a query. Out: `Hit`s, best first. The query goes through the very model of the
snapshot (files checked against the fingerprint); every vector of the snapshot is compared, a batch
at a time, then the few winning rows are read. No index, no approximation. Cost: the embedding
column read once (numpy compares about 10 million 384-d float32 vectors a minute on one core);
memory: a batch, and k candidates.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError, SpecError
from pipeline.job.spec import JobSpec
from pipeline.output import dataset
from pipeline.storage import data_files, schema
from pipeline.storage.lineage import DataFile
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.tools.loaded_snapshot import Recorded, read_recorded

FloatVector = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Hit:
    """One row that was found. columns: the kept columns, values that JSON does not know as text."""

    score: float
    doc_id: str
    chunk: int
    text: str | None
    source_uri: str
    source_record: int
    columns: dict[str, Any]


class _Candidate(NamedTuple):
    score: float
    file: int
    row: int


def search(
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    text: str,
    *,
    k: int = 10,
    snapshot: int | None = None,
    prompt_name: str | None = None,
    spec: JobSpec | None = None,
    model_path: str | None = None,
) -> list[Hit]:
    """The `k` rows with the highest cosine similarity to `text`; equal scores in the order of parts
    and rows.

    prompt_name: of the model's prompts, for the query; by default its "query" prompt, then its
    default prompt, then none (as `SentenceTransformer.encode_query` does). model_path: where the
    model is now. Scores by vector_precision: float32, float16, bfloat16: cosine. int8: cosine of
    the query in float32 with the int8 values (a row's scale does not change a cosine). ubinary:
    cosine of ±1 vectors, 1 - 2 * Hamming distance / dimension, the query packed to bits. Raises
    OutputError without a snapshot, ModelError when the model is not the snapshot's, SpecError for
    an empty text or an unknown prompt.
    """
    if not text.strip() or k < 1:
        raise SpecError(f"search needs a text and k >= 1; found {text!r} and k = {k}")
    recorded = read_recorded(
        Store(store_uri, storage_options), snapshot, spec=spec, model_path=model_path
    )
    query = embed_query(recorded, text, prompt_name)
    files = [file for part in recorded.parts for file in part.data_files]
    best: list[_Candidate] = []
    for number, first_row, batch in data_files.scan(
        recorded.store, [file.path for file in files], ["embedding"]
    ):
        scores = similarities(dataset.vectors_of(batch.column(0)), query)
        best += [
            _Candidate(float(scores[row]), number, first_row + int(row)) for row in _top(scores, k)
        ]
        best = sorted(best, key=lambda found: (-found.score, found.file, found.row))[:k]
    return _hits(recorded, files, best)


def embed_query(recorded: Recorded, text: str, prompt_name: str | None = None) -> FloatVector:
    """Vector (D,) float32 of a query, by the model of a snapshot."""
    job, model = recorded.job, recorded.model
    if prompt_name is not None and prompt_name not in model.prompts:
        raise SpecError(
            f"prompt '{prompt_name}': the model has {sorted(model.prompts) or 'no prompts'}"
        )
    name = prompt_name or ("query" if "query" in model.prompts else model.default_prompt_name)
    prompt = model.prompts.get(name) if name else None
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=prompt or None)
    # torch: seconds that other users of this file do without
    from pipeline.embed.loading import load_engine

    engine = load_engine(model, job.engine, tokenizer.prompt_tokens)
    if engine.dim != recorded.generation.dimension:
        raise ModelError(
            f"{job.spec.model.path}: gives vectors of dimension {engine.dim}, the snapshot has {recorded.generation.dimension}"
        )
    tokens = tokenizer.encode([_cleaned(text, job.spec.prepare.unicode)])
    vector: FloatVector = engine.embed(tokens.ids, tokens.offsets)[0]
    return vector


def _cleaned(text: str, unicode: Literal["none", "NFC", "NFKC"]) -> str:
    """As the documents were: the same normal form, no halves of surrogate pairs."""
    text = text.encode("utf-8", "replace").decode()
    return text if unicode == "none" else unicodedata.normalize(unicode, text)


def similarities(vectors: npt.NDArray[Any], query: FloatVector) -> npt.NDArray[np.float64]:
    """Scores (N,) of stored vectors (N, W) against a query (D,), as `search` describes them."""
    if vectors.dtype == np.uint8:
        distance = np.bitwise_count(vectors ^ np.packbits(query > 0)).sum(axis=1, dtype=np.int64)
        return 1 - 2 * distance / len(query)
    floats = vectors.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", floats, floats, dtype=np.float64)) * np.linalg.norm(
        query.astype(np.float64)
    )
    products = (floats @ query).astype(np.float64)  # (N,)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _top(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """Rows of the k best scores and of all that equal the k-th, so that ties are settled by order
    and not by chance."""
    if len(scores) <= k:
        return np.arange(len(scores))
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > limit)
    return np.concatenate([above, np.flatnonzero(scores == limit)[: k - len(above)]])


def _hits(recorded: Recorded, files: list[DataFile], best: list[_Candidate]) -> list[Hit]:
    """The winning rows without their vectors: only the row groups that hold them are read."""
    types, rows = dataset.arrow_schema(recorded.generation), {}
    kept = [name for name in types.names if name not in schema.RESERVED]
    for number in sorted({found.file for found in best}):
        file, wanted = files[number], sorted(found.row for found in best if found.file == number)
        table = data_files.rows_at(recorded.store, file.path, np.array(wanted), (*_FIELDS, *kept))
        for row, fields in zip(
            wanted, dataset.with_partition(table, file, types).to_pylist(), strict=True
        ):
            columns = {name: _plain(fields[name]) for name in kept}
            rows[number, row] = {**{name: fields.get(name) for name in _FIELDS}, "columns": columns}
    return [Hit(score=min(1.0, found.score), **rows[found.file, found.row]) for found in best]


_FIELDS = ("doc_id", "chunk", "text", "source_uri", "source_record")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
