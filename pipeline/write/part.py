"""The end of a part's way: rows and vectors ─► data files, rejects and a manifest, in that order, each created once.

In: what `prepare` and `embed` made of one part. Out: its manifest. Rows with a vector that is not
finite become rejects here, so nothing that a search could choke on is ever written. Cost: one
encode and one PUT per Hive partition of the part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.job.resolve import Job
from pipeline.storage import schema
from pipeline.storage.lineage import FORMAT_VERSION, Generation, Manifest, Source, Split
from pipeline.storage.store import Store
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_manifest, create_rejects
from pipeline.write.vectors import not_finite, vector_columns

FOOTER_SOURCES = 64
"""Sources named in a data file's footer; the manifest always has all of them."""
_AS_THEY_ARE = (
    "part_id",
    "run_id",
    "index",
    "last",
    "record_bytes",
    "n_embedded",
    "n_embedded_tokens",
    "n_padded_tokens",
    "n_oom_halvings",
    "seconds",
    "engine",
)
"""Facts of a part's header that its manifest repeats."""


def write_part(
    header: dict[str, Any],
    rows: pa.Table,
    rejects: pa.Table,
    vectors: npt.NDArray[np.float32],
    job: Job,
    store: Store,
) -> Manifest:
    """Write one part whole and return its manifest; whatever an earlier attempt left is adopted.

    vectors: (rows, D) float32. Raises OutputError when records and results do not add up.
    """
    part_id = header["part_id"]
    rows, vectors, lost = _without_broken_vectors(rows, vectors, header.get("failed", {}))
    rejects = pa.concat_tables([rejects, lost])
    table = _output_table(rows, vectors, header, job)
    metadata = _footer(header, job, vectors.shape[1])
    files = [
        create_data_file(
            store, part_id, folder, values, found.num_rows, parquet.encode(found, metadata)
        )
        for values, folder, found in parquet.partitions(table, job.spec.output.partition_by)
        if found.num_rows
    ]
    rejects_path = rejects_sha256 = None
    if rejects.num_rows:
        letters = _with_constants(rejects, header, job, schema.rejects_schema())
        rejects_path, rejects_sha256 = create_rejects(
            store, header["run_id"], part_id, letters, metadata
        )
    rejects_by_shard = _counts(rejects["source_uri"])
    sources = [
        Source(**source, n_rejects=rejects_by_shard.get(source["uri"], 0))
        for source in header["sources"]
    ]
    manifest = Manifest(
        **{name: header[name] for name in _AS_THEY_ARE if name in header},
        fingerprint=job.fingerprint,
        split=Split.model_validate(header["split"]),
        sources=tuple(sources),
        data_files=tuple(files),
        rejects_path=rejects_path,
        rejects_sha256=rejects_sha256,
        n_records=sum(source.n_records for source in sources),
        n_documents=pc.count_distinct(rows["document"]).as_py(),
        n_rejects=rejects.num_rows,
        n_rows=rows.num_rows,
        n_tokens=pc.sum(rows["n_tokens"]).as_py() or 0,
        n_truncated=pc.sum(rows["truncated"]).as_py() or 0,
        n_reused=rows["texts"].null_count,
        reject_reasons=_counts(rejects["reason"]),
    )
    if manifest.n_records != manifest.n_documents + manifest.n_rejects:
        raise OutputError(
            f"part {part_id}: {manifest.n_records} records were read, but {manifest.n_documents} documents and "
            f"{manifest.n_rejects} rejects came out. This is a bug: report it with the manifest's split {manifest.split}"
        )
    return create_manifest(store, manifest)


def generation_of(job: Job, dimension: int) -> Generation:
    """The facts that all data files under the job's fingerprint share."""
    output = job.spec.output
    return Generation(
        fingerprint=job.fingerprint,
        identity=job.identity,
        dimension=dimension,
        vector_precision=output.vector_precision,
        partition_by=output.partition_by,
        arrow_schema=_schema(job, dimension).serialize().to_pybytes().hex(),
        model_name=job.spec.model.path,
        model_license=job.model_license,
    )


def _without_broken_vectors(
    rows: pa.Table, vectors: npt.NDArray[np.float32], failed: Mapping[str, Sequence[str]]
) -> tuple[pa.Table, npt.NDArray[np.float32], pa.Table]:
    """Rows with finite vectors, their vectors, and rejects for the documents of the others (all
    their chunks go).

    failed: (reason, detail) by document, where no vector could be made.
    """
    documents = rows["document"].to_numpy()
    broken = np.isin(documents, documents[not_finite(vectors)])
    lost = rows.filter(pa.array(broken))
    _, first = np.unique(lost["document"].to_numpy(), return_index=True)
    lost = lost.take(pa.array(first))
    why = [
        failed.get(str(n), ("not_finite", "the vector holds NaN or infinity"))
        for n in lost["document"].to_pylist()
    ]
    lost = lost.select(["doc_id", "source_uri", "source_etag", "source_record"])
    for position, name in enumerate(("reason", "detail")):
        lost = lost.add_column(
            position + 1, name, pa.array([fields[position] for fields in why], pa.string())
        )
    if not broken.any():
        return rows, vectors, lost
    return rows.filter(pa.array(~broken)), vectors[~broken], lost


def _schema(job: Job, dimension: int) -> pa.Schema:
    output = job.spec.output
    return schema.rows_schema(
        job.spec.input.keep,
        include_text=output.include_text,
        precision=output.vector_precision,
        dimension=dimension,
    )


def _with_constants(
    table: pa.Table, header: dict[str, Any], job: Job, wanted: pa.Schema
) -> pa.Table:
    """The table with part, run and fingerprint in each row, and only the columns of a schema, in
    its order and types."""
    constants = {
        "part_id": header["part_id"],
        "run_id": header["run_id"],
        "fingerprint": job.fingerprint,
    }
    for name, value in constants.items():
        table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table.select(wanted.names).cast(wanted)


def _output_table(
    rows: pa.Table, vectors: npt.NDArray[np.float32], header: dict[str, Any], job: Job
) -> pa.Table:
    """Rows in the order and types of schema.rows_schema (partition columns still in)."""
    for name, column in vector_columns(vectors, job.spec.output.vector_precision).items():
        rows = rows.append_column(name, column)
    return _with_constants(rows, header, job, _schema(job, vectors.shape[1]))


def _footer(header: dict[str, Any], job: Job, dimension: int) -> dict[str, object]:
    sources = header["sources"]
    return {
        "format_version": FORMAT_VERSION,
        "part_id": header["part_id"],
        "run_id": header["run_id"],
        "fingerprint": job.fingerprint,
        "model": job.spec.model.path,
        "model_license": job.model_license,
        "dimension": dimension,
        "vector_precision": job.spec.output.vector_precision,
        "normalized": job.engine.normalize,
        "engine": header["engine"],
        "n_sources": len(sources),
        "sources": sources[:FOOTER_SOURCES],
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in column.value_counts().to_pylist()}
