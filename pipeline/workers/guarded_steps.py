"""The steps of a part, done so that a poison record costs itself and nothing else (see isolate.py).

In: a split or a part, and a way to attempt the work: in this process, or in a Child once workers
have died over it. Out: what reading and `steps` would give, with rejects for the records that fail
alone: `crashed_worker` where the tokenizer or the model failed, `out_of_memory` where a text does
not fit even alone, `damaged_shard` where the reader's process died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.embed.buckets import Ids, Offsets, Vectors
from pipeline.embed.stats import EngineStats
from pipeline.errors import WorkerError
from pipeline.job.resolve import Job
from pipeline.output.known_vectors import Index
from pipeline.read import parts
from pipeline.read.parts import Part
from pipeline.read.records import damaged_table
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Shard, Split
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers import steps
from pipeline.workers.isolate import Child, Crashed, in_process, isolate, smaller_ranges
from pipeline.workers.steps import Embeds, PreparedPart

HARMLESS = {"text": "harmless", "reason": None, "detail": None}
"""Values of a record that every tokenizer can prepare."""


def load_preparer(
    job: Job, run_id: str, store: Store, index_segments: Sequence[str]
) -> Callable[[Part], PreparedPart]:
    """`steps.prepare_part` with its tokenizer, for this process or a Child. index_segments: the
    segments of the index in which known vectors are looked up."""
    index = Index(store, job.fingerprint, index_segments) if index_segments else None
    tokenizer = load_tokenizer(job.model_of_worker(), max_tokens=job.max_tokens, prompt=job.prompt)
    return functools.partial(
        steps.prepare_part, job=job, tokenizer=tokenizer, run_id=run_id, index=index
    )


def prepare_part(part: Part, attempt: Callable[[Part], PreparedPart]) -> PreparedPart:
    """`attempt(part)` with a reject for each record that cannot be prepared.

    attempt: a preparer in this process (`in_process`), or `ask` of a Child. Raises WorkerError
    where all records fail, or only all of them together.
    """
    with contextlib.suppress(Crashed):
        return attempt(part)

    def prepare_range(start: int, stop: int) -> None:
        attempt(dataclasses.replace(part, records=part.records.slice(start, stop - start)))

    def prepare_harmless() -> None:
        record = _with_values(part.records.slice(0, 1), {0: HARMLESS})
        attempt(dataclasses.replace(part, records=record))

    ranges = smaller_ranges(0, part.records.num_rows)
    crashes = isolate(ranges, prepare_range, prepare_harmless)
    rejects = {
        record: {"text": None, "reason": crash.reason, "detail": crash.detail}
        for record, crash in crashes.items()
    }
    try:
        return attempt(dataclasses.replace(part, records=_with_values(part.records, rejects)))
    except Crashed as crash:
        raise WorkerError(
            f"part {part.index} of {shown(part.split.spans[0].shard.uri)}: its records can be "
            f"prepared alone but not together: {crash.detail}. Set runtime.part_bytes lower."
        ) from crash


def _with_values(records: pa.Table, rows: Mapping[int, Mapping[str, str | None]]) -> pa.Table:
    """Records with other texts, reasons and details in some rows."""
    for name in HARMLESS:
        values = records[name].to_pylist()
        for row, fields in rows.items():
            values[row] = fields[name]
        column = pa.array(values, pa.string())
        records = records.set_column(records.column_names.index(name), name, column)
    return records


def embed_texts(
    engine: Embeds, ids: Ids, offsets: Offsets, stats: EngineStats, *, is_careful: bool = False
) -> tuple[Vectors, dict[int, Crashed]]:
    """Vectors (N, D) of N texts, NaN for those that fail alone, and these by number.

    is_careful: whether they killed workers as a whole, and so are not attempted as a whole once
    more. Raises WorkerError where every text fails.
    """
    attempt = in_process(engine.embed)
    if not is_careful:
        with contextlib.suppress(Crashed):
            return attempt(ids, offsets, stats), {}
    n_texts = len(offsets) - 1
    vectors = np.full((n_texts, engine.dim), np.nan, np.float32)

    def embed_range(start: int, stop: int) -> None:
        ends = offsets[start : stop + 1]
        vectors[start:stop] = attempt(ids[ends[0] : ends[-1]], ends - ends[0], stats)

    def embed_harmless() -> None:
        attempt(np.zeros(1, np.int32), np.array([0, 1]), EngineStats())

    return vectors, isolate(smaller_ranges(0, n_texts), embed_range, embed_harmless)


def read_in_child(split: Split, job: Job) -> Iterator[tuple[Shard, pa.Table]]:
    """As `parts.read`, in a child process. A span whose reader dies twice at one place ends there,
    with `damaged_shard`."""
    with Child(_load_reader, split, job) as child:
        for number, span in enumerate(split.spans):
            n_tables = 0
            n_deaths = 0
            position = span.start
            while True:
                try:
                    table = child.ask((number, n_tables))
                except Crashed as crash:
                    n_deaths += 1
                    if not crash.died:
                        raise
                    if n_deaths == 1:
                        continue
                    detail = f"reading on from here: {crash.detail}"
                    # how much of the shard lies before the place is unknown: all of it counts
                    lost_bytes = span.shard.size_bytes
                    table = damaged_table(position, detail, job.spec.input, lost_bytes)
                if table is None:
                    break
                yield span.shard, table
                if n_deaths > 1:
                    break
                n_tables += 1
                n_deaths = 0
                position = table["source_record"][-1].as_py() + 1


def _load_reader(split: Split, job: Job) -> Callable[[tuple[int, int]], pa.Table | None]:
    """For a Child: (number of a span, tables of it that were read before) ─► its next table, or
    None at its end."""
    position: tuple[int, int] | None = None
    tables: Iterator[pa.Table] = iter(())

    def next_table(asked: tuple[int, int]) -> pa.Table | None:
        nonlocal position, tables
        number, n_tables = asked
        if position != asked:
            tables = itertools.islice(parts.read_tables(split.spans[number], job), n_tables, None)
        position = (number, n_tables + 1)
        return next(tables, None)

    return next_table
