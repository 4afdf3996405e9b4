"""The rows of one snapshot as a stream, with vectors as a search library takes them.

In: an output. Out: a `Source`: what the snapshot is, and its rows in batches, each with its vectors
as one array. Memory: a row group and its decoded copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import OutputError, SpecError
from pipeline.output import dataset
from pipeline.output.change_feed import KEY, cursor_of
from pipeline.output.identity import identity_of
from pipeline.output.snapshots import live_parts
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store

VECTORS = ("embedding", "embedding_scale")


@dataclasses.dataclass(frozen=True)
class Source:
    """A snapshot that is exported. columns: what goes along with the vectors, the key first."""

    store: Store
    snapshot: Snapshot
    generation: Generation
    parts: Sequence[Manifest]
    columns: Sequence[str]

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for part in self.parts for file in part.data_files)

    @property
    def is_binary(self) -> bool:
        """Whether vectors are bits, eight in a byte."""
        return self.generation.vector_precision == "ubinary"

    @property
    def width(self) -> int:
        """Elements of a stored vector: values, or bytes of eight bits."""
        return int(self.types.field("embedding").type.list_size)

    @property
    def element(self) -> np.dtype:
        """The type of an element after decoding: float32, or uint8 for bits."""
        return np.dtype(np.uint8 if self.is_binary else np.float32)

    @property
    def types(self) -> pa.Schema:
        return dataset.arrow_schema(self.generation)

    @property
    def is_normalized(self) -> bool:
        """Whether the model gave vectors of length 1, which rounding changes by little."""
        return identity_of(self.generation).model.normalize

    def batches(self) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[Any]]]:
        """(columns, vectors (n, width)) of at most a row group at a time; int8 multiplied by its
        scale. Raises OutputError when there are other numbers of rows than the manifests say."""
        stored = [name for name in VECTORS if name in self.types.names]
        n_rows = 0
        names = [*self.columns, *stored]
        for _, batch in dataset.rows_of(self.store, self.generation, self.parts, names):
            vectors = dataset.vectors_of(batch.column("embedding"))
            if "embedding_scale" in stored:
                vectors = vectors * batch.column("embedding_scale").to_numpy()[:, None]
            n_rows += len(batch)
            if n_rows > self.n_rows:
                break
            yield batch.select(list(self.columns)), np.ascontiguousarray(vectors, self.element)
        if n_rows != self.n_rows:
            raise OutputError(
                f"{self.store.shown_uri}: the data files of snapshot {self.snapshot.number} have "
                f"other numbers of rows than their manifests say. Run `corpus-embed verify`."
            )

    def column_schema(self) -> pa.Schema:
        """The types of `columns`."""
        return pa.schema([self.types.field(name) for name in self.columns])

    def provenance(self) -> dict[str, Any]:
        """Where the vectors come from, for people and programs that find the export."""
        generation = self.generation
        return {
            "source": self.store.shown_uri,
            "snapshot": self.snapshot.number,
            "cursor": cursor_of(self.snapshot),
            "run_id": self.snapshot.run_id,
            "fingerprint": generation.fingerprint,
            "model": generation.model_name,
            "model_license": generation.model_license,
            "dimension": generation.dimension,
            "vector_precision": generation.vector_precision,
            "n_rows": self.n_rows,
        }


def open_source(
    uri: str,
    columns: Sequence[str],
    snapshot: int | None,
    storage_options: Mapping[str, Any] | None,
) -> Source:
    """A snapshot (the newest by default) with some columns besides the key (doc_id, chunk).

    Raises OutputError when there is no such snapshot or it has no rows, SpecError for a column that
    it does not have.
    """
    store = Store(uri, storage_options)
    head, generation = dataset.read_head(store, snapshot)
    known = [name for name in dataset.arrow_schema(generation).names if name not in VECTORS]
    if unknown := sorted({*columns} - {*known}):
        raise SpecError(
            f"--columns: snapshot {head.number} has no {', '.join(unknown)}; it has "
            f"{', '.join(known)}"
        )
    names = [*KEY, *(name for name in dict.fromkeys(columns) if name not in KEY)]
    source = Source(store, head, generation, live_parts(store, head), names)
    if not source.n_rows:
        raise OutputError(f"{store.shown_uri}: snapshot {head.number} has no rows to export")
    return source
