"""What schedulers read: Kubernetes manifests, the image, the Airflow DAG. None of them runs on its
own system here; they are compared with the fields that those systems know.

Oracle: the fields of KubeRay's custom resources (v1.7), read from its CRDs by hand on 2026-11-23
and written down here; for the CronJob's script, bash with a stand-in for kubectl.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT

K8S = ROOT / "jobs" / "k8s"

RAYJOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAYCLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "historyServerOptions",
    "managedBy",
    "networkPolicy",
    "rayVersion",
    "suspend",
    "tlsOptions",
    "upgradeStrategy",
    "workerGroupSpecs",
}
AUTOSCALER = {
    "args",
    "command",
    "env",
    "envFrom",
    "idleTimeoutSeconds",
    "image",
    "imagePullPolicy",
    "resources",
    "securityContext",
    "upscalingMode",
    "version",
    "volumeMounts",
}
WORKERS = {
    "groupName",
    "idleTimeoutSeconds",
    "labels",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "priority",
    "rayStartParams",
    "replicas",
    "resources",
    "scaleStrategy",
    "suspend",
    "template",
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((K8S / name).read_text(encoding="utf-8")))


def kind(name: str, kind_name: str) -> dict[str, Any]:
    (document,) = [document for document in documents(name) if document["kind"] == kind_name]
    return document


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return kind("rayjob.yaml", "RayJob")["spec"]


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]
    yield kind("cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_every_field_of_the_ray_job_is_one_that_kuberay_knows(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    assert set(job) <= RAYJOB
    assert set(cluster) <= RAYCLUSTER
    assert set(cluster["authOptions"]) <= {"mode", "secretName", "enableK8sTokenAuth"}
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert all(set(group) <= WORKERS for group in cluster["workerGroupSpecs"])
    assert job["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
    assert "submitterConfig" not in job  # SidecarMode refuses it
    # they exclude each other
    assert not (job["shutdownAfterJobFinishes"] and "deletionStrategy" in job)


def test_the_cluster_autoscales_within_limits_asks_for_a_token_and_has_the_pinned_ray(
    job: dict[str, Any],
) -> None:
    cluster = job["rayClusterSpec"]
    assert (cluster["enableInTreeAutoscaling"], cluster["authOptions"]["mode"]) == (True, "token")
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text(
        encoding="utf-8"
    )
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert all(
        group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 8
        for group in groups.values()
    )
    gpus = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"].get(
            "nvidia.com/gpu"
        )
        for name, group in groups.items()
    }
    assert gpus == {"cpu": None, "gpu": "1"}


def test_no_pod_runs_as_root_and_secrets_are_only_named(job: dict[str, Any]) -> None:
    for pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])
            values = [entry["name"] for entry in container.get("env", []) if "value" in entry]
            assert set(values) <= {"RAY_idle_worker_killing_time_threshold_ms"}
    for path in K8S.glob("*.yaml"):
        assert "Secret" not in {document["kind"] for document in documents(path.name)}


def test_the_ray_cron_job_has_the_same_job_and_only_fields_there_are(job: dict[str, Any]) -> None:
    cron = kind("raycronjob.yaml", "RayCronJob")
    assert (cron["apiVersion"], set(cron["spec"])) == (
        "ray.io/v1",
        {"schedule", "timeZone", "jobTemplate"},
    )
    assert cron["spec"]["jobTemplate"] == job


def test_the_cron_job_forbids_overlap_and_gives_up_late_ticks(job: dict[str, Any]) -> None:
    cron = kind("cronjob.yaml", "CronJob")["spec"]
    assert (cron["concurrencyPolicy"], cron["timeZone"]) == ("Forbid", "Asia/Tokyo")
    # under ten seconds the controller may miss every tick
    assert cron["startingDeadlineSeconds"] > 10 * 6
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > job["activeDeadlineSeconds"]
    (rule,) = kind("cronjob.yaml", "Role")["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}


@pytest.mark.parametrize(
    ("exists", "states", "code"),
    [
        (False, ["/", "Running/RUNNING", "Complete/SUCCEEDED"], 0),
        (True, ["Running/RUNNING", "Complete/SUCCEEDED"], 0),
        (False, ["Complete/FAILED"], 1),
        (False, ["Retrying/FAILED", "Failed/FAILED"], 1),
        (False, ["ValidationFailed/"], 1),
    ],
)
def test_the_cron_jobs_script_creates_one_job_with_its_nominal_time_and_ends_as_the_job_ends(
    tmp_path: Path, exists: bool, states: list[str], code: int
) -> None:
    container = kind("cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        "#!/bin/bash\n"
        f"cd {tmp_path}\n"
        'case "$*" in\n'
        '  "create -f -") cat > created ;;\n'
        "  *jsonpath*) head -n 1 states; sed -i 1d states ;;\n"
        f"  get*) {'true' if exists else '[ -e created ]'} ;;\n"
        "esac\n"
    )
    kubectl.chmod(0o755)
    script = container["args"][0].replace("/etc/rayjob/rayjob.yaml", str(K8S / "rayjob.yaml"))
    minutes = 29_405_820  # 2025-11-28T17:00:00Z
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "JOB_NAME": f"corpus-embed-{minutes}",
        "POLL_SECONDS": "0",
    }
    done = subprocess.run(
        [*container["command"], script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "states").read_text() == ""
    assert (tmp_path / "created").exists() is not exists
    if not exists:
        created = yaml.safe_load((tmp_path / "created").read_text())
        original = kind("rayjob.yaml", "RayJob")
        assert created["metadata"] == {
            "name": f"corpus-embed-{minutes}",
            "labels": original["metadata"]["labels"],
        }
        assert created["spec"].pop("entrypoint") == (
            f"{original['spec'].pop('entrypoint')} --nominal-time 2025-11-28T17:00:00Z"
        )
        assert created["spec"] == original["spec"]


def test_the_image_is_built_from_pinned_bases_by_a_user_that_is_not_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [
        line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")
    ]
    arguments = dict(value.split("=", 1) for word, value in lines if word == "ARG")
    ray = re.search(
        r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert ray
    assert arguments["BASE"] == f"rayproject/ray:{ray[1]}-py311"
    assert re.fullmatch(r".+:v\d+\.\d+\.\d+", arguments["KUBECTL"])
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for _, value in (line for line in lines if line[0] == "COPY" and "--from" not in line[1]):
        *sources, _target = [word for word in value.split() if not word.startswith("--")]
        assert all(
            (ROOT / source).exists() and f"!{source.rstrip('/')}" in ignored for source in sources
        )
    words = [word for word, _ in lines]
    users = [value for word, value in lines if word == "USER"]
    assert users == ["1000:100"]
    assert words.index("USER") < words.index("RUN")
    assert "-c constraints.txt" in text
    assert "ENTRYPOINT" not in words


def test_the_airflow_dag_submits_with_the_end_of_the_data_interval() -> None:
    """Without Airflow: the syntax tree. It was loaded once by Airflow itself; docs/operations.md
    says by which."""
    tree = ast.parse((ROOT / "jobs/airflow_dag.py").read_text(encoding="utf-8"))
    (operator,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "BashOperator"
    ]
    arguments = {keyword.arg: keyword.value for keyword in operator.keywords}
    command = eval(ast.unparse(arguments["bash_command"]), {"JOB": "job.yaml"})
    assert command == "corpus-embed submit job.yaml --nominal-time '{{ data_interval_end | ts }}'"
    (dag,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "DAG"
    ]
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in dag.keywords}[
        "max_active_runs"
    ] == "1"
