"""Jobs on a cluster of several nodes, through the job server: on which nodes stages run, and the
guarantees of a submission.

Oracle: Ray's own list of actors and nodes, the calls that the stand-in for a GPU recorded, and the
rows in storage.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.output import dataset
from tests.support.outputs import make_spec, write_shard
from tests.support.ray_cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PART_S = 1.0


def job(folder: Path, model: Path, *, shards: int, uri: str | None = None, **sections: Any) -> str:
    """A spec on disk for a GPU job over `shards` shards of two parts each; input and output are
    below `uri`."""
    for shard in range(shards):
        documents = [
            {"id": f"{shard}-{n}", "text": f"Document {n} of shard {shard}. " * 3}
            for n in range(30)
        ]
        write_shard(folder / f"in/{shard:03d}.jsonl", documents)
    uri = uri or str(folder)
    runtime = {"device": "cuda", "part_bytes": "2KiB", **sections.pop("runtime", {})}
    spec = make_spec(
        f"{uri}/in",
        f"{uri}/out",
        model,
        **{
            "model": {"dtype": "float32"},
            "input": {"keep_columns": []},
            "runtime": runtime,
            **sections,
        },
    )
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return str(path)


def done(submission: subprocess.Popen[str]) -> str:
    """The log of a submission, which must succeed."""
    log, _ = submission.communicate(timeout=400)
    assert submission.returncode == 0, log
    return log


@pytest.fixture(scope="module")
def cluster(s3_or_none: object) -> Iterator[RayCluster]:
    """A head, a node of two CPUs, a "GPU" node. The S3 server's keys are in the environment of all
    of them."""
    with ray_cluster(FAKE_GPU_SECONDS=str(PART_S)) as running:
        running.add_node("cpu", cpus=2)
        running.add_node("gpu", cpus=1, gpus=1)
        yield running


def test_a_submitted_job_tokenizes_on_cpu_nodes_and_keeps_the_gpu_node_embedding(
    cluster: RayCluster, tmp_path: Path, bert_mean_dir: Path, s3: Any
) -> None:
    storage = {"storage_options": s3.storage_options}
    spec = job(
        tmp_path,
        bert_mean_dir,
        shards=8,
        uri=s3.uri,
        input={**storage, "keep_columns": []},
        output=storage,
    )
    s3.filesystem.put(str(tmp_path / "in"), f"{s3.key}/in", recursive=True)
    before = len(cluster.calls())
    log = done(cluster.submit(spec, "--nominal-time", "2026-11-22T02:00:00Z"))
    assert "snapshot 1" in log
    rows = dataset.open_dataset(f"{s3.uri}/out", storage_options=s3.storage_options).to_table(
        columns=["doc_id"]
    )
    assert sorted(rows["doc_id"].to_pylist()) == sorted(
        f"{shard}-{n}" for shard in range(8) for n in range(30)
    )
    assert set(cluster.workers("PrepareParts").values()) == {"cpu"}
    assert set(cluster.workers("EmbedParts").values()) == {"gpu"}
    calls = cluster.calls()[before:]
    gaps = [max(0.0, later["begin"] - call["end"]) for call, later in itertools.pairwise(calls)]
    # Embedding a part takes a second and tokenizing it a few milliseconds, so from the second part
    # on the embedder never has to wait.
    assert sum(gaps[1:]) < 0.2 * PART_S * len(gaps), gaps


def test_the_embed_pool_grows_onto_a_gpu_node_that_joins_late(
    cluster: RayCluster, tmp_path: Path, bert_mean_dir: Path
) -> None:
    before = len(cluster.calls())
    submission = cluster.submit(job(tmp_path, bert_mean_dir, shards=60))
    cluster.wait_until(lambda: len(cluster.calls()) > before + 2, "the first parts")
    try:
        cluster.add_node("late", cpus=1, gpus=1)
        done(submission)
        calls = cluster.calls()[before:]
        late = [call for call in calls if call["node"] == "late"]
        assert len(late) > 5
        assert any(
            call["begin"] < other["end"]
            for call in late
            for other in calls
            if other["node"] == "gpu"
        )
        assert set(cluster.workers("PrepareParts").values()) == {"cpu"}
    finally:
        cluster.kill_node("late")
    assert dataset.open_dataset(str(tmp_path / "out")).count_rows() == 60 * 30


def test_submitting_twice_follows_one_job_and_a_failed_one_is_submitted_anew_with_its_exit_code(
    cluster: RayCluster, tmp_path: Path, bert_mean_dir: Path
) -> None:
    spec = job(tmp_path, tmp_path / "no-model", shards=1)
    arguments = [spec, "--nominal-time", "2026-11-22T02:00:00+09:00"]
    first = cluster.submit(*arguments)
    log, _ = first.communicate(timeout=200)
    assert first.returncode == 2, log  # of ModelError in the driver on the cluster
    assert "ModelError" in log
    assert cluster.env["RAY_AUTH_TOKEN"] not in log
    again = cluster.submit(*arguments)
    assert "-20261121T170000Z-" in (log := again.communicate(timeout=200)[0])
    assert "-2\n" in log
    spec = job(tmp_path, bert_mean_dir, shards=1)
    submissions = [cluster.submit(spec, "--nominal-time", "2026-11-22") for _ in range(2)]
    logs = [done(submission) for submission in submissions]
    assert sum("submitted corpus-embed-" in log for log in logs) == 1
    assert all("snapshot 1" in log for log in logs)
    assert "already exists (SUCCEEDED)" in done(
        cluster.submit(spec, "--nominal-time", "2026-11-22")
    )


def test_ctrl_c_stops_the_job_when_asked_and_only_then(
    cluster: RayCluster, tmp_path: Path, bert_mean_dir: Path
) -> None:
    spec = job(tmp_path, bert_mean_dir, shards=30)
    before = len(cluster.calls())
    arguments = [spec, "--nominal-time", "2026-11-22T03:00:00Z"]
    submission = cluster.submit(*arguments)
    cluster.wait_until(lambda: len(cluster.calls()) > before, "the first part")
    os.killpg(submission.pid, signal.SIGINT)
    log, _ = submission.communicate(timeout=60)
    assert (submission.returncode, "keeps running" in log) == (130, True)
    follower = cluster.submit(*arguments, "--stop-on-interrupt")
    cluster.wait_until(
        lambda: any("already exists" in line for line in [follower.stdout.readline()]),
        "following",
    )
    os.killpg(follower.pid, signal.SIGINT)
    log, _ = follower.communicate(timeout=100)
    assert follower.returncode == 143, log
    assert not dataset_is_complete(tmp_path)


def dataset_is_complete(folder: Path) -> bool:
    return any((folder / "out/_meta/snapshots").glob("*.json"))


def test_a_wrong_token_and_a_wrong_address_are_told_in_our_words(
    cluster: RayCluster, tmp_path: Path
) -> None:
    spec = job(tmp_path, tmp_path / "no-model", shards=1)
    for env in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}):
        refused = cluster.submit(spec, **env)
        log, _ = refused.communicate(timeout=400)
        assert refused.returncode == 1
        assert log.startswith("ClusterError: job server")
        assert "f" * 64 not in log
