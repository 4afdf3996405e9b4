"""The work of both actor stages, done so that a poison record costs itself and nothing else (see
quarantine.py).

In: a split or a part, and a way to try the work: in this process, or in a Child once workers died
over it. Out: what `parts` would give, with rejects for the records that fail alone:
`crashed_worker` where the tokenizer or the model failed, `out_of_memory` where a text does not fit
even alone, `damaged_shard` where the reader's process died.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import WorkerError
from pipeline.job.resolve import Job
from pipeline.output.known_vectors import Index
from pipeline.read import parts
from pipeline.read.records import damaged_table
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Split
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers import steps
from pipeline.workers.isolate import Child, Crashed, here, isolate, smaller_runs
from pipeline.write.vectors import not_finite

if TYPE_CHECKING:
    from pipeline.embed import Engine

MAX_ALONE = 256
"""Texts of one part that are embedded again alone because their vector was not finite."""

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class CarefulEngine:
    """Embeds what can be embedded: a text that fails gets NaN and an entry in `failed`, by its
    token ids as bytes.

    child: does the work instead of `engine`, in another process; its figures are added to those of
    `engine`.
    """

    def __init__(self, engine: Engine, child: Child | None = None) -> None:
        self._dim, self._is_suspect = engine.dim, child is not None
        self._attempt = (
            here(engine.embed) if child is None else functools.partial(_ask, child, engine.stats)
        )
        self.failed: dict[bytes, Crashed] = {}

    def embed(self, ids: Ids, offsets: Offsets) -> Vectors:
        """As `Engine.embed`. A vector that is not finite is computed once more, from its text
        alone.

        Alone, since a NaN can spread to the texts of its bucket; not in another dtype, which the
        fingerprint fixes.
        """
        n_texts = len(offsets) - 1
        # made at the first result: nearly always that of all texts, and then not copied
        vectors: Vectors | None = None

        def blank() -> Vectors:
            return np.full((n_texts, self._dim), np.nan, np.float32)

        def attempt(start: int, stop: int) -> None:
            nonlocal vectors
            piece = offsets[start : stop + 1]
            found = self._attempt(ids[piece[0] : piece[-1]], piece - piece[0])
            if stop - start == n_texts:
                vectors = found
            else:
                vectors = blank() if vectors is None else vectors
                vectors[start:stop] = found

        def harmless() -> None:
            self._attempt(np.zeros(1, np.int32), np.array([0, 1]))

        # what killed workers as a whole is not tried as a whole once more
        runs = smaller_runs(0, n_texts) if self._is_suspect else [(0, n_texts)]
        failed = isolate(runs, attempt, harmless)
        vectors = blank() if vectors is None else vectors
        broken = [n for n in not_finite(vectors).tolist() if n not in failed]
        failed |= isolate([(n, n + 1) for n in broken[:MAX_ALONE]], attempt, harmless)
        self.failed |= {
            ids[offsets[n] : offsets[n + 1]].tobytes(): crash for n, crash in failed.items()
        }
        return vectors

    def failed_documents(self, tokens: pa.Table, rows: pa.Table) -> dict[str, tuple[str, str]]:
        """(reason, detail) of each document of a prepared part with a failed text; JSON wants its
        number as a string."""
        if not self.failed:
            return {}
        texts = [text.values.to_numpy().tobytes() for text in tokens["ids"].combine_chunks()]
        crashes = {n: self.failed[text] for n, text in enumerate(texts) if text in self.failed}
        return {
            str(row["document"]): (crashes[n].reason, crashes[n].detail)
            for row in rows.select(["document", "texts"]).to_pylist()
            for n in row["texts"] or ()
            if n in crashes
        }


def _ask(child: Child, stats: Any, ids: Ids, offsets: Offsets) -> Vectors:
    vectors, figures = child.ask((ids, offsets))
    for name, figure in figures.items():
        setattr(stats, name, getattr(stats, name) + figure)
    return vectors


def load_embedder(job: Job, prompt_tokens: int, threads: int | None) -> Callable[[Any], Any]:
    """For a Child: (ids, offsets) ─► (vectors, figures of the engine for this call)."""
    # torch: seconds that other users of this file do without
    from pipeline.embed.loading import load_engine

    engine = load_engine(job.model(), job.engine, prompt_tokens, threads)

    def embed(texts: tuple[Ids, Offsets]) -> tuple[Vectors, dict[str, Any]]:
        engine.stats = type(engine.stats)()
        return engine.embed(*texts), dataclasses.asdict(engine.stats)

    return embed


def load_preparer(
    job: Job, run_id: str, store: Store, index_runs: Sequence[str]
) -> Callable[[parts.Part], steps.Prepared]:
    """For this process or a Child: a part as it was read ─► a prepared part. index_runs: where known vectors are found."""
    index = Index(store, job.fingerprint, index_runs) if index_runs else None
    tokenizer = load_tokenizer(job.model(), max_tokens=job.max_tokens, prompt=job.prompt)
    return lambda part: steps.prepare(part, job, tokenizer, run_id, index)


def prepare(part: parts.Part, attempt: Callable[[parts.Part], steps.Prepared]) -> steps.Prepared:
    """`attempt(part)` with a reject for each record that it cannot prepare. attempt: `here(…)`, or
    `ask` of a Child."""
    n_records, whole = sum(table.num_rows for _, table in part.pieces), None

    def trial(start: int, stop: int) -> None:
        nonlocal whole
        prepared = attempt(_records(part, start, stop))
        if (start, stop) == (0, n_records):
            whole = prepared

    def harmless() -> None:
        number, table = _records(part, 0, 1).pieces[0]
        plain = {0: {"text": "harmless", "reason": None, "detail": None}}
        attempt(dataclasses.replace(part, pieces=((number, _changed(table, plain)),)))

    failed = isolate([(0, n_records)], trial, harmless)
    if whole is not None:
        return whole
    rejects = {
        n: {"text": None, "reason": crash.reason, "detail": crash.detail}
        for n, crash in failed.items()
    }
    pieces, first = [], 0
    for number, table in part.pieces:
        own = {
            n - first: fields
            for n, fields in rejects.items()
            if first <= n < first + table.num_rows
        }
        pieces.append((number, _changed(table, own)))
        first += table.num_rows
    try:
        return attempt(dataclasses.replace(part, pieces=tuple(pieces)))
    except Crashed as crash:
        raise WorkerError(
            f"part {part.index} of {shown(part.split.spans[0].shard.uri)}: its records can be prepared alone but not "
            f"together: {crash.detail}. Set runtime.part_bytes lower."
        ) from crash


def _records(part: parts.Part, start: int, stop: int) -> parts.Part:
    """A part of its records [start, stop) alone."""
    ends = list(itertools.accumulate((table.num_rows for _, table in part.pieces), initial=0))
    pieces = [
        (number, table.slice(max(start - first, 0), min(stop, last) - max(start, first)))
        for (number, table), (first, last) in zip(
            part.pieces, itertools.pairwise(ends), strict=True
        )
        if first < stop and last > start
    ]
    return dataclasses.replace(part, pieces=tuple(pieces))


def _changed(table: pa.Table, rows: Mapping[int, Mapping[str, str | None]]) -> pa.Table:
    """A records table with other values in some rows."""
    for name in ("text", "reason", "detail") if rows else ():
        values = table[name].to_pylist()
        for row, fields in rows.items():
            values[row] = fields[name]
        table = table.set_column(
            table.column_names.index(name), name, pa.array(values, pa.string())
        )
    return table


def read(split: Split, job: Job) -> Iterator[tuple[int, pa.Table]]:
    """As `parts.read`, in a Child. A span whose reader kills it twice at one place ends there, with
    `damaged_shard`."""
    with Child(_load_reader, split, job) as child:
        for number, span in enumerate(split.spans):
            n_tables, n_deaths, position = 0, 0, span.start
            while True:
                try:
                    table = child.ask((number, n_tables))
                except Crashed as crash:
                    n_deaths += 1
                    if not crash.died:
                        raise
                    if n_deaths == 1:
                        continue
                    table = damaged_table(
                        position, f"reading on from here: {crash.detail}", job.spec.input
                    )
                if table is None:
                    break
                yield number, table
                if n_deaths > 1:
                    break
                n_tables, n_deaths, position = (
                    n_tables + 1,
                    0,
                    table["source_record"][-1].as_py() + 1,
                )


def _load_reader(split: Split, job: Job) -> Callable[[tuple[int, int]], pa.Table | None]:
    """For a Child: (number of a span, tables of it that are there already) ─► its next table, or None at its end."""
    reached: tuple[int, int] | None = None
    tables: Iterator[pa.Table] = iter(())

    def next_table(wanted: tuple[int, int]) -> pa.Table | None:
        nonlocal reached, tables
        number, n_tables = wanted
        if reached != wanted:
            tables = itertools.islice(parts.read_tables(split.spans[number], job), n_tables, None)
        reached = (number, n_tables + 1)
        return next(tables, None)

    return next_table
