"""One pass over the data files of a snapshot, for `verify`.

In: a loaded snapshot. Out: findings by the name of their check, counts, and a random sample of
rows. A file is fetched whole, hashed, and decoded with page checksums, a batch of rows at a time.
Memory: one file, and two 64-bit hashes per row, which find repeated records and ids.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output import dataset
from pipeline.storage import data_files
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Manifest
from pipeline.storage.schema import LINEAGE_COLUMNS
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.tools.verify.row_checks import RepeatedKeys, row_findings

BATCH_ROWS = 8192
SAMPLE_COLUMNS = ("doc_id", "chunk", "embedding", "embedding_scale", *LINEAGE_COLUMNS)


class FileScan:
    """Reads every data file once; `findings` holds what is wrong, by the name of the check.

    n_sample: how many random rows (by `seed`) `sample` holds afterwards, as tables of
    SAMPLE_COLUMNS.
    """

    def __init__(self, loaded: LoadedSnapshot, *, n_sample: int, seed: int) -> None:
        self.loaded = loaded
        self.schema = dataset.arrow_schema(loaded.generation)
        self.findings: dict[str, list[str]] = defaultdict(list)
        self.sample: list[pa.Table] = []
        self.n_files = 0
        self.n_rows = 0
        self.n_documents = 0
        n_rows = loaded.snapshot.n_rows
        draw = np.random.default_rng(seed)
        self._sample_rows = np.sort(draw.choice(n_rows, min(n_sample, n_rows), replace=False))
        self._unread: set[str] = set()
        self._records = RepeatedKeys(("source_uri", "source_record", "chunk"))
        self._ids = RepeatedKeys(("doc_id",), first_chunks=True)

    def run(self) -> None:
        """Scan all files, in the order of the manifests."""
        first_row = 0
        for manifest in self.loaded.manifests:
            counts = _PartCounts()
            is_whole = True
            for file in manifest.data_files:
                if not self._scan_file(manifest, file, first_row, counts):
                    is_whole = False
                    self._unread.add(file.path)
                first_row += file.n_rows
            if is_whole:
                self.findings["counts"] += counts.findings(manifest)

    def repeated_records(self) -> list[str]:
        """Findings: chunks of one record that several rows hold."""
        repeated = self._records.find(self._tables(self._records.columns))
        return [
            f"{shown(uri)} record {record} chunk {chunk}: {count} rows"
            for (uri, record, chunk), count in repeated.items()
        ]

    def shared_ids(self) -> tuple[list[str], str]:
        """Findings: ids that several documents share, unless the snapshot counts just as many (the
        input has them then); and a sentence for a check that holds."""
        shared = self._ids.find(self._tables(self._ids.columns))
        n_expected = self.loaded.snapshot.n_duplicate_ids
        if shared and len(shared) == n_expected:
            return [], f"{len(shared)} ids are shared by several documents, as the snapshot says"
        findings = [f"id {doc_id}: {count} documents" for (doc_id,), count in shared.items()]
        if n_expected and not shared and not self.findings["files"]:
            findings = [f"the snapshot counts {n_expected} shared ids, but no id is shared"]
        return findings, "no two documents share an id, no two rows an id and chunk"

    def _scan_file(
        self, manifest: Manifest, file: DataFile, first_row: int, counts: _PartCounts
    ) -> bool:
        """Scan one file; returns whether all of its rows could be checked."""
        self.n_files += 1
        data = self.loaded.store.read_or_none(file.path)
        if data is None:
            self._note("files", file, "missing")
            return False
        digest = hashlib.sha256(data).hexdigest()
        if (len(data), digest) != (file.size_bytes, file.sha256):
            content = f"{len(data)} bytes with SHA-256 {digest[:12]}…"
            expected = f"{file.size_bytes} and {file.sha256[:12]}…"
            self._note("files", file, f"{content}, the manifest says {expected}")
        try:
            parquet = data_files.opened(data)
        except (pa.ArrowException, OSError) as error:
            self._note("pages", file, f"the footer cannot be read: {error}")
            return False
        self._check_footer(manifest, file, parquet.metadata)
        for field in self.schema:
            position = parquet.schema_arrow.get_field_index(field.name)
            type_ = None if position < 0 else parquet.schema_arrow.field(position).type
            if type_ != field.type and field.name not in file.partition:
                finding = f"column {field.name} is {type_ or 'absent'}, expected {field.type}"
                self._note("schema", file, finding)
                return False
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
                rows = pa.Table.from_batches([batch])
                required = (field.name for field in self.schema if not field.nullable)
                if nulls := [name for name in required if rows[name].null_count]:
                    self._note("schema", file, f"nulls in {', '.join(nulls)}")
                else:
                    self._check_rows(manifest, file, rows, counts)
                    self._take_sample(rows, first_row)
                first_row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            self._note("pages", file, f"rows cannot be read: {error}")
            return False
        return True

    def _note(self, check: str, file: DataFile, finding: str) -> None:
        self.findings[check].append(f"{file.path}: {finding}")

    def _check_footer(self, manifest: Manifest, file: DataFile, footer: pq.FileMetaData) -> None:
        try:
            lineage = data_files.lineage_of(footer)
        except OutputError as error:
            self._note("files", file, str(error))
            return
        stored = (footer.num_rows, lineage.get("part_id"), lineage.get("fingerprint"))
        expected = (file.n_rows, manifest.part_id, manifest.fingerprint)
        if stored != expected:
            says = "the footer says {} rows of part {} under fingerprint {}".format(*stored)
            expects = "the manifest {} rows of part {} under fingerprint {}".format(*expected)
            self._note("files", file, f"{says}, {expects}")

    def _check_rows(
        self, manifest: Manifest, file: DataFile, rows: pa.Table, counts: _PartCounts
    ) -> None:
        documents = rows.filter(pc.equal(rows["chunk"], 0))
        counts.add(rows, documents)
        self.n_rows += rows.num_rows
        self.n_documents += documents.num_rows
        self._records.add(rows)
        self._ids.add(rows)
        for check, finding in row_findings(rows, manifest):
            self._note(check, file, finding)

    def _take_sample(self, rows: pa.Table, first_row: int) -> None:
        bounds = np.searchsorted(self._sample_rows, [first_row, first_row + rows.num_rows])
        indices = self._sample_rows[slice(*bounds)] - first_row
        if len(indices):
            names = [name for name in SAMPLE_COLUMNS if name in rows.column_names]
            self.sample.append(rows.select(names).take(pa.array(indices)))

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all files again; files that the scan could not read are skipped."""
        for path in self.loaded.data_paths:
            if path in self._unread:
                continue  # the scan has reported it
            batches = data_files.opened(self.loaded.store.read(path)).iter_batches(
                BATCH_ROWS, columns=[*{*columns, "chunk"}], use_threads=False
            )
            yield from (pa.Table.from_batches([batch]) for batch in batches)


class _PartCounts:
    """What the data files of one part hold."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.n_tokens = 0
        self.n_truncated = 0

    def add(self, rows: pa.Table, documents: pa.Table) -> None:
        """documents: the rows with chunk 0."""
        for count in documents["source_uri"].value_counts().to_pylist():
            self.documents[count["values"]] += count["counts"]
        self.n_tokens += pc.sum(rows["n_tokens"]).as_py() or 0
        self.n_truncated += pc.sum(rows["truncated"]).as_py() or 0

    def findings(self, manifest: Manifest) -> Iterator[str]:
        """Per shard, records = documents + rejects; tokens and truncations are as many as the
        manifest says."""
        for source in manifest.sources:
            n_documents = self.documents[source.uri]
            if source.n_records != n_documents + source.n_rejects:
                yield (
                    f"part {manifest.part_id}: {source.n_records} records of {shown(source.uri)}, "
                    f"but {n_documents} documents in its files and {source.n_rejects} rejects"
                )
        for name in ("n_tokens", "n_truncated"):
            if getattr(self, name) != getattr(manifest, name):
                yield (
                    f"part {manifest.part_id}: {name} is {getattr(self, name)} in its files and "
                    f"{getattr(manifest, name)} in the manifest"
                )
