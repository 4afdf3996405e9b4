"""Figures of a run: exact sums, shares between 0 and 1, and no estimate before there is anything to
estimate from."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli.display import report
from pipeline.observe.progress import (
    COMMITTING,
    CONNECTING,
    EMBEDDING,
    LOADING,
    PLANNING,
    PUBLISHING,
    STARTING,
    Progress,
)
from pipeline.observe.rate import PlannedSplit, Remaining
from pipeline.storage.lineage import Manifest
from pipeline.workers.metrics import increments
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run


def test_the_totals_are_the_sums_of_the_manifests(tmp_path: Path) -> None:
    docs = [{"id": str(i), "text": "x" * 100 if i % 5 else None} for i in range(50)]
    write_shard(tmp_path / "in/a.jsonl", docs)
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024}))
    assert snapshot is not None
    progress = Progress()
    for path in (tmp_path / "out/_meta/manifests").rglob("*.json"):
        progress.add(increments(Manifest.from_json(path.read_bytes(), str(path))))
    totals = progress.summary()
    assert (totals["n_records"], totals["n_documents"], totals["n_rejects"]) == (50, 40, 10)
    assert (totals["parts"], totals["data_bytes"]) == (snapshot.n_parts, snapshot.size_bytes)
    assert totals["n_tokens"] == 4000


def clocked(**options: Any) -> tuple[Progress, Callable[[float], None]]:
    """A Progress, and what lets its time pass."""
    now_s = [100.0]

    def wait(seconds: float) -> None:
        now_s[0] += seconds

    return Progress(clock=lambda: now_s[0], **options), wait


def test_start_up_embedding_and_end_are_separate_and_the_rate_is_that_of_the_embedding() -> None:
    changes: list[str] = []
    progress, wait = clocked(on_change=lambda: changes.append(progress.phase))
    for phase, seconds in [(PLANNING, 1), (CONNECTING, 4), (STARTING, 2), (LOADING, 3)]:
        progress.enter(phase)
        wait(seconds)
    progress.enter(EMBEDDING)
    progress.enter(EMBEDDING)
    wait(20)
    progress.add({"n_embedded_tokens": 4000, "parts": 1, "seconds.embed": 19.0})
    progress.enter(COMMITTING)
    wait(0.5)
    progress.enter(PUBLISHING)
    wait(0.25)
    summary = progress.summary()
    assert (summary["start_up_s"], summary["embedding_s"], summary["end_s"]) == (10, 20, 0.75)
    assert summary["elapsed_s"] == 30.75
    assert summary["tokens_per_s"] == 200
    assert summary["bottleneck"] == "embed"
    assert changes == [CONNECTING, STARTING, LOADING, EMBEDDING, COMMITTING, PUBLISHING]
    assert progress.eta_s is None


def test_start_up_is_the_bottleneck_where_it_takes_longest() -> None:
    progress, wait = clocked()
    wait(12)
    progress.enter(EMBEDDING)
    wait(1)
    progress.add({"seconds.embed": 0.9, "seconds.tokenize": 0.3, "seconds.embedders_starved": 2})
    assert progress.bottleneck == "start-up"
    wait(20)
    progress.enter(COMMITTING)
    wait(40)
    assert progress.bottleneck == "end"


def test_what_is_done_inside_a_part_counts_until_its_manifest_does_and_never_falls() -> None:
    progress, _ = clocked()
    progress.remaining = Remaining([PlannedSplit("s", "", 1000)])
    progress.enter(EMBEDDING)
    progress.advance("a", {"n_documents": 4, "record_bytes": 400})
    progress.advance("b", {"n_documents": 1, "record_bytes": 100})
    assert (progress.live("n_documents"), progress["n_documents"]) == (5, 0)
    assert progress.fraction == 0.5
    progress.advance("a", {"n_documents": 1, "record_bytes": 100})  # its worker died
    assert progress.live("n_documents") == 5
    progress.finish_part("a", {"n_documents": 6, "record_bytes": 450, "parts": 1})
    assert (progress.live("n_documents"), progress["n_documents"]) == (7, 6)
    progress.add({"record_bytes": 5000})  # the estimate was too low
    assert progress.fraction == 0.99
    progress.remaining.add_part("s", 0, True, 5450)
    assert progress.fraction == 1


def test_padding_is_the_share_of_computed_tokens_that_were_not_real() -> None:
    progress = Progress()
    progress.add(
        {"n_tokens": 90, "n_embedded_tokens": 75, "n_padded_tokens": 100, "seconds.embed": 1.5}
    )
    progress.add({"n_tokens": 0, "n_padded_tokens": 0, "seconds.embed": 0.5})
    assert progress.padding_share == 0.25
    assert progress.summary()["seconds"] == {"embed": 2.0}


@pytest.mark.parametrize(
    ("seconds", "share", "bottleneck"),
    [
        ({"embed": 95.0, "embedders_starved": 5.0, "read": 80.0, "tokenize": 90.0}, 0.95, "embed"),
        ({"embed": 50.0, "embedders_starved": 50.0, "read": 40.0, "tokenize": 10.0}, 0.5, "read"),
        (
            {"embed": 50.0, "embedders_starved": 50.0, "read": 10.0, "tokenize": 40.0},
            0.5,
            "tokenize",
        ),
        # neither took a tenth of the time
        ({"embed": 1.0, "embedders_starved": 9.0, "read": 0.1, "tokenize": 0.9}, 0.1, "hand-over"),
    ],
)
def test_a_report_names_the_stage_that_held_the_embedding_up(
    seconds: dict[str, float], share: float, bottleneck: str
) -> None:
    progress = Progress(clock=lambda: 0.0)
    assert (progress.busy_share, progress.bottleneck) == (None, None)
    progress.add({f"seconds.{stage}": value for stage, value in seconds.items()})
    assert (progress.busy_share, progress.bottleneck) == (share, bottleneck)


def test_what_a_run_recovered_from_is_in_its_figures_and_its_report_also_when_it_is_nothing(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "text"}])
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out"))
    (path,) = (tmp_path / "out/_meta/manifests").rglob("*.json")
    part = Manifest.from_json(path.read_bytes(), str(path))
    troubled = part.model_copy(
        update={
            "n_oom_halvings": 3,
            "reject_reasons": {"crashed_worker": 2, "out_of_memory": 1, "null_text": 5},
        }
    )
    quiet, progress = Progress(), Progress()
    quiet.add(increments(part))
    progress.add(increments(troubled))
    progress.add({"storage_retries": 1, "worker_restarts": 4})
    names = ("worker_restarts", "storage_retries", "n_oom_halvings", "n_crashed_records")
    assert [quiet.summary()[name] for name in names] == [0, 0, 0, 0]
    assert [progress.summary()[name] for name in names] == [4, 1, 3, 3]
    printed = [Console(file=io.StringIO(), width=300) for _ in range(2)]
    for console, run_progress in zip(printed, (quiet, progress), strict=True):
        report(console, run_progress, "out", snapshot, {"carried": 3})
    quiet_output, troubled_output = (console.file.getvalue() for console in printed)
    assert "recovered" not in quiet_output
    assert (
        "recovered from: 4 workers started again, 1 request tried again, "
        "3 buckets halved for memory, 3 records" in troubled_output
    )
