"""The node types of cluster.yaml under Ray's own autoscaler, with the provider that starts nodes on
this machine.

Oracle: Ray's list of nodes. CPUs are an eighth of those in the file, because Ray starts a process
for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.output import dataset
from tests.driver.test_cluster import done, job
from tests.support.ray_cluster import ROOT, RayCluster, ray_cluster
from tests.support.s3_server import _free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOST_GPUS = 2


def autoscaling(folder: Path, port: int) -> Path:
    """cluster.yaml for the fake provider: its types, limits and speed."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    types: dict[str, Any] = {
        name: {
            "resources": {**node["resources"], "CPU": node["resources"]["CPU"] // 8, name: 1},
            "node_config": {},
            "min_workers": node["min_workers"],
            "max_workers": min(node["max_workers"], MOST_GPUS),
        }
        for name, node in cluster["available_node_types"].items()
        if name != "head"
    }
    config = {
        "cluster_name": "fake_multinode",
        "max_workers": cluster["max_workers"],
        "upscaling_speed": cluster["upscaling_speed"],
        "idle_timeout_minutes": 0.5,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,  # its nodes share one address
            # nothing is installed on them
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **types,
        },
        "head_node_type": "ray.head.default",
        # the launcher would fill these in
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    return path


def count(cluster: RayCluster, name: str) -> int:
    return sum(
        name in node["resources_total"]
        for node in cluster.ask("nodes?detail=1")
        if node["state"] == "ALIVE"
    )


def test_a_job_brings_gpu_nodes_up_from_none_to_the_limit_and_idle_ones_go_again(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    (port,) = _free_ports(1)
    config = f"--autoscaling-config={autoscaling(tmp_path, port)}"
    env = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "FAKE_GPU_SECONDS": "2"}
    with ray_cluster(config, port=port, **env) as cluster:
        cluster.wait_until(lambda: count(cluster, "cpu-worker") == 1, "the first CPU worker")
        assert count(cluster, "gpu-worker") == 0
        submission = cluster.submit(job(tmp_path, bert_mean_dir, shards=60))
        cluster.wait_until(
            lambda: count(cluster, "gpu-worker") == MOST_GPUS, "GPU workers up to the limit"
        )
        done(submission)
        assert len({call["node"] for call in cluster.calls()}) == MOST_GPUS
        assert dataset.open_dataset(str(tmp_path / "out")).count_rows() == 60 * 30
        cluster.wait_until(lambda: count(cluster, "gpu-worker") == 0, "idle GPU workers given back")
        assert count(cluster, "cpu-worker") >= 1  # min_workers
