"""The k nearest rows to a text, exactly: a person sees that the vectors mean something.

In: an output and a query. Out: `Hit`s, best first. The query goes through the very model of the snapshot (files checked
against the fingerprint); every vector of the snapshot is compared, a batch at a time, then the few winning rows are
read. No index, no approximation. Cost: the embedding column read once (numpy compares about 10 million 384-d float32
vectors a minute on one core); memory: a batch, and k candidates.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import dataset, schema
from pipeline.errors import ModelError, SpecError
from pipeline.job import load_engine_of
from pipeline.lineage import DataFile, Generation
from pipeline.recorded import Recorded, read_recorded
from pipeline.spec import JobSpec
from pipeline.storage import Store
from pipeline.tokenize import load_tokenizer

BATCH_ROWS = 16384
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
    """The `k` rows with the highest cosine similarity to `text`; equal scores in the order of parts and rows.

    prompt_name: of the model's prompts, for the query; by default its "query" prompt, then its default prompt, then
    none (as `SentenceTransformer.encode_query` does). model_path: where the model is now. Scores by vector_precision:
    float32, float16, bfloat16: cosine. int8: cosine of the query in float32 with the int8 values (a row's scale does
    not change a cosine). ubinary: cosine of ±1 vectors, 1 - 2 * Hamming distance / dimension, the query packed to bits.
    Raises OutputError without a snapshot, ModelError when the model is not the snapshot's, SpecError for an empty text
    or an unknown prompt.
    """
    if not text.strip() or k < 1:
        raise SpecError(f"search needs a text and k >= 1; found {text!r} and k = {k}")
    recorded = read_recorded(Store(store_uri, storage_options), snapshot, spec=spec, model_path=model_path)
    query = embed_query(recorded, text, prompt_name)
    files = [file for part in recorded.parts for file in part.data_files]
    best: list[_Candidate] = []
    for number, file in enumerate(files):
        for first_row, scores in _scores(recorded, file, query):
            top = _top(scores, k)
            best += [_Candidate(float(scores[row]), number, first_row + int(row)) for row in top]
            best = sorted(best, key=lambda found: (-found.score, found.file, found.row))[:k]
    rows = _rows(recorded, files, best)
    return [_hit(min(1.0, found.score), rows[found.file, found.row]) for found in best]


def embed_query(recorded: Recorded, text: str, prompt_name: str | None = None) -> FloatVector:
    """Vector (D,) float32 of a query, by the model of a snapshot."""
    job, model = recorded.job, recorded.model
    if prompt_name is not None and prompt_name not in model.prompts:
        raise SpecError(f"prompt '{prompt_name}': the model has {sorted(model.prompts) or 'no prompts'}")
    name = prompt_name or ("query" if "query" in model.prompts else model.default_prompt_name)
    prompt = model.prompts.get(name) if name else None
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=prompt or None)
    engine = load_engine_of(job, model, tokenizer.prompt_tokens)
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


def _scores(recorded: Recorded, file: DataFile, query: FloatVector) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """(number of the first row, scores) of each batch of a file. Only the embedding column is fetched."""
    with recorded.store.open(file.path) as source:
        first_row = 0
        for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=["embedding"]):
            yield first_row, similarities(dataset.vectors_of(batch.column(0)), query)
            first_row += batch.num_rows


def _top(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """Rows of the k best scores and of all that equal the k-th, so that ties are settled by order and not by chance."""
    if len(scores) <= k:
        return np.arange(len(scores))
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > limit)
    return np.concatenate([above, np.flatnonzero(scores == limit)[: k - len(above)]])


def _rows(recorded: Recorded, files: list[DataFile], best: list[_Candidate]) -> dict[tuple[int, int], dict[str, Any]]:
    """The winning rows without their vectors: only the row groups that hold them are read."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    kept, types = _kept(recorded.generation), dataset.arrow_schema(recorded.generation)
    for number in sorted({candidate.file for candidate in best}):
        file = files[number]
        with recorded.store.open(file.path) as source:
            parquet = pq.ParquetFile(source)
            columns = [name for name in (*_FIELDS, *kept) if name in parquet.schema_arrow.names]
            ends = np.cumsum([parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)])
            for row in sorted(candidate.row for candidate in best if candidate.file == number):
                group = int(np.searchsorted(ends, row, side="right"))
                first = int(ends[group - 1]) if group else 0
                table = parquet.read_row_group(group, columns=columns).slice(row - first, 1)
                fields = {name: table[name].cast(types.field(name).type)[0].as_py() for name in columns}
                values = {
                    **_partition(file, recorded.generation),
                    **{name: fields[name] for name in kept if name in fields},
                }
                found[number, row] = {**fields, "columns": {name: _plain(values[name]) for name in kept}}
    return found


_FIELDS = ("doc_id", "chunk", "text", "source_uri", "source_record")


def _kept(generation: Generation) -> list[str]:
    return [name for name in dataset.arrow_schema(generation).names if name not in schema.RESERVED]


def _partition(file: DataFile, generation: Generation) -> dict[str, Any]:
    """Partition columns are text in folder names; here they have their types again."""
    types = dataset.arrow_schema(generation)
    return {
        name: pa.scalar(value, pa.string()).cast(types.field(name).type).as_py()
        for name, value in file.partition.items()
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _hit(score: float, fields: dict[str, Any]) -> Hit:
    return Hit(
        score=score,
        doc_id=fields["doc_id"],
        chunk=fields["chunk"],
        text=fields.get("text"),
        source_uri=fields["source_uri"],
        source_record=fields["source_record"],
        columns=fields["columns"],
    )
