"""From one row of an output back to the bytes it was made of, and whether they still say the same.

In: an output and a doc_id, or doc_id#chunk. Out: a `Trace` with data file, part, run, model and
source of each matching row, the source text, and a verdict: the record is read again from the
shard, pinned to the ETag that was planned, cleaned as the run cleaned it, and the SHA-256 of its
characters [char_start, char_end) compared with the row's. Cost: the doc_id column of the snapshot,
then one record (a compressed shard is decompressed up to it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.job.spec import JobSpec
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Manifest
from pipeline.storage.store import Store
from pipeline.tools.loaded_snapshot import Recorded, read_recorded
from pipeline.tools.source_records import Record, key_of, problem_of, read_sources

MAX_ROWS = 100
"""Rows traced in full; `Trace.n_rows` says how many there are."""
TEXT_CHARS = 500
"""How much of a source text a trace shows."""


@dataclasses.dataclass(frozen=True)
class TracedRow:
    """One row and where it comes from. verdict: "same", or what was found instead. source_text: its
    beginning."""

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
    """Every row that a doc_id names. Several documents may share an id: all of them are here."""

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
        """For people: the model once, then each row with its source text and the verdict."""
        yield f"{self.n_rows} rows of {self.n_documents} documents in snapshot {self.snapshot}"
        yield f"model {self.model} ({self.model_license or 'licence not stated'}), fingerprint {self.fingerprint}"
        for row in self.rows:
            yield ""
            yield f"{row.doc_id} chunk {row.chunk}: {row.n_tokens} tokens{', truncated' if row.truncated else ''}"
            yield f"  row     {row.data_file} (part {row.part_id}, run {row.run_id})"
            yield f"  source  {shown(row.source_uri)} ETag {row.source_etag}"
            size = f", {row.record_bytes} bytes" if row.record_bytes is not None else ""
            yield f"  record  {row.source_record}{size}, characters {row.char_start} to {row.char_end}"
            yield f"  text    {' '.join((row.source_text or '').split())[:200]}"
            yield f"  sha256  {row.text_sha256}: {row.verdict}"


def trace(
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    row: str,
    *,
    snapshot: int | None = None,
    spec: JobSpec | None = None,
) -> Trace:
    """Trace all rows of a doc_id, or the one row `doc_id#chunk` where no id is exactly `row`.

    Raises OutputError when there is no such row or no such snapshot.
    """
    recorded = read_recorded(Store(store_uri, storage_options), snapshot, spec=spec)
    found = _find(recorded, row)
    owners = {file.path: (part, file) for part in recorded.parts for file in part.data_files}
    records = read_sources(
        recorded, [(owners[fields["path"]][0], fields) for fields in found[:MAX_ROWS]]
    )
    rows = [
        _traced(fields, *owners[fields["path"]], records[key_of(fields)])
        for fields in found[:MAX_ROWS]
    ]
    generation = recorded.generation
    return Trace(
        row=row,
        n_rows=len(found),
        n_documents=len({key_of(fields) for fields in found}),
        ok=all(traced.ok for traced in rows),
        snapshot=recorded.snapshot.number,
        fingerprint=generation.fingerprint,
        model=generation.model_name,
        model_license=generation.model_license,
        model_files=dict(generation.identity["model"]["files"]),
        rows=tuple(rows),
    )


def _find(recorded: Recorded, row: str) -> list[dict[str, Any]]:
    """Rows by exact doc_id, else by doc_id#chunk, in the order of document and chunk."""
    found = _select(recorded, pc.field("doc_id") == row)
    doc_id, sharp, number = row.rpartition("#")
    if not found and sharp and number.isdigit() and len(number) < 10:
        found = _select(
            recorded, (pc.field("doc_id") == doc_id) & (pc.field("chunk") == int(number))
        )
    if not found:
        raise OutputError(
            f"{shown(recorded.store.uri)}: no row '{row}' in snapshot {recorded.snapshot.number}. Give a doc_id, or "
            "doc_id#chunk; where the spec names no id column, a doc_id is <uri>#<record>. It may also be a reject: see "
            f"{layout.all_rejects()}."
        )
    return found


_COLUMNS = (
    "doc_id",
    "chunk",
    "n_tokens",
    "truncated",
    "text_sha256",
    "source_uri",
    "source_etag",
    "source_record",
    "char_start",
    "char_end",
    "run_id",
)


def _select(recorded: Recorded, condition: pc.Expression) -> list[dict[str, Any]]:
    paths = [file.path for part in recorded.parts for file in part.data_files]
    found: dict[str, list[int]] = {}
    for number, first_row, batch in data_files.scan(recorded.store, paths, ["doc_id", "chunk"]):
        numbered = batch.append_column(
            "row", pa.array(np.arange(first_row, first_row + len(batch)))
        )
        if hits := numbered.filter(condition)["row"].to_pylist():
            found.setdefault(paths[number], []).extend(hits)
    rows: list[dict[str, Any]] = []
    for path, wanted in found.items():
        table = data_files.rows_at(recorded.store, path, np.array(wanted), _COLUMNS)
        rows += ({**fields, "path": path} for fields in table.to_pylist())
    return sorted(rows, key=lambda fields: (*key_of(fields), fields["chunk"]))


def _traced(
    fields: Mapping[str, Any], part: Manifest, file: DataFile, record: Record | str
) -> TracedRow:
    problem, text = problem_of(record, fields), record.text if isinstance(record, Record) else None
    return TracedRow(
        **{name: fields[name] for name in _COLUMNS},
        verdict=problem or "same",
        ok=problem is None,
        record_bytes=record.record_bytes if isinstance(record, Record) else None,
        source_text=text and text[fields["char_start"] : fields["char_end"]][:TEXT_CHARS],
        data_file=file.path,
        data_file_sha256=file.sha256,
        part_id=part.part_id,
        split_id=part.split.split_id,
        part_index=part.index,
        device=part.engine,
    )
