"""`report`: what an output holds, how it was made and what its vectors look like, on one page.

In: an output. Out: the text of a self-contained HTML page, or Markdown, and its figures. It
looks and changes nothing. Cost: the records under the output's metadata, a sample of its rows, and
records of sources where texts are not in the output. The same output, options and time give the
same bytes.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SpecError
from pipeline.storage.filesystems import reason
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.report.findings import Findings, Options, gather
from pipeline.tools.report.render import html_page, markdown
from pipeline.tools.report.sample import MAX_ROWS

Format = Literal["html", "md"]
SAMPLE_ROWS = 2000
NEAR = 0.95


@dataclasses.dataclass(frozen=True)
class Report:
    """text: the page. figures: its main figures, for programs."""

    text: str
    figures: dict[str, Any]

    def write(self, path: str) -> int:
        """Write the page to a file, or to standard output for "-"; returns its size in bytes.
        Raises SpecError where the file cannot be written."""
        data = self.text.encode()
        if path == "-":
            sys.stdout.buffer.write(data)
            return len(data)
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise SpecError(f"-o {path}: cannot be written: {reason(error)}") from error
        return len(data)


def format_of(path: str | None) -> Format:
    """What the suffix of a file's name says; HTML where it says nothing."""
    return "md" if (path or "").lower().endswith((".md", ".markdown")) else "html"


def writable(path: str) -> None:
    """Raises SpecError where no file can be made, before any work is done."""
    folder = Path(path).parent
    if path != "-" and (not folder.is_dir() or Path(path).is_dir()):
        problem = "is a folder" if Path(path).is_dir() else f"the folder {folder} does not exist"
        raise SpecError(f"-o {path}: {problem}. Name a file in a folder that exists.")


def report(
    uri: str,
    *,
    format: Format = "html",
    snapshot: int | None = None,
    sample: int = SAMPLE_ROWS,
    seed: int = 0,
    near: float = NEAR,
    read_sources: bool = True,
    source_options: Mapping[str, Any] | None = None,
    made: datetime.datetime | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """A report of a snapshot, the newest by default.

    sample: rows whose vectors are compared, at most MAX_ROWS. near: the cosine from which two rows
    are near duplicates. read_sources: whether texts that the output lacks are read from the
    sources; source_options: storage options to read them with, as in `trace`. made: the time that
    the report states, UTC; now by default. Raises OutputError without a snapshot or for damage,
    SpecError for options out of range, and for HTML where Bokeh is not installed.
    """
    if not 0 <= sample <= MAX_ROWS or not 0 < near <= 1 or seed < 0:
        raise SpecError(
            f"report takes a sample of 0 to {MAX_ROWS:,} rows, a seed of 0 or more, and a cosine "
            f"above 0 and up to 1 for near duplicates; got {sample}, {seed} and {near:g}"
        )
    loaded = load_snapshot_with_lineage(
        uri, storage_options, snapshot, source_options=source_options
    )
    findings = gather(loaded, Options(sample, seed, near, read_sources))
    render = markdown if format == "md" else html_page
    made = made or datetime.datetime.now(datetime.UTC)
    return Report(render(findings, made), figures_of(findings))


def figures_of(f: Findings) -> dict[str, Any]:
    """The main figures of a report as plain data."""
    head = f.loaded.snapshot
    near = f.near
    return {
        "snapshot": head.number,
        "rows": head.n_rows,
        "documents": head.n_documents,
        "tokens": head.n_tokens,
        "rejects": f.rejects.counts,
        "shards": {state.name: state.count for state in f.shards.states},
        "damaged_shards": len(f.shards.damaged),
        "padding_share": f.padding_share,
        "seconds": {stage.name: stage.seconds for stage in f.stages},
        "sample_rows": len(f.sample.rows),
        "norms": dict(f.norms.quantiles) if f.norms else None,
        "kept_variance": sum(f.flat.kept_variance) if f.flat else None,
        "near_duplicates": {
            "cosine": near.threshold,
            "pairs": near.n_near,
            "of_pairs": near.n_pairs,
            "rows": near.n_rows_near,
            "per_row": near.per_row,
            "per_row_margin": [near.per_row_low, near.per_row_high],
        },
        "model_license": f.loaded.generation.model_license,
        "notes": list(f.notes),
    }
