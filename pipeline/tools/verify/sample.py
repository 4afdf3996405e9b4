"""A sample of rows against their sources: read again, cleaned, chunked, tokenized, embedded on this
machine, and compared.

In: rows as they lie in the data files. Out: findings and the lowest similarity. The records go
through the functions of a run, the model files through the hashes of the fingerprint; vectors are
brought to the output's precision before they are compared. Cost: loading the model, one embedding
of each sampled row.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.job.input_spec import InputSpec
from pipeline.job.model.tokenizer_versions import versions
from pipeline.job.resolve import INT8_ALGORITHM, Job
from pipeline.output import dataset
from pipeline.output.identity import identity_of
from pipeline.read.parts import Part, with_source
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard, Split
from pipeline.storage.options import server_of
from pipeline.tokenize import load_tokenizer
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.tools.source_records import (
    SOURCE_GONE,
    SOURCE_NOT_ASKED,
    RecordKey,
    SourceRecord,
    read_source_records,
    record_key,
    row_problem,
)
from pipeline.workers.rows import renumbered
from pipeline.workers.steps import PreparedPart, embed_part, prepare_part
from pipeline.write.vectors import vector_columns

MIN_COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99, "int8": 0.999}
"""By the dtype of the model's arithmetic. float32 differs between machines by the order of sums,
about 1e-6; a half precision rounds every product (2^-11, 2^-9), and another device or batch
rounds others; at int8 a value at the edge of two steps falls to either side."""
MIN_COSINE_INT8 = 0.999
"""For int8 vectors: a value at the edge of two of the 255 steps falls to either side, and one step
of one value is at most 1/127."""
MIN_OF_OLD_INT8 = 0.9
"""Cosine or equal bits where the model's int8 arithmetic was an earlier one."""
MIN_EQUAL_BITS = {"float32": 0.98, "float16": 0.97, "bfloat16": 0.95, "int8": 0.97}
"""ubinary keeps signs; the sign of a value within rounding of zero is chance."""

Row = Mapping[str, Any]
Vectors = npt.NDArray[Any]


def compare(
    loaded: LoadedSnapshot, tables: Sequence[pa.Table]
) -> tuple[list[str], str, dict[str, Any]]:
    """Compare sampled rows (tables of file_scan.SAMPLE_COLUMNS) with what their sources give now.

    Returns findings, a sentence, and figures: rows compared, rows whose source is gone or was not
    asked, lowest similarity, its limit. A source that was deleted or replaced, or that is on a
    server which only the output names, is counted and is no finding.
    Raises ModelError when the model files are not those of the fingerprint.
    """
    rows = [row for table in tables for row in table.drop_columns(["embedding"]).to_pylist()]
    manifests = {manifest.part_id: manifest for manifest in loaded.manifests}
    records = read_source_records(loaded, [(manifests.get(row["part_id"]), row) for row in rows])
    findings: list[str] = []
    intact: list[int] = []
    gone: Counter[str] = Counter()
    not_asked: Counter[str] = Counter()
    for index, row in enumerate(rows):
        record = records[record_key(row)]
        if isinstance(record, str) and record.startswith(SOURCE_GONE):
            gone[row["source_uri"]] += 1
        elif isinstance(record, str) and record.startswith(SOURCE_NOT_ASKED):
            server = server_of(row["source_uri"], loaded.spec.input.storage_options)
            not_asked[shown(server)] += 1
        elif problem := _problem(loaded, row, record):
            findings.append(f"{_name(row)}: {problem}")
        else:
            intact.append(index)
    figures: dict[str, Any] = {
        "rows": len(rows),
        "embedded_again": len(intact),
        "source_gone": gone.total(),
        "source_not_asked": not_asked.total(),
    }
    detail = f"{len(intact)} of {len(rows)} rows read again from their shards, hashes agree"
    if intact:
        columns = (chunk for table in tables for chunk in table["embedding"].chunks)
        stored = np.concatenate([dataset.vectors_of(column) for column in columns])
        lowest, limit, differences = _compare_vectors(
            loaded, [rows[index] for index in intact], stored[intact], records
        )
        findings += differences
        figures |= {"lowest_similarity": lowest, "limit": limit}
        detail += f", embedded again with similarity >= {lowest:.6f} (limit {limit})"
        stored_versions = identity_of(loaded.generation).tokenizer
        if (current := versions(loaded.model)) != stored_versions:
            detail += f"; tokenizer software differs: {stored_versions} then, {current} now"
    if gone:
        shards = ", ".join(shown(uri) for uri in sorted(gone)[:3])
        detail += f"; {gone.total()} rows not compared, {SOURCE_GONE}: {shards}"
    if not_asked:
        detail += (
            f"; {not_asked.total()} rows not compared: their sources are on "
            f"{', '.join(sorted(not_asked)[:3])}, which only the output names; "
            "give --source-options to read them"
        )
    return findings, detail, figures


