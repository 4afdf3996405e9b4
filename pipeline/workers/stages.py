"""Thin Ray wiring: each class puts plain functions of parts.py and publish.py into one stage of a
Ray Dataset.

    splits ─► PrepareParts (CPU actors) ─► EmbedParts (GPU actors) ─► PartSink (write tasks)

A row of the Dataset is a part: `header` (JSON), and Arrow IPC streams and the bytes of vectors in
large_binary cells, which Ray never splits or merges inside and which are read back without a copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink

from pipeline import tokenize
from pipeline.errors import ShardChanged, WorkerError
from pipeline.job.resolve import Job
from pipeline.read.parts import Part, Todo, cut
from pipeline.storage.retry import tell_retries
from pipeline.storage.store import Store
from pipeline.workers import guarded_steps, metrics
from pipeline.workers.isolate import Child, here
from pipeline.workers.steps import Prepared, embed
from pipeline.write.create import create_generation
from pipeline.write.part import generation_of, write_part

CAREFUL_AFTER = 2
"""Deaths of workers over one piece of work after which the next worker does it in a child process.
"""
MAX_STARTS = 5
"""How often one actor may die while it loads; then that is the fault, and starting it again does
not mend it."""


@contextlib.contextmanager
def begun(totals: Any, work: str) -> Iterator[bool]:
    """Tell `totals` what this worker does while it does it. True when so many died over it that
    care is due."""
    yield ray.get(totals.begin.remote(work, _where())) >= CAREFUL_AFTER
    totals.end.remote(work)


def _where() -> str:
    return f"process {os.getpid()} of node {ray.util.get_node_ip_address()}"


@contextlib.contextmanager
def starting(totals: Any) -> Iterator[None]:
    """Round the loading of an actor. Raises WorkerError when this one keeps dying there."""
    report_retries(totals)
    loading = f"worker {ray.get_runtime_context().get_actor_id()}, loading,"
    n_deaths = ray.get(totals.begin.remote(loading, _where()))
    if ray.get_runtime_context().was_current_actor_reconstructed:
        totals.add.remote({"worker_restarts": 1})
    if n_deaths >= MAX_STARTS:
        raise WorkerError(
            f"a worker died {n_deaths} times while it loaded the model. Check the memory, the driver and the libraries "
            f"of node {ray.get_runtime_context().get_node_id()}; Ray's logs there say how it died."
        )
    yield
    totals.end.remote(loading)


def report_retries(totals: Any) -> None:
    """Have requests of this process that are tried again counted, and named where people look."""

    def tell(note: str | None) -> None:
        totals.add.remote({"storage_retries": 1})
        if note:
            totals.note.remote(note)

    tell_retries(tell)


class PrepareParts:
    """Reads a split, cuts it into parts, cleans, chunks and tokenizes each. One call a split, one
    row out a part."""

    def __init__(
        self, job: Job, run_id: str, totals: Any, store: Store, index_runs: list[str]
    ) -> None:
        self.job, self.totals = job, totals
        self.loading = (job, run_id, store, index_runs)
        with starting(totals):
            self.prepare = here(guarded_steps.load_preparer(*self.loading))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        todo = Todo.from_json(batch["todo"][0].as_py())
        with (
            begun(self.totals, f"split {todo.split.split_id}") as is_careful,
            Child(guarded_steps.load_preparer, *self.loading) as child,  # starts at the first `ask`
        ):
            if is_careful:
                yield from self._parts(todo, guarded_steps.read(todo.split, self.job), child.ask)
            else:
                yield from self._parts(todo, None, self.prepare)

    def _parts(
        self,
        todo: Todo,
        tables: Iterator[tuple[int, pa.Table]] | None,
        prepare: Callable[[Part], Prepared],
    ) -> Iterator[pa.Table]:
        clock, blocked_s = time.perf_counter(), 0.0
        try:
            for part in cut(todo.split, self.job, tables):
                read_s, clock = time.perf_counter() - clock, time.perf_counter()
                if part.index not in todo.finished:
                    prepared = guarded_steps.prepare(part, prepare)
                    seconds = {
                        "read": read_s,
                        "tokenize": time.perf_counter() - clock,
                        "tokenizers_blocked": blocked_s,
                    }
                    clock = time.perf_counter()
                    yield row(
                        {**prepared.header, "seconds": seconds},
                        rows=prepared.rows,
                        tokens=prepared.tokens,
                        rejects=prepared.rejects,
                    )
                    blocked_s = time.perf_counter() - clock  # the embedders had no room for more
                clock = time.perf_counter()
        except ShardChanged as error:
            # The split stays unfinished: the driver sees that, lists again and plans what is there
            # now.
            self.totals.note.remote(str(error))


class EmbedParts:
    """Vectors for the distinct texts of a part, fanned out to its rows. One call a part."""

    def __init__(self, job: Job, threads: int | None, totals: Any) -> None:
        self.job, self.totals = job, totals
        with starting(totals):
            prompt_tokens = _prompt_tokens(job)
            self.loading = (job, prompt_tokens, threads)
            # torch: seconds that other users of this file do without
            from pipeline.embed.loading import load_engine

            self.engine = load_engine(job.model(), job.engine, prompt_tokens, threads)
        self.idle_since = time.perf_counter()

    def __call__(self, batch: pa.Table) -> pa.Table:
        header, rows, tokens = (
            json.loads(batch["header"][0].as_py()),
            cell(batch, "rows"),
            cell(batch, "tokens"),
        )
        clock, before = time.perf_counter(), dataclasses.replace(self.engine.stats)
        header["seconds"]["embedders_starved"] = clock - self.idle_since
        with (
            begun(self.totals, f"part {header['part_id']}") as is_careful,
            Child(guarded_steps.load_embedder, *self.loading) as child,  # starts at the first `ask`
        ):
            engine = guarded_steps.CarefulEngine(self.engine, child if is_careful else None)
            vectors = embed(tokens, rows, engine, self.job.engine.normalize)
        header["failed"] = engine.failed_documents(tokens, rows)
        self.idle_since = time.perf_counter()
        header["seconds"]["embed"] = self.idle_since - clock
        header["n_embedded_tokens"] = self.engine.stats.n_tokens - before.n_tokens
        header["n_padded_tokens"] = self.engine.stats.n_padded_tokens - before.n_padded_tokens
        header["n_oom_halvings"] = self.engine.stats.n_oom_halvings - before.n_oom_halvings
        header["engine"] = {
            "name": self.engine.name,
            "device": self.engine.device,
            "dtype": self.engine.dtype,
        }
        header["dimension"] = vectors.shape[1]
        return row(
            header, vectors, rows=rows.drop_columns(["reused"]), rejects=cell(batch, "rejects")
        )


_published: set[tuple[str, str]] = set()
"""Outputs and fingerprints whose generation record this process has already written or found."""


class PartSink(Datasink[list[str]]):
    """Publishes parts. Returns their ids; what counts as done is decided from storage, not from
    this."""

    def __init__(self, job: Job, store: Store, totals: Any) -> None:
        self.job, self.store, self.totals = job, store, totals

    def write(self, blocks: Iterable[Block], ctx: Any) -> list[str]:
        report_retries(self.totals)
        written = []
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            for position in range(table.num_rows):
                written.append(self._write(table.slice(position, 1)))
        return written

    def _write(self, batch: pa.Table) -> str:
        header, clock = json.loads(batch["header"][0].as_py()), time.perf_counter()
        vectors = vectors_of(batch, header["dimension"])
        generation = (self.store.uri, self.job.fingerprint)
        if generation not in _published:
            create_generation(self.store, generation_of(self.job, header["dimension"]))
            _published.add(generation)
        rows, rejects = cell(batch, "rows"), cell(batch, "rejects")
        with begun(self.totals, f"write of part {header['part_id']}"):
            manifest = write_part(header, rows, rejects, vectors, self.job, self.store)
        self.totals.add.remote(
            {**metrics.increments(manifest), "seconds.write": time.perf_counter() - clock}
        )
        return manifest.part_id


def _prompt_tokens(job: Job) -> int:
    """Leading ids that belong to the prompt, which some poolings leave out."""
    if not job.prompt:
        return 0
    return tokenize.load_tokenizer(
        job.model(), max_tokens=job.max_tokens, prompt=job.prompt
    ).prompt_tokens


def row(
    header: dict[str, Any], vectors: npt.NDArray[np.float32] | None = None, **tables: pa.Table
) -> pa.Table:
    """One Dataset row: the header as JSON, each table as one IPC stream in a large_binary cell,
    vectors as their bytes."""
    columns: dict[str, pa.Array] = {"header": pa.array([json.dumps(header)])}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        columns[name] = _binary(sink.getvalue())
    if vectors is not None:
        columns["vectors"] = _binary(pa.py_buffer(vectors))
    return pa.table(columns)


def vectors_of(batch: pa.Table, dimension: int) -> npt.NDArray[np.float32]:
    """(rows, D) in the `vectors` cell of a one-row batch, without a copy."""
    return np.frombuffer(_bytes(batch, "vectors"), np.float32).reshape(-1, dimension)


def _binary(data: pa.Buffer) -> pa.LargeBinaryArray:
    """One cell over the data itself, not over a copy."""
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def cell(batch: pa.Table, name: str) -> pa.Table:
    """The table in one cell of a one-row batch, without a copy."""
    return pa.ipc.open_stream(_bytes(batch, name)).read_all()


def _bytes(batch: pa.Table, name: str) -> pa.Buffer:
    """The data of the cell itself; a scalar's `as_buffer` is over a copy."""
    (array,) = (chunk for chunk in batch[name].chunks if len(chunk))
    _, offsets, data = array.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    return data.slice(start, stop - start)
