"""How the answers of commands look: JSON for machines; lines and tables for people."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pydantic_core
from rich.table import Table
from rich.text import Text

from pipeline.cli.display import rejects_of
from pipeline.cli.terminal import Terminal
from pipeline.output.table_records import TableStatus
from pipeline.storage.lineage import Snapshot
from pipeline.storage.printable import printable, printable_json
from pipeline.storage.words import agreeing, counted, human, number

if TYPE_CHECKING:
    from pipeline.tools.vacuum import VacuumPlan


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
        are = agreeing(n_waiting, "is", "are")
        out.print(f"no snapshot yet; {counted(n_waiting, 'part')} {are} finished")
        return
    state = "complete" if head.complete else "partial: its run has not ended"
    out.print(
        f"snapshot {head.number} ({state}), {len(numbers)} kept, run {head.run_id}, "
        f"fingerprint {head.fingerprint}",
        markup=False,
    )
    out.print(
        f"{counted(head.n_rows, 'row')}, {counted(head.n_documents, 'document')}, "
        f"{rejects_of(head)}",
        markup=False,
    )
    out.print(
        f"{counted(head.n_files, 'file')}, {human(head.size_bytes)}, "
        f"{counted(head.n_tokens, 'token')}; {counted(n_waiting, 'part')} outside the head"
    )


def show_tables(tables: Sequence[TableStatus]) -> None:
    """What published tables were last seen to show, one a line."""
    for table in tables:
        shown = "no snapshot yet" if table.number is None else f"snapshot {table.number}"
        line = f"{table.name}: {shown}" + (f"; BEHIND: {table.behind}" if table.behind else "")
        stdout().print(printable(line), markup=False)


def old_files(n_files: int) -> str:
    """What people who read an output by a glob have to know after some of its files were
    replaced."""
    return (
        f"{counted(n_files, 'older file')} {agreeing(n_files, 'stays', 'stay')} in data/ until "
        "`corpus-embed vacuum --delete`. A glob over data/ reads old and new files together: read "
        "the paths that `corpus-embed files` lists instead."
    )


def show_vacuum(plan: VacuumPlan) -> None:
    """What a vacuum deletes or deleted, as a table of its reasons, and what it left."""
    out = stdout()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("objects", "size", "reason", "for instance"):
        table.add_column(name, justify="right" if name in ("objects", "size") else "left")
    for group in plan.by_reason():
        size = human(group.n_bytes)
        table.add_row(number(group.n_objects), size, group.reason, Text(printable(group.example)))
    if plan.paths:
        out.print(table)
    verb = "deleted" if plan.deleted else "to delete"
    kept = ", ".join(map(str, plan.kept_snapshots))
    objects = f"{counted(len(plan.paths), 'object')}, {human(plan.n_bytes)}"
    out.print(f"{verb}: {objects}; kept snapshots: {kept}")
    if plan.n_too_young:
        more = f"{number(plan.n_too_young)} more {agreeing(plan.n_too_young, 'is', 'are')}"
        out.print(f"{more} not needed, but younger than --older-than")
    if plan.work_under_way:
        out.print("a run, a compaction or a publication is under way: what it could use was left")
    for sentence in plan.tables_behind:
        out.print(printable(f"a table is behind and keeps the snapshot that it shows: {sentence}"))
    if plan.paths and not plan.deleted:
        out.print("Nothing was deleted; --delete does it. --json lists every path.")


def show_checks(checks: Sequence[Any]) -> None:
    """The checks of `verify`, one a line."""
    out = stdout()
    for check in checks:
        colour = {"ok": "green", "FAIL": "red"}.get(check.mark, "yellow")
        out.print(Text(f"{check.mark:4}", colour), end=" ")
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
