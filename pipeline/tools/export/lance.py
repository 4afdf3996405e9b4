"""Lance: a dataset with the column `embedding` and the metadata `corpus_embed` in its schema.

Rows are streamed as Arrow batches; Lance commits them as one version. A store is reached with
Lance's own options. Memory: a few batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import CorpusEmbedError, StorageError
from pipeline.storage.schema import FOOTER_KEY
from pipeline.tools.export.place import Place
from pipeline.tools.export.rows import Source

BATCH_ROWS = 8192


def export_lance(source: Source, place: Place) -> dict[str, Any]:
    """Write a Lance dataset with all columns of the source and the decoded vectors."""
    import lance

    element = pa.from_numpy_dtype(source.element)
    vectors = pa.field("embedding", pa.list_(element, source.width), nullable=False)
    provenance = json.dumps(source.provenance(), ensure_ascii=False).encode()
    schema = pa.schema([*source.column_schema(), vectors], {FOOTER_KEY: provenance})

    own_errors: list[CorpusEmbedError] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from decoded()
        except CorpusEmbedError as error:  # Lance would turn it into an OSError with a trace
            own_errors.append(error)
            raise

    def decoded() -> Iterator[pa.RecordBatch]:
        for rows, values in source.batches():
            embedding = pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), type=vectors.type
            )
            columns = [rows.column(name) for name in source.columns]
            batch = pa.RecordBatch.from_arrays([*columns, embedding], schema=schema)
            for first in range(0, len(batch), BATCH_ROWS):
                yield batch.slice(first, BATCH_ROWS)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    try:
        table = lance.write_dataset(
            reader, place.uri, mode="create", storage_options=_options(place)
        )
    except OSError as error:
        if own_errors:
            raise own_errors[0] from error
        words = " ".join(str(error).split())[:400]
        raise StorageError(f"write {place.shown_uri}: Lance says: {words}") from error
    return {"files": [], "version": table.version}


def _options(place: Place) -> dict[str, str] | None:
    """The options of fsspec that Lance has too, in its words."""
    endpoint = place.options.get("endpoint_url")
    if not endpoint:
        return None
    is_http = str(endpoint).startswith("http://")
    return {"aws_endpoint": str(endpoint), "allow_http": str(is_http).lower()}
