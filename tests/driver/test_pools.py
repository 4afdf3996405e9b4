"""Sizes of the pools, from a real cluster's resources: what is there now, and what may join."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.driver.cluster.devices import pool_sizes
from pipeline.driver.cluster.job_plan import device_of
from pipeline.driver.cluster.on_ray import run
from pipeline.errors import ModelError, SpecError
from pipeline.job.resolve import resolve
from tests.conftest import RAY_CPUS
from tests.support.outputs import make_spec, write_shard

pytestmark = [pytest.mark.usefixtures("ray_local")]


def sizes(
    model: Path, device: str, n_parts: int, **runtime: object
) -> tuple[tuple[int, int], tuple[int, int], float]:
    """(now, most) tokenizers, (now, most) embedders, and the CPUs that all pools book."""
    job = resolve(make_spec("in", "out", model, runtime={"device": device, **runtime}), device)
    pools = pool_sizes(job, 100, n_parts)
    booked = sum(
        pool.min_workers * pool.cpus for pool in (pools.tokenizers, pools.embedders, pools.writers)
    )
    assert pools.embedders.gpus == (device == "cuda")
    tokenizers, embedders = pools.tokenizers, pools.embedders
    return (
        (tokenizers.min_workers, tokenizers.max_workers),
        (embedders.min_workers, embedders.max_workers),
        booked,
    )


def test_cpu_pools_fill_the_cores_that_are_there_and_embedders_may_grow_to_the_number_of_parts(
    bert_mean_dir: Path,
) -> None:
    tokenizers, embedders, booked = sizes(bert_mean_dir, "cpu", 50)
    assert (tokenizers, embedders) == ((1, 1), (RAY_CPUS, 50))
    assert booked <= RAY_CPUS
    assert sizes(bert_mean_dir, "cpu", 1)[1] == (1, 1)
    assert sizes(bert_mean_dir, "cpu", 50, embedders=1)[1] == (1, 1)


def test_gpu_pools_begin_before_a_gpu_node_is_there_and_leave_its_cpus_to_others(
    bert_mean_dir: Path,
) -> None:
    tokenizers, embedders, booked = sizes(bert_mean_dir, "cuda", 50)
    assert (tokenizers, embedders) == ((1, 100), (1, 50))
    assert booked < RAY_CPUS
    assert sizes(bert_mean_dir, "cuda", 50, embedders=3, tokenizers=2)[:2] == ((2, 2), (1, 3))


def test_auto_on_a_cluster_without_a_gpu_is_refused_and_says_what_to_set(
    bert_mean_dir: Path,
) -> None:
    spec = make_spec("in", "out", bert_mean_dir, runtime={"device": "auto"})
    with pytest.raises(SpecError, match=r"Set runtime\.device to cuda"):
        device_of(spec, "127.0.0.1:6379")
    assert device_of(spec, None) == "cpu"


def test_what_stops_a_worker_at_its_start_is_the_error_of_the_run(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    """Ray keeps only the text of an error in a constructor. Here a node has other model files than
    the plan."""
    model = tmp_path / "model"
    shutil.copytree(bert_mean_dir, model)
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "A text.", "lang": "en"}])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), model)
    with pytest.raises(
        ModelError, match="the model files on this node differ from those the run was planned with"
    ):
        run(
            spec,
            on_plan=lambda plan: (
                (model / "README.md").unlink() or (model / "vocab.txt").write_text("[UNK]\n")
            ),
        )
