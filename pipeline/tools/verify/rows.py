"""What the data files of a snapshot hold: one pass, a file at a time, findings by check.

A file is fetched, hashed, and decoded with page checksums, a batch of rows at a time. Memory: one
file, and per row two 64-bit hashes that find doubled records and ids; hashes that meet are looked
at again by their true values.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output import dataset
from pipeline.storage import data_files, schema
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Manifest
from pipeline.tools.loaded_snapshot import Recorded

BATCH_ROWS = 8192
SAMPLE_COLUMNS = (
    "doc_id",
    "chunk",
    "embedding",
    "embedding_scale",
    "n_tokens",
    "text_sha256",
    "source_uri",
    "source_etag",
    "source_record",
    "char_start",
    "char_end",
    "part_id",
)
Hashes = npt.NDArray[np.int64]


class Rows:
    """Reads every data file once; `findings` holds what is wrong, by the name of the check.

    sample: (seeded) random rows to keep whole in `self.sample`, tables of SAMPLE_COLUMNS.
    """

    def __init__(self, recorded: Recorded, *, sample: int, seed: int) -> None:
        self.recorded = recorded
        self.schema = dataset.arrow_schema(recorded.generation)
        self.findings: dict[str, list[str]] = defaultdict(list)
        self.sample: list[pa.Table] = []
        self.n_files = self.n_rows = self.n_documents = 0
        n_rows = recorded.snapshot.n_rows
        chosen = np.random.default_rng(seed).choice(n_rows, min(sample, n_rows), replace=False)
        self._chosen: Hashes = np.sort(chosen).astype(np.int64)
        self._record_hashes: list[Hashes] = []
        self._id_hashes: list[Hashes] = []
        self._documents: Counter[str] = Counter()  # of the part under way, by source_uri
        self._totals: Counter[str] = Counter()

    def read(self) -> None:
        """The pass over all files."""
        first_row = 0
        for part in self.recorded.parts:
            self._documents, self._totals, whole = Counter(), Counter(), True
            for file in part.data_files:
                found = self._file(part, file, first_row)
                whole, first_row = whole and found, first_row + file.n_rows
            if whole:
                self.findings["counts"] += _part_counts(part, self._documents, self._totals)

    def _file(self, part: Manifest, file: DataFile, first_row: int) -> bool:
        """One file; returns whether all of its rows could be looked at."""
        self.n_files += 1
        data = self.recorded.store.read_or_none(file.path)
        if data is None:
            self.findings["files"].append(f"{file.path}: gone")
            return False
        digest = hashlib.sha256(data).hexdigest()
        if (len(data), digest) != (file.size_bytes, file.sha256):
            found = f"{len(data)} bytes with SHA-256 {digest[:12]}…"
            self.findings["files"].append(
                f"{file.path}: {found}, the manifest says {file.size_bytes} and {file.sha256[:12]}…"
            )
        try:
            parquet = data_files.opened(data)
        except (pa.ArrowException, OSError) as error:
            self.findings["pages"].append(f"{file.path}: the footer cannot be read: {error}")
            return False
        self._footer(part, file, parquet)
        if not self._schema(file, parquet.schema_arrow):
            return False
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
                self._batch(part, file, pa.Table.from_batches([batch]), first_row)
                first_row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            self.findings["pages"].append(f"{file.path}: rows cannot be read: {error}")
            return False
        return True

    def _footer(self, part: Manifest, file: DataFile, parquet: pq.ParquetFile) -> None:
        lineage = json.loads((parquet.metadata.metadata or {}).get(schema.FOOTER_KEY, b"{}"))
        found = (parquet.metadata.num_rows, lineage.get("part_id"), lineage.get("fingerprint"))
        if found != (file.n_rows, part.part_id, part.fingerprint):
            self.findings["files"].append(
                f"{file.path}: the footer says {found[0]} rows of part {found[1]} under fingerprint {found[2]}, the manifest "
                f"{file.n_rows} rows of part {part.part_id} under {part.fingerprint}"
            )

    def _schema(self, file: DataFile, found: pa.Schema) -> bool:
        wanted = [field for field in self.schema if field.name not in file.partition]
        for field in wanted:
            position = found.get_field_index(field.name)
            if position < 0 or not found.field(position).type.equals(field.type):
                what = "absent" if position < 0 else str(found.field(position).type)
                self.findings["schema"].append(
                    f"{file.path}: column {field.name} is {what}, expected {field.type}"
                )
                return False
        return True

    def _batch(self, part: Manifest, file: DataFile, rows: pa.Table, first_row: int) -> None:
        nulls = [
            field.name
            for field in self.schema
            if not field.nullable and rows[field.name].null_count
        ]
        if nulls:
            self.findings["schema"].append(f"{file.path}: nulls in {', '.join(nulls)}")
            return
        is_first = pc.equal(rows["chunk"], 0)
        for count in rows.filter(is_first)["source_uri"].value_counts().to_pylist():
            self._documents[count["values"]] += count["counts"]
        for total, column in (("n_tokens", "n_tokens"), ("n_truncated", "truncated")):
            self._totals[total] += pc.sum(rows[column]).as_py() or 0
        self.n_rows += rows.num_rows
        self.n_documents += pc.sum(is_first).as_py() or 0
        self._record_hashes.append(_hashes(rows, _RECORD))
        self._id_hashes.append(_hashes(rows.filter(is_first), _ID))
        self._vectors(file, rows)
        self._lineage(part, file, rows)
        self._note("tokens", file, rows, pc.less_equal(rows["n_tokens"], 0).to_numpy(), "no tokens")
        if "text" in rows.column_names:
            texts = pc.cast(rows["text"], pa.binary()).to_pylist()
            digests = pa.array([hashlib.sha256(text).hexdigest() for text in texts], pa.string())
            differ = pc.not_equal(rows["text_sha256"], digests).to_numpy()
            self._note(
                "text_hashes", file, rows, differ, "the text has another hash than text_sha256"
            )
        inside = (
            self._chosen[(self._chosen >= first_row) & (self._chosen < first_row + rows.num_rows)]
            - first_row
        )
        if len(inside):
            names = [name for name in SAMPLE_COLUMNS if name in rows.column_names]
            self.sample.append(rows.select(names).take(pa.array(inside)))

    def _vectors(self, file: DataFile, rows: pa.Table) -> None:
        for chunk in rows["embedding"].chunks:
            vectors = dataset.vectors_of(chunk)
            if vectors.dtype == np.float32:
                self._note(
                    "finite", file, rows, ~np.isfinite(vectors).all(axis=1), "NaN or infinity"
                )
            # all bits of a ubinary vector may be 0: its values were then all at or below 0
            if vectors.dtype != np.uint8:
                self._note(
                    "nonzero", file, rows, np.logical_not(vectors).all(axis=1), "a vector of zeros"
                )
        if "embedding_scale" in rows.column_names:
            scale = rows["embedding_scale"].to_numpy()
            bad: npt.NDArray[Any] = np.logical_not(np.isfinite(scale) & (scale > 0))
            self._note("finite", file, rows, bad, "a scale that is not a positive number")

    def _lineage(self, part: Manifest, file: DataFile, rows: pa.Table) -> None:
        wrong = pc.or_(
            pc.not_equal(rows["part_id"], part.part_id),
            pc.not_equal(rows["fingerprint"], part.fingerprint),
        ).to_numpy()
        self._note("lineage", file, rows, wrong, f"rows of another part than {part.part_id}")
        read = {(source.uri, source.etag) for source in part.sources}
        pairs = (
            rows.group_by(["source_uri", "source_etag"], use_threads=False)
            .aggregate([])
            .to_pylist()
        )
        for pair in pairs:
            if (pair["source_uri"], pair["source_etag"]) not in read:
                what = f"{shown(pair['source_uri'])} with ETag {pair['source_etag']}"
                self.findings["lineage"].append(
                    f"{file.path}: rows of {what}, which the part did not read"
                )

    def _note(
        self, name: str, file: DataFile, rows: pa.Table, bad: npt.NDArray[Any], what: str
    ) -> None:
        if bad.any():
            first = rows["doc_id"][int(np.argmax(bad))].as_py()
            self.findings[name].append(
                f"{file.path}: {what} in {int(bad.sum())} rows, the first is of document {first}"
            )

    def doubled_records(self) -> tuple[list[str], str]:
        """Findings: (shard, record, chunk) that more than one row came from."""
        doubled = self._repeated(self._record_hashes, lambda rows: rows, _RECORD)
        findings = [
            f"{shown(uri)} record {record} chunk {chunk}: {n} rows"
            for (uri, record, chunk), n in doubled.items()
        ]
        return (
            findings,
            f"{self.n_documents} documents, none from a record that another one is from",
        )

    def shared_ids(self) -> tuple[list[str], str]:
        """Findings: doc_ids of several documents, unless the snapshot flags just as many: then the
        input has them."""
        shared = self._repeated(
            self._id_hashes, lambda rows: rows.filter(pc.equal(rows["chunk"], 0)), _ID
        )
        if shared and len(shared) == self.recorded.snapshot.n_duplicate_ids:
            return (
                [],
                f"{len(shared)} ids are shared by several documents of the input, as the snapshot says",
            )
        findings = [f"id {doc_id}: {n} documents" for (doc_id,), n in shared.items()]
        if self.recorded.snapshot.n_duplicate_ids and not shared and not self.findings["files"]:
            findings = [
                f"the snapshot flags {self.recorded.snapshot.n_duplicate_ids} shared ids, but there are none"
            ]
        return findings, "no two documents share an id, no two rows an id and chunk"

    def _repeated(
        self,
        hashes: Sequence[Hashes],
        select: Callable[[pa.Table], pa.Table],
        columns: Sequence[str],
    ) -> dict[tuple[Any, ...], int]:
        """Keys of several rows. A second look at the true values of rows whose hashes meet."""
        values, counts = np.unique(
            np.concatenate([*hashes, np.zeros(0, np.int64)]), return_counts=True
        )
        met = values[counts > 1]
        if not len(met):
            return {}
        found: Counter[tuple[Any, ...]] = Counter()
        for rows in self._columns(columns):
            rows = select(rows)
            again = rows.filter(pa.array(np.isin(_hashes(rows, columns), met)))
            found.update(zip(*(again[name].to_pylist() for name in columns), strict=True))
        return {key: n for key, n in found.items() if n > 1}

    def _columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for part in self.recorded.parts:
            for file in part.data_files:
                data = self.recorded.store.read_or_none(file.path)
                try:
                    batches = data_files.opened(data or b"").iter_batches(
                        BATCH_ROWS, columns=[*{*columns, "chunk"}], use_threads=False
                    )
                    yield from (pa.Table.from_batches([batch]) for batch in batches)
                except (pa.ArrowException, OSError):
                    continue  # the first pass has said so


_RECORD = ("source_uri", "source_record", "chunk")
_ID = ("doc_id",)


def _hashes(rows: pa.Table, columns: Iterable[str]) -> Hashes:
    """(N,) 64-bit hashes of the values of some columns; the same within this process."""
    keys = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    return np.fromiter(map(hash, keys), np.int64, rows.num_rows)


def _part_counts(part: Manifest, documents: Counter[str], totals: Counter[str]) -> Iterator[str]:
    """Per shard, records = documents in the files + rejects; tokens and truncations as the manifest
    counts them."""
    for source in part.sources:
        if source.n_records != documents[source.uri] + source.n_rejects:
            yield (
                f"part {part.part_id}: {source.n_records} records of {shown(source.uri)}, but {documents[source.uri]} "
                f"documents in its files and {source.n_rejects} rejects"
            )
    for name in ("n_tokens", "n_truncated"):
        if totals[name] != getattr(part, name):
            yield f"part {part.part_id}: {name} is {totals[name]} in its files, {getattr(part, name)} in the manifest"
