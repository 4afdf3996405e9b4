"""The speed of workers, as runs record it.

Oracle: the tokens and seconds of the manifests, summed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.estimate.rates import Rate, known_rates, model_hash, rates_of, remember
from pipeline.driver.planning.plan import make_plan
from pipeline.output.snapshots import live_parts, load_snapshot
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run, store_of


def rate(**changes: Any) -> Rate:
    fields = {
        "device": "cuda",
        "device_name": "Card",
        "dtype": "float32",
        "model": "m",
        "tokens_per_s": 5.0,
        "n_tokens": 10,
        "source": "run",
        "date": "2026-01-01",
    }
    return Rate(**{**fields, **changes})


def test_a_run_records_how_fast_its_workers_embedded_and_what_came_of_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": str(n), "text": f"text {n}"} for n in range(9)])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    snapshot = run(spec)
    assert snapshot
    (part,) = live_parts(store_of(spec), snapshot)
    (path,) = (tmp_path / "out/_meta/runs").glob("*/attempt-0001.json")
    record = json.loads(path.read_text())
    assert record["estimate"] is None
    truth = record["truth"]
    assert (truth["documents"], truth["rows"], truth["tokens"]) == (9, 9, 9 * len("text 1"))
    job = job_of(spec)
    timed = [part.timed(embed=seconds) for seconds in (2.0, 4.0)]
    (measured,) = rates_of(timed, job)
    assert measured.tokens_per_s == pytest.approx(2 * 9 * 6 / 6.0)
    assert (measured.device_name, measured.n_tokens) == ("no device", 2 * 9 * 6)
    old = part.model_copy(update={"engine": {"name": "n", "device": "cpu", "dtype": "float32"}})
    assert rates_of([old.timed(embed=1.0)], job) == []


def test_the_newest_rate_of_a_run_is_known_for_each_device_and_outranks_a_measured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    job = job_of(spec)
    model = model_hash(job)
    remember([rate(model=model), rate(model=model, dtype="bfloat16"), rate(model="other")])
    remember([rate(model=model, tokens_per_s=7.0, date="2026-02-01")])
    remember([rate(model=model, tokens_per_s=9.0, source="measured", date="2026-03-01")])
    remember([rate(model=model, device_name="B", source="measured")])
    (tmp_path / "cache/rates/torn.json").write_text('{"device": 1}')
    (tmp_path / "cache/rates/torn2.json").write_text("[")
    known = known_rates(job, store_of(spec), None)
    assert sorted((each.device_name, each.tokens_per_s) for each in known) == [
        ("B", 5.0),
        ("Card", 7.0),
    ]


def test_rates_of_the_record_of_an_attempt_are_known_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec)
    (path,) = (tmp_path / "out/_meta/runs").glob("*/attempt-0001.json")
    record = json.loads(path.read_text())
    record["rates"] = [vars(rate(model=model_hash(job_of(spec)))), {"device": 3}, "x"]
    path.write_text(json.dumps(record))
    plan = make_plan(job_of(spec), store_of(spec))
    head = load_snapshot(store_of(spec))
    assert [each.device_name for each in known_rates(plan.job, store_of(spec), head)] == ["Card"]
    path.write_text("torn")
    assert known_rates(plan.job, store_of(spec), head) == []
