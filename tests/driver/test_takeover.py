"""Who may replace what an output holds, and which vectors survive a change of the spec.

Oracle: the texts that the engine was given, the vectors of texts by the stand-in's own function,
and the snapshots that are there afterwards.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.errors import FullRefreshNeeded
from pipeline.job.spec import JobSpec, spec_from
from pipeline.output.dataset import open_dataset, read_vectors
from pipeline.output.snapshots import load_snapshot
from tests.support.outputs import write_shard
from tests.support.stand_in import (
    HashEngine,
    job_of,
    make_spec,
    run,
    store_of,
    vector_of_text,
)

TEXTS = {f"d{n}": f"text {n} of the corpus" for n in range(40)}
KEPT: dict[str, Any] = {"keep_columns": ["lang"]}


@pytest.fixture
def first(tmp_path: Path) -> JobSpec:
    """The spec of an output that is there."""
    rows = [{"id": key, "text": text, "lang": key[-1]} for key, text in TEXTS.items()]
    for number in range(2):
        write_shard(tmp_path / f"in/{number}.jsonl", rows[number::2])
    spec = make_spec(tmp_path / "in", tmp_path / "out", input=KEPT)
    run(spec)
    return spec


def changed(spec: JobSpec, name: str | None = None, **sections: dict[str, Any]) -> JobSpec:
    fields = spec.model_dump(mode="json")
    fields["name"] = name or fields["name"]
    for section, values in sections.items():
        fields[section] = {**fields[section], **values}
    return spec_from(fields)


def plan_of(spec: JobSpec, **changes: Any) -> Plan:
    return make_plan(job_of(spec, **changes), store_of(spec))


def other_model(spec: JobSpec) -> dict[str, Any]:
    identity = copy.deepcopy(job_of(spec).identity)
    identity["model"]["dtype"] = "bfloat16"
    return {"identity": identity}


@pytest.mark.parametrize(
    "sections",
    [
        {"output": {"partition_by": ["lang"]}},
        {"output": {"vector_precision": "float16"}},
        {"output": {"vector_precision": "int8"}},
        {"output": {"include_text": False}},
        {"output": {"max_partitions": 7}},
        {"input": {"keep_columns": {}}},
        {"input": {"max_column_bytes": 1000}},
    ],
)
def test_a_change_of_rows_alone_reuses_every_vector_and_needs_no_consent(
    first: JobSpec, sections: dict[str, Any]
) -> None:
    spec = changed(first, **sections)
    plan = plan_of(spec)
    assert plan.consent_wanted is None
    assert "every stored vector is reused" in (plan.takeover.describe() or "")
    engine = HashEngine()
    snapshot = run(spec, engine, full_refresh=False)
    assert snapshot is not None
    assert (snapshot.number, snapshot.n_rows) == (2, len(TEXTS))
    assert engine.seen == []
    ids, vectors = read_vectors(str(first.output.uri))
    for doc_id, vector in zip(ids.to_pylist(), vectors, strict=True):
        atol = {"float16": 1e-3, "int8": 0.01}.get(spec.output.vector_precision, 0)
        np.testing.assert_allclose(vector, vector_of_text(TEXTS[doc_id]), atol=atol, rtol=0)


def test_vectors_that_were_rounded_do_not_become_finer(first: JobSpec) -> None:
    coarse = changed(first, output={"vector_precision": "int8"})
    run(coarse)
    plan = plan_of(first)
    # the parts of the first run are still there, so nothing has to be made at all
    assert plan.consent_wanted is None
    finer = changed(first, output={"vector_precision": "float16", "include_text": False})
    consent = plan_of(finer).consent_wanted
    assert consent is not None
    assert "stored as int8 do not give the asked precision" in consent
    with pytest.raises(FullRefreshNeeded, match="--full-refresh"):
        run(finer, full_refresh=False)
    engine = HashEngine()
    run(finer, engine)
    assert len(engine.seen) == len(TEXTS)


def test_other_vectors_want_consent_once_and_before_any_work(first: JobSpec) -> None:
    changes = other_model(first)
    engine = HashEngine()
    with pytest.raises(FullRefreshNeeded, match=r"full re-embed: differs .* in model\.dtype"):
        run(first, engine, full_refresh=False, **changes)
    assert engine.seen == []
    assert load_snapshot(store_of(first)).number == 1
    # killed on the way: what was agreed stays agreed
    assert run(first, engine, stop_after=1, **changes) is None
    snapshot = run(first, engine, full_refresh=False, **changes)
    assert snapshot is not None
    assert snapshot.number == 2
    assert len(engine.seen) == len(TEXTS)
    assert run(first, engine, full_refresh=False, **changes).number == 2


def test_other_texts_want_consent(first: JobSpec) -> None:
    pooled = changed(first, prepare={"long_documents": "chunk_and_pool"})
    assert "full re-embed" in (plan_of(pooled).consent_wanted or "")
    run(pooled)
    recut = changed(pooled, prepare={"chunk": {"max_tokens": 8, "overlap_tokens": 0}})
    assert plan_of(recut).consent_wanted is not None
    kept = changed(pooled, input={"keep_columns": {}})
    assert plan_of(kept).consent_wanted is None


def test_another_jobs_output_is_not_taken_over_unasked(first: JobSpec, tmp_path: Path) -> None:
    rows = [{"id": f"other-{n}", "text": f"other {n}", "lang": "x"} for n in range(40)]
    write_shard(tmp_path / "other/a.jsonl", rows)
    spec = changed(first, name="other-job", input={"uri": [str(tmp_path / "other")]})
    engine = HashEngine()
    with pytest.raises(FullRefreshNeeded) as raised:
        run(spec, engine, full_refresh=False)
    message = str(raised.value)
    assert "belongs to job 'stand-in', and none of its shards is in this input" in message
    assert engine.seen == []
    assert plan_of(spec).summary()["owner"] == "stand-in"
    # the documents of the other job are meant to leave
    spec = changed(spec, runtime={"max_delete_fraction": 0.2})
    snapshot = run(spec, engine, full_refresh=True)
    assert snapshot is not None
    assert snapshot.n_documents == 40
    ids = open_dataset(str(first.output.uri)).to_table(columns=["doc_id"])["doc_id"].to_pylist()
    assert all(doc_id.startswith("other-") for doc_id in ids)


def test_a_job_that_was_renamed_goes_on(first: JobSpec, tmp_path: Path) -> None:
    write_shard(tmp_path / "in/2.jsonl", [{"id": "new", "text": "a new one", "lang": "x"}])
    snapshot = run(changed(first, name="renamed"), full_refresh=False)
    assert snapshot is not None
    assert (snapshot.number, snapshot.n_documents) == (2, 41)


def test_an_ordinary_refresh_asks_nothing(first: JobSpec, tmp_path: Path) -> None:
    write_shard(tmp_path / "in/0.jsonl", [{"id": "d0", "text": "edited", "lang": "x"}])
    plan = plan_of(first)
    assert (plan.consent_wanted, plan.takeover.describe()) == (None, None)
    assert run(first, full_refresh=False).number == 2
