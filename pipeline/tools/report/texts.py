"""The heads of texts that are not in the output, read again from the sources.

In: rows with their manifests. Out: the head of each text, or the reasons why some could
not be read, counted. Sources are asked by the rules of `trace` (`pipeline/tools/source_places.py`):
a server that only the output names gets no request. The text of a row is shown only where it has
the row's hash, so an output cannot make a report show what its writer could not read. Cost: as
`read_source_records`, of at most MAX_SHARDS shards.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.storage.lineage import Manifest
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.tools.report.sample import HEAD_CHARS
from pipeline.tools.source_records import (
    SOURCE_NOT_ASKED,
    RecordKey,
    SourceRecord,
    read_source_records,
    record_key,
    row_problem,
)

MAX_SHARDS = 64
"""The most shards that are opened for one report."""
NOT_WANTED = "sources were not to be read"
TOO_MANY_SHARDS = f"only the first {MAX_SHARDS} shards were read"

SourceRow = tuple[Manifest, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Heads:
    """texts: the head of each text, None where it could not be read. problems: how many could not,
    by reason."""

    texts: Sequence[str | None]
    problems: Mapping[str, int]


def heads_of_rows(loaded: LoadedSnapshot, rows: Sequence[SourceRow], *, ask: bool) -> Heads:
    """The heads of the texts of rows. ask: whether sources may be read at all."""
    records = _records(loaded, rows, ask)
    texts: list[str | None] = []
    problems: Counter[str] = Counter()
    for _, row in rows:
        record = records.get(record_key(row), _not_asked(ask))
        problem = row_problem(record, row)
        if problem is None and isinstance(record, SourceRecord) and record.text is not None:
            end = min(row["char_end"], row["char_start"] + HEAD_CHARS)
            texts.append(record.text[row["char_start"] : end])
        else:
            texts.append(None)
            problems[_kind(problem or "")] += 1
    return Heads(texts, dict(problems))


def _records(
    loaded: LoadedSnapshot, rows: Sequence[SourceRow], ask: bool
) -> Mapping[RecordKey, SourceRecord | str]:
    """The records of those rows whose shards may be opened."""
    shards = list(dict.fromkeys(record_key(row)[:2] for _, row in rows))
    allowed = {*shards[:MAX_SHARDS]} if ask else set()
    chosen = [(part, row) for part, row in rows if record_key(row)[:2] in allowed]
    return read_source_records(loaded, chosen)


def _not_asked(ask: bool) -> str:
    return TOO_MANY_SHARDS if ask else NOT_WANTED


def _kind(problem: str) -> str:
    """A reason without what differs from shard to shard, except for the server to be named."""
    return problem if problem.startswith(SOURCE_NOT_ASKED) else problem.partition(": ")[0]
