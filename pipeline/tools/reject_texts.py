"""Examples of rejects with the beginnings of their texts, each read by the spec of its run.

In: a table of rejects. Out: the same with two more columns. Cost: a spec a run, and that of
`pipeline/tools/source_heads.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import CorpusEmbedError
from pipeline.job.spec import JobSpec
from pipeline.output.run_folder import read_spec
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tools.source_heads import source_heads


@dataclasses.dataclass(frozen=True)
class _Run:
    """Parts whose sources are read by the spec of one run; see `source_records.Reading`."""

    store: Store
    spec: JobSpec
    manifests: Sequence[Manifest]
    source_options: Mapping[str, Any] | None


def with_texts(
    store: Store,
    table: pa.Table,
    parts: Sequence[Manifest],
    head: Snapshot | None,
    source_options: Mapping[str, Any] | None,
) -> pa.Table:
    """The examples with the beginnings of their texts, read by the spec of the run that is live, or
    of the one that has not ended."""
    owners = {part.part_id: part for part in parts}
    rows = table.to_pylist()
    texts: list[str | None] = [None] * len(rows)
    problems: list[str | None] = [None] * len(rows)
    by_run: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        owner = owners.get(row["part_id"])
        same = owner is None or (head is not None and owner.fingerprint == head.fingerprint)
        run_id = head.run_id if head and same else owner.run_id if owner else row["run_id"]
        by_run.setdefault(run_id, []).append(number)
    for run_id, numbers in by_run.items():
        try:
            run = _Run(store, read_spec(store, run_id), parts, source_options)
            examples = [(owners.get(rows[n]["part_id"]), rows[n]) for n in numbers]
            heads = source_heads(run, examples)
        except CorpusEmbedError as error:  # the counts and details are worth showing without it
            heads = [(None, str(error))] * len(numbers)
        for number, (text, problem) in zip(numbers, heads, strict=True):
            texts[number], problems[number] = text, problem
    return extended(table, texts, problems)


def extended(
    table: pa.Table, texts: Sequence[str | None], problems: Sequence[str | None]
) -> pa.Table:
    """A table of rejects with the columns `source_text` and `problem`."""
    table = table.append_column("source_text", pa.array(texts, pa.string()))
    return table.append_column("problem", pa.array(problems, pa.string()))
