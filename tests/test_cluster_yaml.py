"""cluster.yaml is one that Ray's launcher takes, and says what this project needs.

Oracle: the JSON Schema inside the installed Ray wheel, which `ray up` checks too, and
constraints.txt.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests import ROOT


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def node_types(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return cluster["available_node_types"]


def test_it_is_valid_against_rays_own_schema(cluster: dict[str, Any]) -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads(
        (Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8")
    )
    jsonschema.validate(cluster, schema)
    # the schema is closed, so a misspelt key would be found
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_resources_are_whole_numbers_and_only_workers_work(
    node_types: dict[str, dict[str, Any]],
) -> None:
    resources = {name: node["resources"] for name, node in node_types.items()}
    assert all(type(amount) is int for amounts in resources.values() for amount in amounts.values())
    assert resources["head"]["CPU"] == 0
    assert [name for name, amounts in resources.items() if amounts.get("GPU")] == ["gpu-worker"]


def test_workers_fit_the_limit_of_the_cluster_and_gpus_are_spot(
    cluster: dict[str, Any], node_types: dict[str, dict[str, Any]]
) -> None:
    workers = {name: node for name, node in node_types.items() if name != cluster["head_node_type"]}
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]
    assert all(0 <= node["min_workers"] <= node["max_workers"] for node in workers.values())
    assert node_types["gpu-worker"]["min_workers"] == 0  # an idle cluster pays for no GPU
    assert node_types["gpu-worker"]["node_config"]["InstanceMarketOptions"] == {
        "MarketType": "spot"
    }
    # losing it ends the job
    assert "InstanceMarketOptions" not in node_types["head"]["node_config"]


def test_every_image_has_the_ray_that_is_pinned(
    cluster: dict[str, Any], node_types: dict[str, dict[str, Any]]
) -> None:
    pinned = re.search(
        r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert pinned
    images = [cluster["docker"]["image"]]
    images += [node["docker"]["worker_image"] for node in node_types.values() if "docker" in node]
    assert all(image.startswith(f"rayproject/ray:{pinned[1]}-py311") for image in images)


def test_setup_installs_this_checkout_with_the_constraints(cluster: dict[str, Any]) -> None:
    (setup,) = cluster["setup_commands"]
    mounted = [target for target, source in cluster["file_mounts"].items() if source == "."]
    assert mounted == ["/home/ray/corpus-embed"]
    assert mounted[0] in setup
    assert "-c constraints.txt" in setup
    assert ".venv/**" in cluster["rsync_exclude"]


def test_ray_is_started_with_authentication_and_no_secret_is_in_the_file(
    cluster: dict[str, Any],
) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    assert not re.search(r"AKIA|aws_secret|RAY_AUTH_TOKEN=", text)