def _name(row: Row) -> str:
    return f"{row['doc_id']} chunk {row['chunk']}"


def _problem(loaded: LoadedSnapshot, row: Row, record: SourceRecord | str) -> str | None:
    problem = row_problem(record, row)
    if problem is not None or isinstance(record, str):
        return problem
    if loaded.spec.input.id_column is None:
        doc_id = f"{row['source_uri']}#{row['source_record']}"
    else:
        doc_id = record.raw["doc_id"][0].as_py()
    return None if doc_id == row["doc_id"] else f"its record has the id {doc_id!r}"


def _compare_vectors(
    loaded: LoadedSnapshot,
    rows: Sequence[Row],
    stored: Vectors,
    records: Mapping[RecordKey, SourceRecord | str],
) -> tuple[float, float, list[str]]:
    """(lowest similarity, its limit, findings) of stored vectors (N, W) and fresh ones of the same
    N rows."""
    job = loaded.job
    tokenizer = load_tokenizer(loaded.model, max_tokens=job.max_tokens, prompt=job.prompt)
    part = _part({record_key(row): records[record_key(row)] for row in rows}, job.spec.input)
    prepared = prepare_part(part, job, tokenizer, loaded.snapshot.run_id)
    keys = prepared.rows.select(["source_uri", "source_etag", "source_record", "chunk"]).to_pylist()
    fresh_index = {(record_key(key), key["chunk"]): index for index, key in enumerate(keys)}
    findings: list[str] = []
    matched: list[int] = []
    for index, row in enumerate(rows):
        if (record_key(row), row["chunk"]) in fresh_index:
            matched.append(index)
        else:
            findings.append(f"{_name(row)}: the record gives no such chunk")
    rows = [rows[index] for index in matched]
    fresh_part = _only(prepared, [fresh_index[record_key(row), row["chunk"]] for row in rows])
    fresh_tokens = fresh_part.rows.select(["text_sha256", "n_tokens"]).to_pylist()
    for row, fresh in zip(rows, fresh_tokens, strict=True):
        if any(fresh[name] != row[name] for name in fresh):
            findings.append(f"{_name(row)}: {fresh['n_tokens']} tokens now, {row['n_tokens']} then")
    # imported late: torch takes seconds, and a sample without intact rows does not need it
    from pipeline.embed.loading import load_engine

    engine = load_engine(loaded.model, job.engine, tokenizer.prompt_tokens)
    vectors = embed_part(fresh_part, engine, job).vectors
    columns = vector_columns(vectors, loaded.generation.vector_precision)
    similarities, limit = _similarities(
        stored[matched], dataset.vectors_of(columns["embedding"]), job
    )
    for row, similarity in zip(rows, similarities.tolist(), strict=True):
        if not similarity >= limit:
            findings.append(
                f"{_name(row)}: similarity {similarity:.6f} to the vector of its text on this "
                f"machine, the limit is {limit}"
            )
    return float(similarities.min(initial=1.0)), limit, findings


def _part(records: Mapping[RecordKey, SourceRecord | str], spec: InputSpec) -> Part:
    """The sampled records as a part of their own."""
    tables = [
        with_source(record.raw, Shard(uri=uri, etag=etag, size_bytes=0), spec)
        for (uri, etag, _), record in records.items()
        if isinstance(record, SourceRecord)
    ]
    return Part(Split(spans=(), part_bytes=1), 0, True, pa.concat_tables(tables), sources=())


def _only(prepared: PreparedPart, indices: Sequence[int]) -> PreparedPart:
    """Some rows of a prepared part, and only the distinct texts that they need."""
    rows = prepared.rows.take(pa.array(indices, pa.int64()))
    texts, used = renumbered(rows["texts"])
    rows = rows.set_column(rows.column_names.index("texts"), "texts", texts)
    tokens = prepared.tokens.take(pa.array(used, pa.int64()))
    return dataclasses.replace(prepared, rows=rows, tokens=tokens)


def _similarities(
    stored: Vectors, fresh: Vectors, job: Job
) -> tuple[npt.NDArray[np.float64], float]:
    """(N,) similarities of two arrays (N, W) of one precision, row by row, and their lower limit:
    the share of equal bits for ubinary, otherwise the cosine."""
    dtype = job.engine.dtype
    is_old = dtype == "int8" and job.identity["model"].get("int8_algorithm", 1) < INT8_ALGORITHM
    least = MIN_OF_OLD_INT8 if is_old else 1.0
    if stored.dtype == np.uint8:
        n_different = np.bitwise_count(stored ^ fresh).sum(axis=1, dtype=np.int64)
        return 1 - n_different / (8 * stored.shape[1]), min(least, MIN_EQUAL_BITS[dtype])
    a = stored.astype(np.float64)
    b = fresh.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    limit = min(least, MIN_COSINE[dtype])
    return cosines, min(limit, MIN_COSINE_INT8) if stored.dtype == np.int8 else limit
