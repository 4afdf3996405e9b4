"""The stages of a Ray Dataset, each a thin class round one function of steps.py.

    splits ─► PrepareParts (CPU actors) ─► EmbedParts (GPU actors) ─► PartSink (write tasks)

A row of the Dataset is a part (cells.py).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink

from pipeline.errors import ShardChanged
from pipeline.job.resolve import Job
from pipeline.read.parts import Part, Todo
from pipeline.storage.lineage import Shard
from pipeline.storage.store import Store
from pipeline.workers import guarded_steps, metrics
from pipeline.workers.cells import pack, unpack
from pipeline.workers.clock import Clock
from pipeline.workers.isolate import Child, in_process
from pipeline.workers.reports import Advance, loading, may_begin, report_retries, working
from pipeline.workers.shared_engine import SharedEngine, load_embedder
from pipeline.workers.steps import PreparedPart, embed_part, unfinished_parts
from pipeline.write.create import create_generation
from pipeline.write.part import EmbeddedPart, generation_of, write_part


class PrepareParts:
    """Reads a split, cuts it into parts, cleans, chunks and tokenizes each. One call for each
    split, which yields one row for each part."""

    def __init__(
        self,
        job: Job,
        run_id: str,
        totals: Any,
        store: Store,
        index_segments: list[str],
        has_budget: bool = False,
    ) -> None:
        self.job = job
        self.totals = totals
        self.has_budget = has_budget
        self.loading = (job, run_id, store, index_segments)
        with loading(totals):
            self.prepare = in_process(guarded_steps.load_preparer(*self.loading))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if not may_begin(self.totals, self.has_budget):
            return
        todo = Todo.from_json(batch["todo"][0].as_py())
        with (
            working(self.totals, f"split {todo.split.split_id}") as is_careful,
            Child(guarded_steps.load_preparer, *self.loading) as child,  # starts at the first `ask`
        ):
            if is_careful:
                yield from self._parts(
                    todo, child.ask, guarded_steps.read_in_child(todo.split, self.job)
                )
            else:
                yield from self._parts(todo, self.prepare)

    def _parts(
        self,
        todo: Todo,
        attempt: Callable[[Part], PreparedPart],
        tables: Iterator[tuple[Shard, pa.Table]] | None = None,
    ) -> Iterator[pa.Table]:
        blocked_s = 0.0
        clock = time.perf_counter()
        try:
            for part in unfinished_parts(todo, self.job, tables):
                read_s = time.perf_counter() - clock
                clock = time.perf_counter()
                prepared = guarded_steps.prepare_part(part, attempt)
                facts = prepared.facts.timed(
                    read=read_s, tokenize=time.perf_counter() - clock, tokenizers_blocked=blocked_s
                )
                clock = time.perf_counter()
                self.totals.queue.remote(f"part {facts.part_id}")
                yield pack(dataclasses.replace(prepared, facts=facts))
                # the embedders had no room for more
                blocked_s = time.perf_counter() - clock
                clock = time.perf_counter()
                if not may_begin(self.totals, self.has_budget):
                    return
        except ShardChanged as error:
            # The split stays unfinished: the driver sees that, lists again and plans afresh.
            self.totals.note.remote(str(error))


class EmbedParts:
    """Vectors for the distinct texts of a part, spread over its rows. One call for each part, which
    returns no row for a part that may not begin any more; calls can overlap."""

    def __init__(
        self,
        job: Job,
        store: Store,
        prompt_tokens: int,
        threads: int | None,
        totals: Any,
        has_budget: bool = False,
    ) -> None:
        self.job = job
        self.totals = totals
        self.has_budget = has_budget
        with loading(totals):
            self.engine = SharedEngine(load_embedder, job, prompt_tokens, threads)
            create_generation(store, generation_of(job, self.engine.dim))
        self.clock = Clock()

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not may_begin(self.totals, self.has_budget):
            return batch.slice(0, 0)
        prepared = unpack(PreparedPart, batch)
        part_id = prepared.facts.part_id
        advance = Advance(self.totals, part_id, metrics.whole_part(prepared))
        with self.clock.part() as seconds, working(self.totals, f"part {part_id}") as is_careful:
            embed_texts = functools.partial(guarded_steps.embed_texts, is_careful=is_careful)
            embedded = self.engine.run(
                lambda engine: embed_part(prepared, engine, self.job, embed_texts, advance),
                is_careful=is_careful,
            )
        return pack(dataclasses.replace(embedded, facts=embedded.facts.timed(**seconds)))


class PartSink(Datasink[list[str]]):
    """Writes parts. Returns their ids; what counts as done is decided from storage, not from
    this."""

    def __init__(self, job: Job, store: Store, totals: Any) -> None:
        self.job = job
        self.store = store
        self.totals = totals

    def write(self, blocks: Iterable[Block], ctx: Any) -> list[str]:
        report_retries(self.totals)
        tables = (BlockAccessor.for_block(block).to_arrow() for block in blocks)
        return [
            self._write(table.slice(row, 1)) for table in tables for row in range(table.num_rows)
        ]

    def _write(self, batch: pa.Table) -> str:
        clock = time.perf_counter()
        part = unpack(EmbeddedPart, batch)
        with working(self.totals, f"write of part {part.facts.part_id}"):
            manifest = write_part(part, self.job, self.store)
        write_s = time.perf_counter() - clock
        self.totals.finish.remote(metrics.finished_part(manifest, write_s))
        return manifest.part_id
