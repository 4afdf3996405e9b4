"""The main job as a process of its own, S3 to S3, killed, failed and raced: the rows are those of
the input, once each."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.output import dataset
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from tests.support.fault_proxy import FaultProxy, Rule

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.faults, pytest.mark.timeout(3600)]

PATIENCE_S = 900  # of one start, on a machine that is busy with other work

N_DOCUMENTS = 240
TEXTS = {f"d{i:03d}": f"{i} 東京は日本の首都です。" * (1 + i % 5) for i in range(N_DOCUMENTS)}


@pytest.fixture
def job(s3: Any, tmp_path: Path, bert_mean_dir: Path) -> Path:
    """A spec over three shards of one compressed and two plain files: about 34 parts, enough for
    ten kills."""
    lines = [
        json.dumps({"id": key, "text": text}, ensure_ascii=False).encode()
        for key, text in TEXTS.items()
    ]
    import gzip

    s3.filesystem.pipe_file(
        f"{s3.key}/in/a.jsonl.gz", gzip.compress(b"\n".join(lines[:100]), mtime=0)
    )
    s3.filesystem.pipe_file(f"{s3.key}/in/b.jsonl", b"\n".join(lines[100:200]))
    s3.filesystem.pipe_file(f"{s3.key}/in/c.jsonl", b"\n".join(lines[200:]))
    return write_spec(tmp_path / "job.yaml", s3.uri, s3.storage_options, bert_mean_dir)


def write_spec(path: Path, uri: str, options: dict[str, Any], model: Path) -> Path:
    fields = {
        "name": "faults",
        "input": {"uri": f"{uri}/in", "id_column": "id", "storage_options": options},
        "model": {"path": str(model)},
        "output": {"uri": f"{uri}/out", "storage_options": options},
        "runtime": {"device": "cpu", "part_bytes": "1024", "embedders": 1},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


def start(spec: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "run", str(spec), "--json"]
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def n_manifests(s3: Any) -> int:
    s3.filesystem.invalidate_cache()
    return len(s3.filesystem.find(f"{s3.key}/out/_meta/manifests"))


def assert_output_is_the_input(s3: Any) -> None:
    store = Store(f"{s3.uri}/out", s3.storage_options)
    table = dataset.open_dataset(store.uri, storage_options=s3.storage_options).to_table()
    hashes = dict(zip(table["doc_id"].to_pylist(), table["text_sha256"].to_pylist(), strict=True))
    assert table.num_rows == N_DOCUMENTS
    assert hashes == {key: hashlib.sha256(text.encode()).hexdigest() for key, text in TEXTS.items()}
    parts = live_parts(store, load_snapshot(store))
    listed = {file.path for part in parts for file in part.data_files}
    assert set(store.list("data")) == listed  # nothing under data/ that no snapshot names


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([signal.SIGKILL], id="once"),
        pytest.param([signal.SIGKILL, signal.SIGTERM] * 5, id="ten times", marks=pytest.mark.slow),
    ],
)
def test_a_driver_killed_at_random_moments_loses_and_doubles_nothing_and_embeds_nothing_twice(
    s3: Any, job: Path, kills: list[signal.Signals], tmp_path: Path
) -> None:
    """However fast a run is, it waits before its commit until it is killed."""
    chance = random.Random(7)
    embedded = n_kills = 0
    for number, kill_with in enumerate(kills):
        before, n_parts = n_manifests(s3), chance.randint(1, 2)
        points = tmp_path / f"points-{number}"
        points.mkdir()
        has_embedded_all = points / "before_file_list_put.hit"
        process = start(
            job,
            CORPUS_EMBED_FAILPOINT="before_file_list_put:pause",
            CORPUS_EMBED_FAILPOINT_DIR=str(points),
        )
        deadline = time.monotonic() + PATIENCE_S
        while (
            process.poll() is None
            and n_manifests(s3) < before + n_parts
            and not has_embedded_all.exists()
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        process.send_signal(kill_with)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (-9, 143), err[-3000:]
        n_kills += 1
        time.sleep(1)
        embedded = n_manifests(s3)
        if has_embedded_all.exists():
            break
        assert embedded > before
    assert n_kills >= min(3, len(kills))
    result = finish(start(job))
    assert result["plan"]["parts_done"] >= embedded > 0
    assert result["run"]["parts"] == result["snapshot"]["n_parts"] - result["plan"]["parts_done"]
    assert_output_is_the_input(s3)


@pytest.mark.slow  # tests/workers/test_worker_kills.py kills one worker of every stage
@pytest.mark.parametrize("place", ["after_data_put", "after_manifest_put"])
def test_a_writer_killed_between_two_steps_is_replaced_within_the_run(
    s3: Any, job: Path, tmp_path: Path, place: str
) -> None:
    finish(
        start(job, CORPUS_EMBED_FAILPOINT=f"{place}:kill", CORPUS_EMBED_FAILPOINT_DIR=str(tmp_path))
    )
    assert (tmp_path / f"{place}.hit").exists()
    assert_output_is_the_input(s3)


@pytest.mark.slow  # tests/output/test_protocol_kills.py has every place without Ray
def test_a_driver_killed_just_before_its_snapshot_commits_it_when_started_again_without_embedding(
    s3: Any, job: Path, tmp_path: Path
) -> None:
    killed = start(
        job,
        CORPUS_EMBED_FAILPOINT="after_file_list_put:kill",
        CORPUS_EMBED_FAILPOINT_DIR=str(tmp_path),
    )
    killed.communicate(timeout=PATIENCE_S)
    assert killed.returncode == -9
    result = finish(start(job))
    assert not result["embedded"]
    assert result["snapshot"]["number"] == 1
    assert_output_is_the_input(s3)


@pytest.mark.slow  # tests/output/test_races.py and test_chaos.py race without Ray
def test_two_runs_of_one_job_at_once_end_in_one_snapshot(s3: Any, job: Path) -> None:
    first, second = start(job), start(job)
    results = [finish(first), finish(second)]
    assert [result["snapshot"]["n_rows"] for result in results] == [N_DOCUMENTS] * 2
    assert [result["snapshot"]["number"] for result in results] == [1, 1]
    assert_output_is_the_input(s3)


@pytest.mark.slow  # tests/driver/test_chaos.py has it without Ray
def test_a_fifth_of_all_s3_requests_failing_changes_nothing(
    s3: Any, job: Path, tmp_path: Path, bert_mean_dir: Path
) -> None:
    with FaultProxy(s3.endpoint_url) as proxy:
        proxy.add(Rule("status", status=503, probability=0.08))
        proxy.add(Rule("reset", probability=0.06))
        proxy.add(Rule("lost", method="PUT", probability=0.15))
        options = {**s3.storage_options, "endpoint_url": proxy.endpoint_url}
        finish(start(write_spec(tmp_path / "proxied.yaml", s3.uri, options, bert_mean_dir)))
        failed = [entry for entry in proxy.log if entry.fault]
        assert len(failed) > 0.05 * len(proxy.log)
    assert_output_is_the_input(s3)
