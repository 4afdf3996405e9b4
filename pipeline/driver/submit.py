"""From outside a cluster: a job spec goes in through Ray's job server, its log comes back, and the
exit code at the end.

The resolved spec travels as the working directory of the job, and `python -m pipeline refresh` runs
it there: with the package of the nodes' image, or with the code that was sent along. The submission
id is derived from spec and nominal time, so a scheduler that submits twice follows one job. A job
that failed or was stopped is submitted anew, as `…-2`. Ray's client finds the token by itself
(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token); nothing here reads it.
"""

from __future__ import annotations

import datetime
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
import requests
import tenacity
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import ClusterError, SpecError
from pipeline.job.spec import JobSpec
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import content_hash

T = TypeVar("T")

POLL_S = 2.0
LOST_S = 300.0
"""How long the job server may be out of reach before following ends; the job itself goes on."""


def submit(
    spec: JobSpec,
    address: str | None,
    *,
    say: Callable[[str], None],
    nominal_time: datetime.datetime | None = None,
    code: str | None = None,
    runtime_env: str | None = None,
    driver_cpus: float = 0.0,
    stop_on_interrupt: bool = False,
) -> int:
    """Submit a refresh of `spec`, or follow the one that is there; returns its exit code (130: no
    longer followed).

    address: of the job server; RAY_API_SERVER_ADDRESS and RAY_ADDRESS come first, as everywhere in
    Ray. The log goes to standard output, our own words to `say`. Raises SpecError, or ClusterError
    when the job server cannot be reached or refuses.
    """
    environment = _environment(runtime_env, code)
    when = f"{nominal_time.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}" if nominal_time else ""
    base = submission_id(spec, nominal_time or datetime.datetime.now(datetime.UTC))
    client = _asked(address, lambda: JobSubmissionClient(address))
    names = itertools.chain([base], (f"{base}-{attempt}" for attempt in itertools.count(2)))

    def known() -> dict[str | None, JobStatus]:
        return {job.submission_id: job.status for job in _asked(address, client.list_jobs)}

    there = known()
    job_id = next(
        name for name in names if there.get(name) not in (JobStatus.FAILED, JobStatus.STOPPED)
    )
    if job_id not in there:
        entrypoint = "python -m pipeline refresh job.yaml" + (
            f" --nominal-time {when}" if when else ""
        )
        metadata = {"job": spec.name, "output": shown(spec.output.uri), "nominal_time": when}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "job.yaml").write_text(spec.to_yaml(), encoding="utf-8")
            environment["working_dir"] = folder
            try:
                _asked(
                    address,
                    lambda: client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata=metadata,
                        entrypoint_num_cpus=driver_cpus or None,
                    ),
                )
                say(f"submitted {job_id}")
            except (
                ClusterError
                # also when another process was faster, or our own request landed and its answer was
                # lost
            ):
                there = known()
                if job_id not in there:
                    raise
    if job_id in there:
        say(f"{job_id} is there already ({there[job_id]}); following it")
    try:
        return _follow(client, job_id)
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            say(f"{job_id} goes on; the same command with the same --nominal-time follows it again")
            return 130
        say(f"stopping {job_id}; finished parts are kept")
        client.stop_job(job_id)
        return _follow(client, job_id) or 130


def submission_id(spec: JobSpec, when: datetime.datetime) -> str:
    """The idempotence key of one refresh: the job, its nominal time in UTC, and a hash of the whole
    spec."""
    fields = spec.model_dump(mode="json")
    return f"corpus-embed-{spec.name}-{when.astimezone(datetime.UTC):%Y%m%dT%H%M%SZ}-{content_hash(fields, 8)}"


def _environment(runtime_env: str | None, code: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(runtime_env).read_text(encoding="utf-8")) if runtime_env else {}
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"--runtime-env {runtime_env}: cannot be read as YAML: {error}") from error
    if code:
        package = Path(code, "pipeline")
        if not (package / "__main__.py").exists():
            raise SpecError(
                f"--code {code}: there is no package `pipeline` in it; give the root of a checkout"
            )
        found |= {
            "py_modules": [*found.get("py_modules", []), str(package)],
            "excludes": ["**/__pycache__/"],
        }
    return dict(found)


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    """Copy the log of a job to standard output until it ends; returns its exit code (143: it was
    stopped)."""
    copied = 0
    while True:
        job = _asked(client.get_address(), lambda: client.get_job_info(job_id))
        log = _asked(client.get_address(), lambda: client.get_job_logs(job_id))
        sys.stdout.write(log[copied:])
        sys.stdout.flush()
        copied = max(copied, len(log))
        if job.status.is_terminal():
            break
        time.sleep(POLL_S)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    return 143 if job.status == JobStatus.STOPPED else job.driver_exit_code or 1


def _asked(address: str | None, request: Callable[[], T]) -> T:
    """One request to the job server, again while it cannot be reached."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((requests.ConnectionError, requests.Timeout)),
        wait=tenacity.wait_random_exponential(max=20),
        stop=tenacity.stop_after_delay(LOST_S),
        reraise=True,
    )
    try:
        return retrying(request)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"job server {shown(address or 'of RAY_ADDRESS')}: {reason(error)}. Check the address (`ray dashboard` or "
            "`kubectl port-forward` opens one) and the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN), then run the same command."
        ) from error
