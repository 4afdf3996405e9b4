"""Workers, nodes and the head killed in the middle of real runs: rows, vectors and manifests are
those of a quiet run.

Oracle: `run_without_ray` over the same documents, and the files under data/.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.driver.cluster import watch
from pipeline.driver.cluster.on_ray import run
from pipeline.observe.progress import Progress
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from tests.support.outputs import make_spec, run_without_ray, write_shard
from tests.support.processes import Killer, kill_when_seen, named

pytestmark = [pytest.mark.ray, pytest.mark.faults]

PREPARE, EMBED, WRITE = (
    "ray::MapWorker(MapBatches(PrepareParts))",
    "ray::MapWorker(MapBatches(EmbedParts))",
    "ray::Write",
)
N_DOCUMENTS = 240


def write_input(folder: Path, n_documents: int) -> str:
    texts = [
        "A function returns its argument. ",
        "東京は日本の首都です。",
        "The printer is out of paper. ",
    ]
    docs = [
        {"id": f"d{i:03d}", "text": f"{i} " + texts[i % 3] * (1 + i % 9)}
        for i in range(n_documents)
    ]
    for n, name in enumerate(("a.jsonl.gz", "b.jsonl", "c.jsonl")):
        write_shard(folder / name, docs[n::3])
    return str(folder)


@pytest.fixture
def input_uri(tmp_path: Path) -> str:
    return write_input(tmp_path / "in", N_DOCUMENTS)


def spec_of(input_uri: str, output: Path, model: Path, **runtime: Any) -> Any:
    return make_spec(
        input_uri,
        str(output),
        model,
        input={"keep_columns": []},
        runtime={"part_bytes": 1500, "embedders": 1, **runtime},
    )


def start(spec: Any, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True))
    )
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        str(tmp_path / "job.yaml"),
        "--json",
        *arguments,
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 600) -> dict[str, Any]:
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err[-3000:]
    report: dict[str, Any] = json.loads(out)
    return report


def check_output(tmp_path: Path, spec: Any, model: Path, n_documents: int = N_DOCUMENTS) -> None:
    run_without_ray(spec_of(spec.input.uri[0], tmp_path / "oracle", model))
    rows, oracle = (
        open_dataset(uri).to_table().sort_by("doc_id")
        for uri in (spec.output.uri, str(tmp_path / "oracle"))
    )
    assert rows.num_rows == n_documents
    for column in ("doc_id", "text_sha256", "n_tokens", "source_uri", "source_record", "part_id"):
        assert rows[column].to_pylist() == oracle[column].to_pylist(), column
    vectors = [np.stack(table["embedding"].to_numpy()) for table in (rows, oracle)]
    # float32 sums in other orders, as in tests/embed/test_engine.py
    np.testing.assert_allclose(*vectors, atol=2e-5)
    store = Store(spec.output.uri)
    parts = live_parts(store, load_snapshot(store))
    assert set(store.list("data")) == {file.path for part in parts for file in part.data_files}
    assert sum(part.n_records for part in parts) == n_documents


@pytest.mark.usefixtures("ray_local")
def test_killed_workers_of_every_stage_cost_no_row_and_double_none(
    tmp_path: Path, input_uri: str, bert_mean_dir: Path
) -> None:
    spec = spec_of(input_uri, tmp_path / "out", bert_mean_dir)
    # Seed 5 kills tokenizers first, then embedders: both are there and needed for seconds.
    killer = Killer(os.getpid(), [PREPARE, EMBED, WRITE], n_kills=3, seed=5, pause_s=0.5)
    killer.start()
    result = run(spec)
    killer.stopped.set()
    killer.join()
    assert killer.killed[:2] == [PREPARE, EMBED]  # a writer can be gone before it is seen
    check_output(tmp_path, spec, bert_mean_dir)
    assert result.progress["worker_restarts"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "n_documents", "n_kills"), [(11, 3000, 30), (12, 3000, 60)])
def test_a_run_under_steady_kills_ends_in_the_same_rows(
    tmp_path: Path, bert_mean_dir: Path, seed: int, n_documents: int, n_kills: int
) -> None:
    spec = spec_of(write_input(tmp_path / "in", n_documents), tmp_path / "out", bert_mean_dir)
    process = start(spec, tmp_path)
    killer = Killer(process.pid, [PREPARE, EMBED, WRITE], n_kills=n_kills, seed=seed, pause_s=0.7)
    killer.start()
    result = finish(process, 800)
    killer.stopped.set()
    killer.join()
    check_output(tmp_path, spec, bert_mean_dir, n_documents)
    print(json.dumps({"kills": len(killer.killed), "parts": result["run"]["parts"]}))
    assert len(killer.killed) >= n_kills // 2
    assert result["run"]["worker_restarts"] >= 3
    # parts whose workers were killed from outside are not blamed
    assert result["snapshot"]["n_rejects"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_a_run_says_which_part_hangs_where_and_for_how_long_and_goes_on_when_it_does(
    tmp_path: Path, input_uri: str, bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stands still is not dead: nobody ends it, but nobody waits for it without a
    word."""
    monkeypatch.setattr(watch, "STALLED_S", 0.5)
    spec, stopped, named_for_s = (
        spec_of(input_uri, tmp_path / "out", bert_mean_dir),
        list[int](),
        list[int](),
    )
    at_the_latest = list[threading.Timer]()

    def stop_and_listen(progress: Progress, notes: list[str]) -> None:
        """Stop the first process that is said to be at work, until it is said to have been so for
        some seconds."""
        for note in notes:
            match = re.search(
                r"waiting for .*(?:part \w+|, loading,) for (\d+) s in process (\d+)"
                r" of node [\d.]+",
                note,
            )
            if match and not stopped:
                stopped.append(int(match[2]))
                os.kill(stopped[0], signal.SIGSTOP)
                at_the_latest.append(threading.Timer(60, os.kill, [stopped[0], signal.SIGCONT]))
                at_the_latest[0].start()
            elif match and int(match[2]) == stopped[0] and int(match[1]) >= 4 and not named_for_s:
                named_for_s.append(int(match[1]))
                os.kill(stopped[0], signal.SIGCONT)

    run(spec, watch=stop_and_listen)
    at_the_latest[0].cancel()
    assert named_for_s
    check_output(tmp_path, spec, bert_mean_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_whose_head_dies_ends_in_bounded_time_with_an_error_and_resumes(
    tmp_path: Path, input_uri: str, bert_mean_dir: Path
) -> None:
    spec = spec_of(input_uri, tmp_path / "out", bert_mean_dir)
    # a writer stands still at its first file, so that the run cannot end before its head
    failpoint = {"CORPUS_EMBED_FAILPOINT": "before_data_put:pause"}
    process = start(spec, tmp_path, **failpoint, CORPUS_EMBED_FAILPOINT_DIR=str(tmp_path))
    while not (tmp_path / "before_data_put.hit").exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.1)
    died = time.monotonic()
    assert kill_when_seen(process.pid, "gcs_server")
    process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    print(f"the driver ended {time.monotonic() - died:.0f} s after the head")
    finish(start(spec, tmp_path))
    check_output(tmp_path, spec, bert_mean_dir)


