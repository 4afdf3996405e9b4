"""From one row of an output back to the bytes it was made of, and whether they are still the same.

In: an output and a doc_id, or doc_id#chunk. Out: a `Trace` with data file, part, run, model and
source of each matching row, the source text, and a verdict: the record is read again from the
shard, pinned to the ETag that was planned, cleaned as the run cleaned it, and the SHA-256 of its
characters [char_start, char_end) is compared with the row's. Cost: the columns doc_id and chunk of
the snapshot, then one record (a compressed shard is decompressed up to it).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.output import dataset
from pipeline.output.identity import identity_of
from pipeline.storage import data_rows, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Manifest
from pipeline.storage.printable import printable
from pipeline.storage.schema import LINEAGE_COLUMNS
from pipeline.storage.words import counted
from pipeline.tools.loaded_snapshot import LoadedSnapshot, load_snapshot_with_lineage
from pipeline.tools.source_records import SourceRecord, read_source_records, record_key, row_problem

MAX_ROWS = 100
"""The most rows that are traced in full; `Trace.n_rows` counts all of them."""
TEXT_CHARS = 500
"""The most characters of a source text that a trace holds."""


@dataclasses.dataclass(frozen=True)
class TracedRow:
    """One row and where it comes from. verdict: "same", or how its source differs. source_text: the
    beginning of the row's text in the source."""

    doc_id: str
    chunk: int
    verdict: str
    ok: bool
    source_uri: str
    source_etag: str
    source_record: int
    record_bytes: int | None
    char_start: int
    char_end: int
    text_sha256: str
    source_text: str | None
    n_tokens: int
    truncated: bool
    data_file: str
    data_file_sha256: str
    part_id: str
    split_id: str
    part_index: int
    run_id: str
    device: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Trace:
    """Every row that a doc_id names, of every document that has this id."""

    row: str
    n_rows: int
    n_documents: int
    ok: bool
    snapshot: int
    fingerprint: str
    model: str
    model_license: str | None
    model_files: dict[str, str]
    rows: tuple[TracedRow, ...]

    def lines(self) -> Iterator[str]:
        """The trace for people: the model, then each row with its source text and the verdict."""
        license_name = self.model_license or "licence not stated"
        rows = f"{counted(self.n_rows, 'row')} of {counted(self.n_documents, 'document')}"
        yield f"{rows} in snapshot {self.snapshot}"
        yield f"model {self.model} ({license_name}), fingerprint {self.fingerprint}"
        for row in self.rows:
            truncated = ", truncated" if row.truncated else ""
            size = f", {counted(row.record_bytes, 'byte')}" if row.record_bytes is not None else ""
            yield ""
            tokens = counted(row.n_tokens, "token")
            yield f"{printable(row.doc_id)} chunk {row.chunk}: {tokens}{truncated}"
            yield f"  row     {row.data_file} (part {row.part_id}, run {row.run_id})"
            yield f"  source  {printable(shown(row.source_uri))} ETag {printable(row.source_etag)}"
            yield (
                f"  record  {row.source_record}{size}, "
                f"characters {row.char_start} to {row.char_end}"
            )
            yield f"  text    {printable(' '.join((row.source_text or '').split())[:200])}"
            yield f"  sha256  {row.text_sha256}: {row.verdict}"


def trace(
    uri: str,
    row: str,
    *,
    snapshot: int | None = None,
    source_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Trace:
    """Trace all rows of a doc_id, or the one row `doc_id#chunk` when no doc_id is exactly `row`.

    source_options: storage options to read the sources with; without them, a source on a server
    that only the output names is not asked, and its row's verdict says so. Raises OutputError when
    there is no such row or no such snapshot.
    """
    loaded = load_snapshot_with_lineage(
        uri, storage_options, snapshot, source_options=source_options
    )
    matches = _find(loaded, row)
    owners = {
        file.path: (manifest, file) for manifest in loaded.manifests for file in manifest.data_files
    }
    located = [(*owners[fields["path"]], fields) for fields in matches[:MAX_ROWS]]
    records = read_source_records(loaded, [(manifest, fields) for manifest, _, fields in located])
    rows = [
        _traced(fields, manifest, file, records[record_key(fields)])
        for manifest, file, fields in located
    ]
    generation = loaded.generation
    return Trace(
        row=row,
        n_rows=len(matches),
        n_documents=len({record_key(fields) for fields in matches}),
        ok=all(traced.ok for traced in rows),
        snapshot=loaded.snapshot.number,
        fingerprint=generation.fingerprint,
        model=generation.model_name,
        model_license=generation.model_license,
        model_files=identity_of(generation).model.files,
        rows=tuple(rows),
    )


def _find(loaded: LoadedSnapshot, row: str) -> list[dict[str, Any]]:
    """Rows by exact doc_id, otherwise by doc_id#chunk, in the order of document and chunk."""
    matches = _select(loaded, pc.field("doc_id") == row)
    doc_id, sharp, chunk = row.rpartition("#")
    if not matches and sharp and chunk.isdigit() and len(chunk) < 10:
        is_row = (pc.field("doc_id") == doc_id) & (pc.field("chunk") == int(chunk))
        matches = _select(loaded, is_row)
    if not matches:
        raise OutputError(
            f"{loaded.store.shown_uri}: no row '{row}' in snapshot {loaded.snapshot.number}. Give "
            "a doc_id, or doc_id#chunk; without input.id_column in the spec, a doc_id is "
            f"<uri>#<record>. The record may also have been rejected: see {layout.REJECTS}."
        )
    return matches


_COLUMNS = ["doc_id", "chunk", *(LINEAGE_COLUMNS.keys() - {"part_id", "fingerprint"})]


def _select(loaded: LoadedSnapshot, condition: pc.Expression) -> list[dict[str, Any]]:
    """Columns _COLUMNS of the rows that fulfil a condition, and the path of their data file."""
    paths = loaded.data_paths
    types = dataset.arrow_schema(loaded.generation)
    row_indices: dict[str, list[int]] = defaultdict(list)
    for file, first_row, batch in data_rows.scan(loaded.store, paths, ["doc_id", "chunk"], types):
        numbers = pa.array(np.arange(first_row, first_row + len(batch)))
        if matches := batch.append_column("row", numbers).filter(condition)["row"].to_pylist():
            row_indices[paths[file]] += matches
    rows: list[dict[str, Any]] = []
    for path, numbers in row_indices.items():
        table = data_rows.rows_at(loaded.store, path, np.array(numbers), _COLUMNS, types)
        rows += ({**fields, "path": path} for fields in table.to_pylist())
    return sorted(rows, key=lambda fields: (*record_key(fields), fields["chunk"]))


def _traced(
    fields: Mapping[str, Any], manifest: Manifest, file: DataFile, record: SourceRecord | str
) -> TracedRow:
    problem = row_problem(record, fields)
    text = record_bytes = None
    if isinstance(record, SourceRecord):
        text = record.text
        record_bytes = record.raw["record_bytes"][0].as_py()
    return TracedRow(
        **{name: fields[name] for name in _COLUMNS},
        verdict=problem or "same",
        ok=problem is None,
        record_bytes=record_bytes,
        source_text=text and text[fields["char_start"] : fields["char_end"]][:TEXT_CHARS],
        data_file=file.path,
        data_file_sha256=file.sha256,
        part_id=manifest.part_id,
        split_id=manifest.split.split_id,
        part_index=manifest.index,
        device=manifest.engine,
    )
