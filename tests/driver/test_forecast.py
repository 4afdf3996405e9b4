"""The estimate that `plan` shows: sizes, devices, prices, and its JSON.

Oracle: the run of the same plan; parameters and operations counted from the sizes of the model;
prices and hours multiplied by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.driver.cluster.job_plan import plan_job
from pipeline.driver.estimate import prices
from pipeline.driver.estimate.device_rows import device_rows
from pipeline.driver.estimate.forecast import estimate_of
from pipeline.driver.estimate.model_costs import ModelCosts, costs_of
from pipeline.driver.estimate.output_bytes import output_bytes
from pipeline.driver.estimate.prices import devices, prices_from
from pipeline.driver.estimate.rates import Rate
from pipeline.errors import SpecError, WorkerError
from pipeline.job.model.store import resolve
from pipeline.output.snapshots import load_snapshot
from tests.support import poison
from tests.support.outputs import DOCUMENTS, make_spec, run_without_ray, write_shard
from tests.support.processes import printed_by
from tests.support.stand_in import store_of

COSTS = ModelCosts(parameters=1_000_000, multiplied=800_000, hidden=64, inner=256, layers=4)


def table_of(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_the_estimate_of_a_small_input_is_what_its_run_makes(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    plan = plan_job(spec)
    estimate = estimate_of(plan, store_of(spec), is_alone=True, is_measuring=False)
    assert estimate
    facts = json.loads(json.dumps(estimate.facts()))
    snapshot = run_without_ray(spec)
    assert snapshot
    for name in ("documents", "rows", "tokens"):
        assert facts[name] == {"value": getattr(snapshot, f"n_{name}"), "margin": 0}
    assert sum(entry["rows"] for entry in facts["lengths"]) == snapshot.n_rows
    assert facts["embedded_tokens"]["value"] == snapshot.n_tokens
    record = estimate.record()
    assert (record["documents"], record["embedded_tokens"]) == (8, snapshot.n_tokens)
    assert record["seconds"] == facts["here"]["seconds"] > 0
    head = plan_job(spec)
    assert estimate_of(head, store_of(spec), is_alone=True) is None
    assert load_snapshot(store_of(spec)) == snapshot


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "words", "n_deaths"),
    [
        (poison.KILLS_TOKENIZER, "kills the process .*SIGSEGV.*rejects them", 1),
        (poison.RAISES_IN_READER, r"failed \(RuntimeError: this record cannot be read\)", 0),
    ],
)
def test_a_record_that_kills_who_touches_it_costs_the_estimate_and_not_the_driver(
    tmp_path: Path,
    bert_mean_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: str,
    n_deaths: int,
) -> None:
    """A run rejects such a record; it must not die of the look before it, each time anew."""
    write_shard(tmp_path / "in/a.jsonl", [*DOCUMENTS, {"id": "p", "text": text}])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    folder = tmp_path / "poison"
    poison.poison(folder)
    monkeypatch.syspath_prepend(str(folder))  # as a child inherits it
    with pytest.raises(WorkerError, match=f"no estimate: .*{words}"):
        estimate_of(plan_job(spec), store_of(spec), is_alone=True, is_measuring=False)
    assert poison.n_deaths(folder) == n_deaths


def test_a_model_costs_two_operations_for_each_weight_and_four_for_each_token_seen(
    bert_mean_dir: Path,
) -> None:
    costs = costs_of(resolve(str(bert_mean_dir)))
    config = json.loads((bert_mean_dir / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    matrices = layers * (4 * hidden * hidden + 2 * hidden * inner)
    # a pooler that nothing uses is one matrix more
    assert costs.multiplied in (matrices, matrices + hidden * hidden)
    seen = 10.0
    assert costs.flops_per_token(seen) == 2 * costs.multiplied + 4 * layers * hidden * seen
    assert costs.weight_bytes("bfloat16") == 2 * costs.parameters


def test_a_recorded_rate_comes_before_a_calculated_one_and_money_is_hours_times_price(
    tmp_path: Path,
) -> None:
    table = table_of(
        tmp_path / "prices.yaml",
        "Fast: {price_per_hour: 6, memory_gib: 1, peak_tflops: {bfloat16: 100, float32: 10}}\n"
        "Slow: {price_per_hour: 1, currency: EUR, peak_tflops: {float32: 1}}\n"
        "Tiny: {price_per_hour: 1, memory_gib: 0.001, peak_tflops: {bfloat16: 1}}\n",
    )
    rate = Rate("cuda", "Maker FAST 80GB", "bfloat16", "m", 5000.0, 1, "run", "2026-01-01")
    with prices_from(table):
        fast, slow, tiny = device_rows(36e6, 0.0, COSTS, [rate], "auto", None)
        assert devices()["Slow"].currency == "EUR"
    assert (fast.dtype, fast.tokens_per_s, fast.rate_source) == ("bfloat16", 5000.0, "run")
    assert (fast.hours, fast.cost, fast.fits) == (2.0, 12.0, True)
    # 1e12 operations a second, of which half are reached, over 1.6e6 for a token
    assert (slow.dtype, slow.rate_source, slow.fits) == ("float32", "calculated", None)
    assert slow.tokens_per_s == pytest.approx(1e12 * 0.5 / 1.6e6)
    assert tiny.fits is False
    assert "Fast" not in devices()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H100: cheap", "H100: found 'cheap'"),
        ("H100: {price_per_hour: -1}", "H100: price_per_hour"),
        ("H100: {price_per_hour: 1, pric: 2}", "unknown key"),
        ("- H100", "a mapping of names"),
        ("H100: [", "cannot be read"),
    ],
)
def test_a_wrong_table_of_prices_is_refused_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    with (
        prices_from(table_of(tmp_path / "p.yaml", text)),
        pytest.raises(SpecError, match=r"p\.yaml") as caught,
    ):
        devices()
    assert message in str(caught.value)


def test_every_device_of_the_package_says_that_its_price_is_an_example() -> None:
    with prices_from(None):
        table = devices()
    assert prices.CPU_CORE in table
    for device in table.values():
        assert "example" in device.source and device.as_of and device.currency


def test_bytes_follow_the_precision() -> None:
    sizes = output_bytes(1000, 100, 10.0)
    assert sizes["float32"] == round(1000 * (400 * 0.845 + 10))
    assert sizes["int8"] == 1000 * (100 + 4 + 10)
    assert sorted(sizes, key=lambda name: -sizes[name]) == [
        *("float32", "float16", "bfloat16", "int8", "ubinary")
    ]


def test_estimates_are_made_without_torch_and_ray(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    (tmp_path / "job.yaml").write_text(spec.to_yaml())
    code = (
        "import sys; from pipeline.cli.commands import invoke\n"
        f"assert invoke(['plan', {str(tmp_path / 'job.yaml')!r}, '--json']) == 0\n"
        "assert not {'torch', 'ray', 'transformers'} & sys.modules.keys()"
    )
    facts = json.loads(printed_by(code))["estimate"]
    assert facts["documents"] == {"value": 8, "margin": 0}
    assert facts["first_document"]["texts"][0]["text"] == DOCUMENTS[0]["text"]