@pytest.fixture
def make_cluster() -> Iterator[Any]:
    """Starts clusters of several raylets on this machine. Their health checks find a dead node in
    seconds."""
    from ray.cluster_utils import Cluster

    checks = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 2000,
        "health_check_failure_threshold": 5,
    }
    made = []

    def make(**head: Any) -> Cluster:
        made.append(
            Cluster(initialize_head=True, head_node_args={**head, "_system_config": checks})
        )
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_dies_with_its_workers_and_blocks_costs_no_row(
    tmp_path: Path, input_uri: str, bert_mean_dir: Path, make_cluster: Any
) -> None:
    cluster = make_cluster(num_cpus=1)  # the driver's node, which stays
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    spec = spec_of(input_uri, tmp_path / "out", bert_mean_dir, embedders=2, tokenizers=2)
    process = start(spec, tmp_path, "--address", cluster.address)
    embeds: list[Any] = []
    while not embeds:
        assert process.poll() is None, process.communicate()[1][-3000:]
        embeds = [
            node for node in nodes if named(node.all_processes["raylet"][0].process.pid, EMBED)
        ]
        time.sleep(0.1)
    time.sleep(random.Random(5).uniform(0, 2))
    cluster.remove_node(embeds[0], allow_graceful=False)
    finish(process)
    check_output(tmp_path, spec, bert_mean_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_larger_than_the_object_store_finishes(
    tmp_path: Path, bert_mean_dir: Path, make_cluster: Any
) -> None:
    words = "A function returns its argument. " * 30_000
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": f"d{i:03d}", "text": f"{i} {words}"} for i in range(200)]
    )
    spec = spec_of(
        str(tmp_path / "in"),
        tmp_path / "out",
        bert_mean_dir,
        part_bytes="4MiB",
        embedders=1,
        tokenizers=1,
    )
    # 200 MB of text pass through 80
    cluster = make_cluster(num_cpus=2, object_store_memory=80 << 20)
    finish(start(spec, tmp_path, "--address", cluster.address))
    assert open_dataset(spec.output.uri).to_table(columns=["doc_id"]).num_rows == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_output_disk_fails_with_its_name_and_the_run_resumes_when_there_is_room(
    tmp_path: Path, input_uri: str, bert_mean_dir: Path, small_disk: Any
) -> None:
    output = small_disk(tmp_path / "out", "200k")
    spec = spec_of(input_uri, output, bert_mean_dir)
    process = start(spec, tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "no room" in err
    assert str(output) in err
    assert load_snapshot(Store(str(output))) is None
    subprocess.run(["mount", "-o", "remount,size=64m", str(output)], check=True)
    result = finish(start(spec, tmp_path))
    assert result["plan"]["parts_done"] > 0
    check_output(tmp_path, spec, bert_mean_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_spill_disk_ends_the_run_or_slows_it_and_a_roomy_one_finishes(
    tmp_path: Path, bert_mean_dir: Path, make_cluster: Any, small_disk: Any
) -> None:
    words = "A function returns its argument. " * 30_000
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": f"d{i:03d}", "text": f"{i} {words}"} for i in range(200)]
    )
    spec = spec_of(
        str(tmp_path / "in"),
        tmp_path / "out",
        bert_mean_dir,
        part_bytes="16MiB",
        embedders=1,
        tokenizers=1,
    )
    spill = small_disk(tmp_path / "spill", "4m")
    cluster = make_cluster(
        num_cpus=2, object_store_memory=80 << 20, object_spilling_directory=str(spill)
    )
    process = start(spec, tmp_path, "--address", cluster.address)
    process.communicate(timeout=300)
    print(f"with a full spill disk the run ended with exit code {process.returncode}")
    if process.returncode:
        roomy = make_cluster(num_cpus=2, object_store_memory=200 << 20)
        finish(start(spec, tmp_path, "--address", roomy.address))
    assert open_dataset(spec.output.uri).to_table(columns=["doc_id"]).num_rows == 200
