"""A run without torch, transformers and Ray: the real flow of a part and the real commit protocol
round a stand-in model.

In: a job spec. Out: the same objects under the output as a run makes. The stand-in tokenizer gives
the bytes of a text, the stand-in engine hashes them, so that equal texts have equal vectors and
nothing has to be loaded. Cost: half a second of imports in a fresh process, milliseconds a run.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.driver.commits import finish
from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import run_job
from pipeline.embed.stats import EngineStats
from pipeline.job.engine_options import EngineOptions
from pipeline.job.resolve import Job
from pipeline.job.spec import JobSpec, spec_from
from pipeline.observe.progress import Progress
from pipeline.output.known_vectors import Index
from pipeline.output.snapshots import commit_snapshot
from pipeline.output.text_index import update_index
from pipeline.read.parts import Part
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tokenize.tokens import Tokens
from pipeline.workers import steps
from pipeline.workers.metrics import increments
from pipeline.write.create import create_generation
from pipeline.write.part import generation_of, write_part

DIM = 8


class ByteTokenizer:
    """One id a byte of UTF-8; no special tokens."""

    prompt_tokens = 0
    special_tokens = 0

    def __init__(self, max_tokens: int = 512, prompt: str = "") -> None:
        self.max_tokens, self.prompt = max_tokens, prompt

    def encode(self, texts: Sequence[str]) -> Tokens:
        ids = [
            np.frombuffer((self.prompt + text).encode(), np.uint8).astype(np.int32)
            for text in texts
        ]
        n_kept = [min(len(text_ids), self.max_tokens) for text_ids in ids]
        offsets = np.cumsum([0, *n_kept]).astype(np.int64)
        flat = np.concatenate(
            [np.empty(0, np.int32), *(text_ids[: self.max_tokens] for text_ids in ids)]
        )
        return Tokens(
            flat, offsets, np.array([len(text_ids) > self.max_tokens for text_ids in ids], bool)
        )

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text.encode()) for text in texts], np.int64)


class HashEngine:
    """(N, DIM) float32 from a hash of the ids; remembers the texts that it was given."""

    name = "stand-in"
    device = "cpu"
    device_name = "no device"
    dtype = "float32"
    tuning: dict[str, str] = {}  # noqa: RUF012
    dim = DIM

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def embed(self, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> np.ndarray:
        texts = [ids[a:b].tobytes() for a, b in itertools.pairwise(offsets)]
        self.seen += texts
        stats.n_tokens += len(ids)
        stats.n_padded_tokens += len(ids)
        if stats.on_bucket:
            stats.on_bucket(len(ids))
        return np.array([vector_of(text) for text in texts], np.float32).reshape(-1, DIM)


def vector_of(ids: bytes) -> np.ndarray:
    digest = np.frombuffer(hashlib.sha256(ids).digest()[: 2 * DIM], np.uint16).astype(np.float32)
    return digest / 65536 - 0.5


def vector_of_text(text: str) -> np.ndarray:
    return vector_of(np.frombuffer(text.encode(), np.uint8).astype(np.int32).tobytes())


def make_spec(
    input_uri: str | Sequence[str] | Path, output_uri: str | Path, **sections: dict[str, Any]
) -> JobSpec:
    uri = input_uri if isinstance(input_uri, list | tuple) else str(input_uri)
    fields: dict[str, Any] = {
        "name": "stand-in",
        "input": {"uri": uri, "id_column": "id"},
        "model": {"path": "stand-in"},
        # a card costs a fifth of a run of a few documents
        "output": {"uri": str(output_uri), "card": None},
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


def job_of(spec: JobSpec, **changes: Any) -> Job:
    """What `resolve` would give, without a model directory."""
    identity = {
        "model": {
            "files": {"weights": "0" * 64},
            "pooling": "mean",
            "normalize": False,
            "prompt": None,
            "max_tokens": 512,
            "dtype": "float32",
            "truncate_dim": None,
        },
        "prepare": spec.prepare.model_dump(mode="json"),
        "input": spec.input.identity(),
        "output": spec.output.identity(),
    }
    fields = {
        "spec": spec,
        "engine": EngineOptions(pooling="mean", normalize=False),
        "prompt": None,
        "max_tokens": 512,
        "identity": identity,
        "model_license": None,
    }
    return Job(**{**fields, **changes})


def store_of(spec: JobSpec) -> Store:
    return Store(spec.output.uri, spec.output.storage_options)


def prepared_parts(
    spec: JobSpec, plan: Plan, tokenizer: ByteTokenizer | None = None
) -> Iterator[steps.PreparedPart]:
    """The parts of a plan that have no manifest yet, up to the model."""
    if plan.todo:
        prepare = preparer(spec, plan, tokenizer)
        for todo in plan.todo:
            yield from map(prepare, steps.unfinished_parts(todo, plan.job))


def preparer(
    spec: JobSpec, plan: Plan, tokenizer: ByteTokenizer | None = None
) -> Callable[[Part], steps.PreparedPart]:
    store, fingerprint = store_of(spec), plan.job.fingerprint
    return functools.partial(
        steps.prepare_part,
        job=plan.job,
        tokenizer=tokenizer or ByteTokenizer(),
        run_id=plan.run_id,
        index=Index(store, fingerprint, update_index(store, fingerprint, plan.earlier)),
    )


def publish_prepared(
    prepared: steps.PreparedPart, job: Job, store: Store, engine: HashEngine
) -> Manifest:
    create_generation(store, generation_of(job, engine.dim))
    return write_part(steps.embed_part(prepared, engine, job), job, store)


class Stopped(Exception):
    """An execution ended early, as that of a killed run does."""


def run(
    spec: JobSpec,
    engine: HashEngine | None = None,
    *,
    stop_after: int | None = None,
    tokenizer: ByteTokenizer | None = None,
    full_refresh: bool = True,
    limit: int | None = None,
    **changes: Any,
) -> Snapshot | None:
    """One run. `stop_after`: write so many parts and end without a commit, as a killed run would;
    returns None. changes: as in `job_of`."""
    store, job, progress = store_of(spec), job_of(spec, **changes), Progress()
    embed = functools.partial(steps.embed_part, engine=engine or HashEngine(), job=job)

    def execute(plan: Plan) -> dict[str, float]:
        prepare = preparer(spec, plan, tokenizer)
        manifests = steps.do_splits(plan.todo, prepare, embed, plan.job, store)
        for manifest in itertools.islice(manifests, stop_after):
            progress.add(increments(manifest))
        if stop_after is not None:
            raise Stopped
        return {}

    try:
        result = run_job(job, store, execute, progress, full_refresh=full_refresh, limit=limit)
        return result.snapshot
    except Stopped:
        return None


def commit_plan(
    plan: Plan, store: Store, manifests: Sequence[Manifest], *, complete: bool = True
) -> Snapshot:
    """The snapshot of a plan, on the head that it was planned on."""
    live = plan.parts_of(manifests)
    if complete:
        return finish(plan, store, live)
    return commit_snapshot(
        store,
        live,
        run_id=plan.run_id,
        fingerprint=plan.job.fingerprint,
        parent=plan.head,
        complete=False,
    )
