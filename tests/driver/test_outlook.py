"""What `plan` says beyond its arithmetic. Oracle: the records that the test wrote, and the length
of a chunk worked out by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline.driver.planning.places as places
from pipeline.driver.cluster.job_plan import plan_job
from pipeline.driver.estimate.forecast import estimate_of
from pipeline.driver.estimate.outlook import outlook_of
from pipeline.driver.estimate.sample import sample
from pipeline.driver.planning.places import check_device, check_dtype
from pipeline.driver.planning.plan import make_plan
from pipeline.errors import SpecError
from pipeline.job.spec import JobSpec
from tests.support import outputs, poison
from tests.support.outputs import write_shard
from tests.support.stand_in import ByteTokenizer, job_of, make_spec, store_of


def plan_of(spec: JobSpec) -> Any:
    return make_plan(job_of(spec), store_of(spec))


def test_partitions_are_counted_in_the_first_records(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"text {n}", "user": f"u{n}"} for n in range(300)]
    write_shard(tmp_path / "in/a.jsonl", rows)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["user"]},
        output={"partition_by": ["user"]},
    )
    plan = plan_of(spec)
    seen = sample(plan, store_of(spec), ByteTokenizer(), seconds=60)
    assert seen
    outlook = outlook_of(plan, ByteTokenizer(), seen)
    assert (outlook.n_partitions, outlook.n_sampled, outlook.chunks) == (300, 300, None)


def test_chunks_are_as_long_as_the_model_has_room(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "text", "lang": "en"}])

    def chunks(max_tokens: int) -> str:
        prepare = {
            "long_documents": "chunk",
            "chunk": {"max_tokens": max_tokens, "overlap_tokens": 1},
        }
        spec = outputs.make_spec(
            str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, prepare=prepare
        )
        plan = plan_job(spec)
        n_model = plan.job.max_tokens
        estimate = estimate_of(plan, store_of(spec), is_alone=False)
        assert estimate
        return (
            (estimate.outlook.chunks or "")
            .replace(str(n_model - 2), "M-2")
            .replace(f"takes {n_model}", "takes M")
        )

    assert chunks(7) == "chunks of at most 7 tokens, 1 shared with the next"
    assert chunks(100_000) == (
        "chunks of at most M-2 tokens, 1 shared with the next (asked 100,000; the model takes M, "
        "of which 2 are special tokens and the prompt)"
    )


def test_a_gpu_that_this_machine_does_not_have_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"device": "cuda"})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(places, "device_here", lambda: "cpu")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(SpecError, match=r"runtime\.device is cuda, and this machine has no GPU"):
        check_device(spec, None)
    check_device(spec, "cluster:6379")
    monkeypatch.setattr(places, "device_here", lambda: "cuda")
    check_device(spec, None)


@pytest.mark.parametrize(
    ("dtype", "device", "is_warned"),
    [("float16", "cpu", True), ("float16", "cuda", False), ("float32", "cpu", False)],
)
def test_a_plan_says_that_float16_is_slow_on_a_cpu(
    dtype: str, device: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec("in", "out", model={"dtype": dtype})
    check_dtype(spec, device, "cluster:6379")
    assert ("float16 on a CPU is mostly slower" in caplog.text) is is_warned


@pytest.mark.faults
def test_a_first_record_that_kills_the_reader_ends_a_plan_with_the_place(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    """A child process for the first records would delay each run by 0.8 s of CPU."""
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": poison.KILLS_READER, "lang": "en"}])
    spec = outputs.make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    (tmp_path / "job.yaml").write_text(spec.to_yaml())
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan", str(tmp_path / "job.yaml")],
        env={**os.environ, **poison.poison(tmp_path / "poison")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "read/preview.py" in done.stderr


def test_plan_shows_chunks_and_partitions_and_needs_no_gpu_that_is_not_there(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "a text", "lang": "en"}])
    output = {"partition_by": ["lang"]}
    prepare = {"long_documents": "chunk", "chunk": {"max_tokens": 8, "overlap_tokens": 2}}
    spec = outputs.make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, output=output, prepare=prepare
    )
    (tmp_path / "job.yaml").write_text(spec.to_yaml())

    def planned(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", "plan", str(tmp_path / "job.yaml"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    plan = planned()
    assert plan.returncode == 0, plan.stderr
    assert "chunks of at most 8 tokens, 2 shared with the next" in plan.stdout
    assert "1 among the 1 record looked at; a part may have 128" in plan.stdout
    no_gpu = planned("--set", "runtime.device=cuda")
    assert (no_gpu.returncode, "this machine has no GPU" in no_gpu.stderr) == (2, True)
