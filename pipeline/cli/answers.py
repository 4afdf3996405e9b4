"""How the answers of commands look: JSON for machines; lines and tables for people."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import pydantic_core
from rich.table import Table
from rich.text import Text

from pipeline.cli.display import human
from pipeline.cli.terminal import Terminal
from pipeline.storage.lineage import Snapshot
from pipeline.storage.printable import printable, printable_json


def print_json(value: Any) -> None:
    """One JSON object on standard output, in ASCII where that is not UTF-8."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    to_plain = pydantic_core.to_jsonable_python
    text = printable_json(value, ascii_only=not is_unicode, indent=1, default=to_plain)
    sys.stdout.write(text + "\n")


def show_fields(result: Any, as_json: bool) -> None:
    """The fields of a dataclass, one a line, or as JSON."""
    fields = dataclasses.asdict(result)
    if as_json:
        print_json(fields)
        return
    out = stdout()
    for name, value in fields.items():
        out.print(f"{name}: ", end="", style="bold")
        text = value if isinstance(value, str) else printable_json(value, default=str)
        out.print(text, markup=False)


def show_status(head: Snapshot | None, numbers: Sequence[int], n_waiting: int) -> None:
    """The newest snapshot in three lines. n_waiting: finished parts that it does not hold."""
    out = stdout()
    if head is None:
        out.print(f"no snapshot yet; {n_waiting} parts are finished")
        return
    state = "complete" if head.complete else "partial: its run has not ended"
    out.print(
        f"snapshot {head.number} ({state}), {len(numbers)} kept, run {head.run_id}, "
        f"fingerprint {head.fingerprint}",
        markup=False,
    )
    out.print(
        f"{head.n_rows} rows, {head.n_documents} documents, {head.n_rejects} rejects "
        f"{head.reject_reasons or ''}",
        markup=False,
    )
    out.print(
        f"{head.n_files} files, {human(head.size_bytes)}, {head.n_tokens} tokens; "
        f"{n_waiting} parts outside the head"
    )


def show_checks(checks: Sequence[Any]) -> None:
    """The checks of `verify`, one a line."""
    out = stdout()
    for check in checks:
        out.print(Text("ok  ", "green") if check.ok else Text("FAIL", "red"), end=" ")
        out.print(f"{check.name}: {printable(check.detail)}")


def show_hits(hits: Sequence[Any]) -> None:
    """The hits of `search` as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("score", "doc_id", "chunk", "text"):
        table.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for hit in hits:
        text = printable(" ".join((hit.text or "").split())[:100])
        table.add_row(f"{hit.score:.4f}", Text(printable(hit.doc_id)), str(hit.chunk), Text(text))
    stdout().print(table)


def stdout() -> Terminal:
    """The console for answers."""
    return Terminal()
