"""A sample of rows against their sources: read again, cleaned, chunked, tokenized, embedded here,
and compared.

In: rows as they lie in the data files. Out: findings, and the lowest cosine. The records go through
the functions of a run (`prepare`, `embed`), the model files through the hashes of the fingerprint;
vectors are brought to the output's precision before they are compared. Cost: loading the model, one
embedding of each sampled row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.job.resolve import Job
from pipeline.job.tokenizer_versions import versions
from pipeline.output import dataset
from pipeline.read.parts import Part
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard, Span, Split
from pipeline.tokenize import load_tokenizer
from pipeline.tools.loaded_snapshot import Recorded
from pipeline.tools.source_records import SOURCE_GONE, Key, Record, key_of, problem_of, read_sources
from pipeline.workers.steps import Prepared, embed, prepare, renumbered
from pipeline.write.vectors import vector_columns

MIN_COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99, "int8": 0.999}
"""By the dtype of the model's arithmetic. float32 differs between machines by the order of sums,
about 1e-6; a half precision rounds every product (2^-11, 2^-9), and another device or batch
rounds others; at int8 a value at the edge of two steps falls to either side."""
MIN_COSINE_INT8 = 0.999
"""A value at the edge of two of the 255 steps falls to either side: one step of one value is at
most 1/127."""
MIN_EQUAL_BITS = {"float32": 0.98, "float16": 0.97, "bfloat16": 0.95, "int8": 0.97}
"""ubinary keeps signs; the sign of a value within rounding of zero is chance."""

RowKey = tuple[Key, int]


def compare(
    recorded: Recorded, tables: Sequence[pa.Table]
) -> tuple[list[str], str, dict[str, Any]]:
    """Compare sampled rows (tables of verify_rows.SAMPLE_COLUMNS) with what their sources give now.

    Returns findings, a sentence, and figures: rows compared, rows without a source, lowest
    similarity, the limit. A source that is gone or another object now is counted and is no finding.
    Raises ModelError when the model files are not those of the fingerprint.
    """
    rows = [fields for table in tables for fields in table.drop_columns(["embedding"]).to_pylist()]
    stored = (
        np.concatenate([dataset.vectors_of(c) for t in tables for c in t["embedding"].chunks])
        if rows
        else None
    )
    owners = {part.part_id: part for part in recorded.parts}
    records = read_sources(recorded, [(owners.get(fields["part_id"]), fields) for fields in rows])
    findings, good = [], []
    gone: dict[str, int] = defaultdict(int)
    for number, fields in enumerate(rows):
        record = records[key_of(fields)]
        if isinstance(record, str) and record.startswith(SOURCE_GONE):
            gone[fields["source_uri"]] += 1
        elif problem := _text_problem(recorded, fields, record):
            findings.append(f"{fields['doc_id']} chunk {fields['chunk']}: {problem}")
        else:
            good.append(number)
    figures: dict[str, Any] = {
        "rows": len(rows),
        "embedded_again": len(good),
        "source_gone": sum(gone.values()),
    }
    detail = f"{len(good)} of {len(rows)} rows read again from their shards, hashes agree"
    if good and stored is not None:
        keys = [(key_of(rows[n]), rows[n]["chunk"]) for n in good]
        lowest, limit, different = _embedded_again(
            recorded, keys, records, [rows[n] for n in good], stored[good]
        )
        findings += different
        figures |= {"lowest_similarity": lowest, "limit": limit}
        detail += f", embedded again with similarity >= {lowest:.6f} (limit {limit})"
    if gone:
        shards = ", ".join(shown(uri) for uri in sorted(gone)[:3])
        detail += f"; {sum(gone.values())} rows not compared, {SOURCE_GONE}: {shards}"
    software = versions(recorded.model) if good else recorded.generation.identity["tokenizer"]
    if software != recorded.generation.identity["tokenizer"]:
        detail += f"; tokenizer software differs: {recorded.generation.identity['tokenizer']} then, {software} here"
    return findings, detail, figures


def _text_problem(
    recorded: Recorded, fields: Mapping[str, Any], record: Record | str
) -> str | None:
    if (problem := problem_of(record, fields)) or isinstance(record, str):
        return problem
    default = f"{fields['source_uri']}#{fields['source_record']}"
    found = default if recorded.spec.input.id_column is None else record.raw["doc_id"][0].as_py()
    return None if found == fields["doc_id"] else f"its record has the id {found!r}"


def _embedded_again(
    recorded: Recorded,
    keys: Sequence[RowKey],
    records: Mapping[Key, Record | str],
    rows: Sequence[Mapping[str, Any]],
    stored: npt.NDArray[Any],
) -> tuple[float, float, list[str]]:
    """(lowest similarity, limit, findings) of stored vectors (N, W) against fresh ones."""
    job = recorded.job
    tokenizer = load_tokenizer(recorded.model, max_tokens=job.max_tokens, prompt=job.prompt)
    prepared = prepare(
        _part(dict.fromkeys(key for key, _ in keys), records),
        job,
        tokenizer,
        recorded.snapshot.run_id,
    )
    columns = ("source_uri", "source_etag", "source_record", "chunk")
    listed = zip(*(prepared.rows[name].to_pylist() for name in columns), strict=True)
    place: dict[RowKey, int] = {
        ((uri, etag, record), chunk): n for n, (uri, etag, record, chunk) in enumerate(listed)
    }
    absent = [rows[n] for n, key in enumerate(keys) if key not in place]
    findings = [
        f"{fields['doc_id']} chunk {fields['chunk']}: the record gives no such chunk"
        for fields in absent
    ]
    there = [n for n, key in enumerate(keys) if key in place]
    again, tokens = _only(prepared, [place[keys[n]] for n in there])
    for n, digest, n_tokens in zip(
        there, again["text_sha256"].to_pylist(), again["n_tokens"].to_pylist(), strict=True
    ):
        if (digest, n_tokens) != (rows[n]["text_sha256"], rows[n]["n_tokens"]):
            findings.append(
                f"{rows[n]['doc_id']} chunk {rows[n]['chunk']}: {n_tokens} tokens here, {rows[n]['n_tokens']} then"
            )
    # torch: seconds that other users of this file do without
    from pipeline.embed.loading import load_engine

    engine = load_engine(recorded.model, job.engine, tokenizer.prompt_tokens)
    fresh = vector_columns(
        embed(tokens, again, engine, job.engine.normalize), recorded.generation.vector_precision
    )
    similarity, limit = _similarity(stored[there], dataset.vectors_of(fresh["embedding"]), job)
    for n, found in zip(there, similarity.tolist(), strict=True):
        if not found >= limit:
            what = f"{rows[n]['doc_id']} chunk {rows[n]['chunk']}"
            findings.append(
                f"{what}: similarity {found:.6f} to the vector of its text here, the limit is {limit}"
            )
    return float(similarity.min(initial=1.0)), limit, findings


def _part(keys: Mapping[Key, None], records: Mapping[Key, Record | str]) -> Part:
    """The sampled records as a part of their own."""
    shards = list(dict.fromkeys((uri, etag) for uri, etag, _ in keys))
    spans = tuple(Span(shard=Shard(uri=uri, etag=etag, size_bytes=0)) for uri, etag in shards)
    pieces = []
    for key in keys:
        record = records[key]
        if isinstance(record, Record):
            pieces.append((shards.index(key[:2]), record.raw))
    return Part(Split(spans=spans, part_bytes=1), 0, True, tuple(pieces))


def _only(prepared: Prepared, rows: Sequence[int]) -> tuple[pa.Table, pa.Table]:
    """Some rows of a prepared part, and only the distinct texts that these rows need."""
    taken = prepared.rows.take(pa.array(rows, pa.int64()))
    texts, used = renumbered(taken["texts"])
    taken = taken.set_column(taken.column_names.index("texts"), "texts", texts)
    return taken, prepared.tokens.take(pa.array(used, pa.int64()))


def _similarity(
    stored: npt.NDArray[Any], fresh: npt.NDArray[Any], job: Job
) -> tuple[npt.NDArray[np.float64], float]:
    """Row-wise similarity of (N, W) vectors of one precision, and how low it may be."""
    limit = MIN_COSINE[job.engine.dtype]
    if stored.dtype == np.uint8:
        differ = np.bitwise_count(stored ^ fresh).sum(axis=1, dtype=np.int64)
        return 1 - differ / (8 * stored.shape[1]), MIN_EQUAL_BITS[job.engine.dtype]
    a, b = stored.astype(np.float64), fresh.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return cosine, min(limit, MIN_COSINE_INT8) if stored.dtype == np.int8 else limit
