"""How far a part has come is reported while it is embedded, seldom, and costs nothing else.

Oracle: the tokens of the buckets that the engine computes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.embed.stats import EngineStats
from pipeline.job.model.store import resolve
from pipeline.workers import metrics, reports
from pipeline.workers.reports import Advance
from pipeline.workers.steps import embed_part
from tests.support.engines import engine_of
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, prepared_parts, store_of

Message = tuple[str, dict[str, float]]


def totals() -> tuple[Any, list[Message]]:
    messages: list[Message] = []
    remote = lambda part_id, amounts: messages.append((part_id, amounts))  # noqa: E731
    return SimpleNamespace(advance=SimpleNamespace(remote=remote)), messages


def test_one_message_a_second_says_how_much_of_the_part_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(reports, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    actor, messages = totals()
    whole = {"n_documents": 10, "n_embedded_tokens": 1000, "record_bytes": 5000}
    advance = Advance(actor, "part", whole)
    for _ in range(20):  # a bucket of 50 tokens in 0.3 s
        now_s[0] += 0.3
        advance(50)
    assert len(messages) == 5
    assert messages[0] == (
        "part",
        {"n_documents": 2.0, "n_embedded_tokens": 200.0, "record_bytes": 1000.0},
    )
    advance(10_000)  # texts that failed together are embedded once more
    now_s[0] += 1
    advance(1)
    assert messages[-1][1]["n_documents"] == 10


def test_what_a_part_will_have_done_is_known_before_it_is_embedded(tmp_path: Path) -> None:
    documents = [{"id": str(n), "text": "x" * n or None} for n in range(5)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    (part,) = prepared_parts(spec, make_plan(job_of(spec), store_of(spec)))
    whole = metrics.whole_part(part)
    assert whole["n_documents"] == 4
    assert whole["n_embedded_tokens"] == 1 + 2 + 3 + 4
    assert whole["record_bytes"] == part.facts.record_bytes
    buckets: list[int] = []
    engine = HashEngine()
    embed_part(part, engine, job_of(spec), on_bucket=buckets.append)
    assert sum(buckets) == whole["n_embedded_tokens"]


def test_a_real_engine_tells_of_each_bucket(bert_mean_dir: Path) -> None:
    engine = engine_of(resolve(str(bert_mean_dir)), max_batch_tokens=16)
    buckets: list[int] = []
    lengths = [9, 3, 7, 12, 1, 0]
    offsets = np.cumsum([0, *lengths])
    stats = EngineStats(on_bucket=buckets.append)
    engine.embed(np.full(sum(lengths), 5, np.int32), offsets, stats)
    assert sum(buckets) == sum(lengths)
    assert len(buckets) > 1
