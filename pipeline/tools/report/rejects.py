"""The rejected records of a snapshot by reason, with a few examples of each.

In: a snapshot and its manifests. Out: exact counts, and examples in the order of parts with the
head of the source text where there is one and it can be read. Cost: the files of rejects of at most
MAX_FILES parts, chosen so that every reason has its examples early.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.storage import data_files
from pipeline.storage.lineage import Manifest
from pipeline.storage.schema import REASONS, REJECT_COLUMNS
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.tools.report.sample import HEAD_CHARS
from pipeline.tools.report.texts import Heads, heads_of_rejects

EXAMPLES = 3
"""How many examples of a reason are shown."""
MAX_FILES = 24


@dataclasses.dataclass(frozen=True)
class Example:
    """One rejected record. text: the head of its text, None where it has none or could not be
    read."""

    doc_id: str | None
    detail: str | None
    source_uri: str
    source_record: int
    text: str | None


@dataclasses.dataclass(frozen=True)
class Reason:
    """All records that were rejected for one reason."""

    name: str
    meaning: str
    count: int
    examples: tuple[Example, ...]


def reject_reasons(loaded: LoadedSnapshot, *, ask: bool) -> tuple[list[Reason], Heads]:
    """(reasons, the most frequent first, what was read of the sources). ask: whether sources may be
    read for the heads of texts."""
    counts = loaded.snapshot.reject_reasons
    rows = list(_examples(loaded))
    heads = heads_of_rejects(loaded, rows, ask=ask)
    examples: dict[str, list[Example]] = {}
    for (_, row), text in zip(rows, heads.texts, strict=True):
        example = Example(
            doc_id=_cut(row["doc_id"]),
            detail=_cut(row["detail"]),
            source_uri=row["source_uri"],
            source_record=row["source_record"],
            text=text,
        )
        examples.setdefault(row["reason"], []).append(example)
    return [
        Reason(name, REASONS.get(name, ""), count, tuple(examples.get(name, ())))
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count
    ], heads


def _examples(loaded: LoadedSnapshot) -> Iterator[tuple[Manifest, Mapping[str, Any]]]:
    """At most EXAMPLES rows of each reason, from as few files as give them."""
    missing = {name: min(EXAMPLES, count) for name, count in loaded.snapshot.reject_reasons.items()}
    n_files = 0
    for part in loaded.manifests:
        due = {name for name in part.reject_reasons if missing.get(name)}
        if not due or part.rejects_path is None or n_files >= MAX_FILES:
            continue
        n_files += 1
        taken: Counter[str] = Counter()
        for row in _read(loaded, part.rejects_path):
            name = row["reason"]
            if missing.get(name, 0) > taken[name]:
                taken[name] += 1
                yield part, row
        for name, count in taken.items():
            missing[name] -= count


def _read(loaded: LoadedSnapshot, path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of rejects. Raises OutputError when it is gone or damaged."""
    columns = ["doc_id", "reason", "detail", "source_uri", "source_etag", "source_record"]
    try:
        table = data_files.read_table(loaded.store.read(path), columns)
        schema = pa.schema([(name, REJECT_COLUMNS[name]) for name in columns])
        if table.schema.remove_metadata() != schema:
            raise pa.ArrowInvalid("it has other columns than a file of rejects")
    except (OSError, pa.ArrowException) as error:
        problem = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise OutputError(
            f"{loaded.store.shown_uri}/{path}: this file of rejects {problem}. Run "
            "`corpus-embed verify`, which lists all damage."
        ) from error
    for batch in table.to_batches(1024):
        yield from batch.to_pylist()


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:HEAD_CHARS]
