"""Real outputs without Ray: the plain functions of a run, called one after the other in this
process.

In: documents and a model directory. Out: an output on local disk (or any store) with data files,
manifests, run record and a snapshot, made by the same code that a run uses. Cost: a second at the
size of a tiny model.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import run_job
from pipeline.job.resolve import resolve
from pipeline.job.spec import JobSpec, spec_from
from pipeline.observe.progress import Progress
from pipeline.output.text_index import update_index
from pipeline.read.parts import Part, Todo
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers.guarded_steps import load_preparer
from pipeline.workers.metrics import increments
from pipeline.workers.steps import PreparedPart, do_splits, embed_part
from pipeline.write.part import EmbeddedPart
from tests.support.stand_in import Stopped

Document = Mapping[str, Any]
DOCUMENTS: tuple[Document, ...] = tuple(
    {"id": f"doc-{n}", "text": text, "lang": "en"}
    for n, text in enumerate(
        [
            "The library opens a stored file and reads its first line.",
            "A function returns the number of arguments it was called with.",
            "Press the button to insert a table into the document.",
            "Strings are sequences of characters; they cannot be changed in place.",
            "The printer settings are found in the file menu.",
            "An exception is raised when the key is not in the dictionary.",
            "Choose a colour for the background of the selected cells.",
            "The loop stops as soon as the condition becomes false.",
        ]
    )
)


def write_shard(path: Path, documents: Sequence[Document]) -> Path:
    """Write documents in the format that the suffixes of `path` name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")
    if inner.endswith(".parquet"):
        # small row groups: a reader that gets the first row of a later group wrong is found
        pq.write_table(pa.Table.from_pylist([dict(d) for d in documents]), path, row_group_size=3)
        return path
    if inner.endswith(".csv"):
        sink = io.StringIO(newline="")
        writer = csv.DictWriter(sink, list(documents[0]))
        writer.writeheader()
        writer.writerows(documents)
        data = sink.getvalue().encode()
    else:
        data = b"".join(json.dumps(d, ensure_ascii=False).encode() + b"\n" for d in documents)
    if path.name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    elif path.name.endswith(".bz2"):
        data = bz2.compress(data)
    path.write_bytes(data)
    return path


def make_spec(
    input_uri: str | Sequence[str], output_uri: str, model: Path, /, **sections: Mapping[str, Any]
) -> JobSpec:
    """A spec with ids and one kept column; `sections` are merged over it (input={"id_column":
    None}, …)."""
    fields: dict[str, Any] = {
        "name": "test",
        "input": {"uri": input_uri, "id_column": "id", "keep_columns": ["lang"]},
        "model": {"path": str(model)},
        "output": {"uri": output_uri},
        "runtime": {
            "device": "cpu",
            "max_reject_fraction": 1.0,
            "max_damaged_fraction": 1.0,
            "max_delete_fraction": 1.0,
        },
    }
    for section, values in sections.items():
        fields[section] = {**fields.get(section, {}), **values}
    return spec_from(fields)


def run_without_ray(
    spec: JobSpec,
    *,
    complete: bool = True,
    only: Callable[[Plan], Sequence[Todo]] = lambda plan: plan.todo,
    change: Callable[[pa.Table, Any], tuple[pa.Table, Any]] = lambda rows, vectors: (rows, vectors),
) -> Snapshot | None:
    """One run of `spec` in this process. `only` picks the splits to do; `change` may tamper with
    rows and vectors.

    Returns the snapshot, or None when `complete` is False: then parts are written and nothing is
    committed.
    """
    store = Store(spec.output.uri, spec.output.storage_options)
    job = resolve(spec, "cpu")
    progress = Progress()

    def execute(plan: Plan) -> dict[str, float]:
        prepare, embed = load_steps(plan, store, change)
        for manifest in do_splits(only(plan), prepare, embed, job, store):
            progress.add(increments(manifest))
        if not complete:
            raise Stopped
        return {}

    try:
        return run_job(job, store, execute, progress, full_refresh=True).snapshot
    except Stopped:
        return None


def load_steps(
    plan: Plan, store: Store, change: Callable[[pa.Table, Any], tuple[pa.Table, Any]]
) -> tuple[Callable[[Part], PreparedPart], Callable[[PreparedPart], EmbeddedPart]]:
    """The steps of a part with the real tokenizer and the real model."""
    from pipeline.embed.loading import load_engine  # and with it torch: other tests need none

    job = plan.job
    index_segments = update_index(store, job.fingerprint, plan.earlier)
    prepare = load_preparer(job, plan.run_id, store, index_segments)
    model = job.model()
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=job.prompt)
    engine = load_engine(model, job.engine, tokenizer.prompt_tokens)

    def embed(prepared: PreparedPart) -> EmbeddedPart:
        embedded = embed_part(prepared, engine, job)
        rows, vectors = change(embedded.rows, embedded.vectors)
        return dataclasses.replace(embedded, rows=rows, vectors=vectors)

    return prepare, embed
