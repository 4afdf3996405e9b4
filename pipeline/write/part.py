"""The end of a part's way: rows and vectors ─► data files, rejects and a manifest, each created
once and in that order.

In: a part with its vectors. Out: its manifest. Rows with a vector that is not finite become rejects
here, so that nothing a search could choke on is ever written. Cost: one encoding and one PUT for
each Hive partition of the part.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.job.resolve import Job
from pipeline.storage import schema
from pipeline.storage.lineage import Generation, Manifest, PartFacts
from pipeline.storage.store import Store
from pipeline.storage.stored_record import FORMAT_VERSION
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_manifest, create_rejects
from pipeline.write.vectors import not_finite, vector_columns

FOOTER_SOURCES = 64
"""Sources named in a data file's footer; the manifest always has all of them."""

FAILURES = pa.schema([("document", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
"""Documents of a part for which no vector could be made, by their number in its rows."""

Vectors = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class EmbeddedPart:
    """A part as the model leaves it.

    rows: N rows without their vectors, as in PreparedPart, but for `reused`. rejects:
    schema.REJECT_COLUMNS of the records that did not reach the model. vectors: (N, D). failures:
    FAILURES; the vectors of these documents are NaN.
    """

    facts: PartFacts
    rows: pa.Table
    rejects: pa.Table
    vectors: Vectors
    failures: pa.Table


def write_part(part: EmbeddedPart, job: Job, store: Store) -> Manifest:
    """Write one part whole and return its manifest; what an earlier attempt has written is adopted.

    Raises OutputError when records and results do not add up.
    """
    facts = part.facts
    rows, vectors, lost = _without_broken_vectors(part)
    rejects = pa.concat_tables([part.rejects, lost])
    metadata = _footer(facts, job, vectors.shape[1])
    for name, column in vector_columns(vectors, job.spec.output.vector_precision).items():
        rows = rows.append_column(name, column)
    table = _with_constants(rows, facts, _schema(job, vectors.shape[1]))
    files = [
        create_data_file(
            store, facts.part_id, folder, values, piece.num_rows, parquet.encode(piece, metadata)
        )
        for values, folder, piece in parquet.partitions(table, job.spec.output.partition_by)
        if piece.num_rows
    ]
    rejects_path = rejects_sha256 = None
    if rejects.num_rows:
        letters = _with_constants(rejects, facts, schema.rejects_schema())
        rejects_path, rejects_sha256 = create_rejects(
            store, facts.run_id, facts.part_id, letters, metadata
        )
    n_rejects = _counts(rejects["source_uri"])
    sources = tuple(
        source.model_copy(update={"n_rejects": n_rejects.get(source.uri, 0)})
        for source in facts.sources
    )
    manifest = Manifest(
        **{**dict(facts), "sources": sources},
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
            f"part {facts.part_id}: {manifest.n_records} records were read, but "
            f"{manifest.n_documents} documents and {manifest.n_rejects} rejects came out. This is "
            f"a bug: report it with the manifest's split {manifest.split}"
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


def _without_broken_vectors(part: EmbeddedPart) -> tuple[pa.Table, Vectors, pa.Table]:
    """Rows with finite vectors, their vectors, and rejects for the documents of the others, which
    lose all their chunks."""
    rows = part.rows
    vectors = part.vectors
    documents = rows["document"].to_numpy()
    is_broken = np.isin(documents, documents[not_finite(vectors)])
    broken = rows.filter(pa.array(is_broken))
    _, first = np.unique(broken["document"].to_numpy(), return_index=True)
    broken = broken.take(pa.array(first))
    failures = part.failures.take(pc.index_in(broken["document"], part.failures["document"]))
    reason = pc.fill_null(failures["reason"], "not_finite")
    detail = pc.fill_null(failures["detail"], "the vector holds NaN or infinity")
    rejects = broken.append_column("reason", reason).append_column("detail", detail)
    if is_broken.any():
        rows = rows.filter(pa.array(~is_broken))
        vectors = vectors[~is_broken]
    return rows, vectors, rejects.select(part.rejects.column_names).cast(part.rejects.schema)


def _schema(job: Job, dimension: int) -> pa.Schema:
    output = job.spec.output
    return schema.rows_schema(
        job.spec.input.keep,
        include_text=output.include_text,
        precision=output.vector_precision,
        dimension=dimension,
    )


def _with_constants(table: pa.Table, facts: PartFacts, columns: pa.Schema) -> pa.Table:
    """The table with part, run and fingerprint in each row, and only the columns of a schema, in
    its order and types; dictionaries stay as they are."""
    for name in ("part_id", "run_id", "fingerprint"):
        table = table.append_column(name, pa.repeat(getattr(facts, name), table.num_rows))
    table = table.select(columns.names)
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            columns = columns.set(position, columns.field(position).with_type(field.type))
    return table.cast(columns)


def _footer(facts: PartFacts, job: Job, dimension: int) -> dict[str, object]:
    return {
        **part_lineage(facts),
        "format_version": FORMAT_VERSION,
        "model": job.spec.model.path,
        "model_license": job.model_license,
        "dimension": dimension,
        "vector_precision": job.spec.output.vector_precision,
        "normalized": job.engine.normalize,
    }


def part_lineage(facts: PartFacts) -> dict[str, object]:
    """What the footer of a data file says about its part."""
    sources = facts.sources[:FOOTER_SOURCES]
    return {
        "part_id": facts.part_id,
        "run_id": facts.run_id,
        "fingerprint": facts.fingerprint,
        "engine": facts.engine,
        "n_sources": len(facts.sources),
        "sources": [source.model_dump(exclude={"n_rejects", "lost_bytes"}) for source in sources],
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in column.value_counts().to_pylist()}
