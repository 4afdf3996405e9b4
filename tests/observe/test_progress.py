"""Figures of a run: exact sums, shares between 0 and 1, and no estimate before there is anything to
estimate from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.display import report
from pipeline.observe.progress import Progress
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


def test_there_is_no_estimate_before_the_first_part_and_never_more_than_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress = Progress(bytes_todo=1000)
    assert (progress.fraction, progress.eta_s, progress.padding_share) == (0, None, 0)
    monkeypatch.setattr("pipeline.observe.progress.time.monotonic", lambda: progress.started + 10)
    progress.add({"record_bytes": 250, "parts": 1})
    assert progress.eta_s == pytest.approx(30)
    progress.add({"record_bytes": 5000, "parts": 1})  # the estimate of compressed bytes was too low
    assert progress.fraction == 0.99
    assert Progress().eta_s is None


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
        ({"embed": 1.0, "embedders_starved": 9.0, "read": 0.1, "tokenize": 0.2}, 0.1, "start-up"),
    ],
)
def test_a_report_names_the_stage_that_held_the_run_up(
    seconds: dict[str, float], share: float, bottleneck: str
) -> None:
    progress = Progress()
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
        "recovered from: 4 workers started again, 1 requests tried again, "
        "3 buckets halved for memory, 3 records" in troubled_output
    )
