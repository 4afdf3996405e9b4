"""Running a job on a Ray cluster from outside: a job spec is sent to Ray's job server, the log of
the job is followed, and its exit code is returned.

The resolved spec is sent as the working directory of the job, and `python -m pipeline refresh` runs
it there: with the package of the nodes' image, or with code that is sent along. The submission id
is derived from spec and nominal time, so a scheduler that submits twice follows one job. A job that
failed or was stopped is submitted again, as `…-2`. Ray's client finds the token by itself
(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token); nothing here reads it.

The log is one stream over a websocket. It is transferred once, and again from its beginning after a
connection was lost; what was printed is then skipped.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import ray
import requests
import tenacity
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import ClusterError, SpecError
from pipeline.job.spec import JobSpec
from pipeline.storage.addresses import shown
from pipeline.storage.closed_yaml import YamlMistake, load_yaml
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import content_hash

T = TypeVar("T")

RECONNECT_S = 2.0
"""How long following waits before it opens a lost stream of the log again."""
SILENT_S = 300.0
"""How long the stream of the log can be silent before it counts as lost: a load balancer may have
dropped it. For a job that is silent itself the time doubles, since the whole log comes again."""
LOST_S = 300.0
"""How long the job server can be unreachable before following ends; the job keeps running."""


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
    options: Sequence[str] = (),
) -> int:
    """Submit a refresh of `spec`, or follow the job that was submitted before.

    options: more words of its command line. address: of the job server; RAY_API_SERVER_ADDRESS and
    RAY_ADDRESS take precedence. The log goes to standard output, messages to `say`. Returns the
    exit code of the job; 143 when it was stopped, 130 when Ctrl-C ended following. Raises
    SpecError or ClusterError.
    """
    environment = _environment(runtime_env, code)
    when = f"{nominal_time.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}" if nominal_time else ""
    first_id = submission_id(spec, nominal_time or datetime.datetime.now(datetime.UTC))
    client = _answer(address, lambda: JobSubmissionClient(address))
    job_ids = itertools.chain([first_id], (f"{first_id}-{n}" for n in itertools.count(2)))

    def job_statuses() -> dict[str | None, JobStatus]:
        return {job.submission_id: job.status for job in _answer(address, client.list_jobs)}

    statuses = job_statuses()
    ended_badly = (JobStatus.FAILED, JobStatus.STOPPED)
    job_id = next(job_id for job_id in job_ids if statuses.get(job_id) not in ended_badly)
    if job_id not in statuses:
        words = [*(["--nominal-time", when] if when else []), *options]
        metadata = {"job": spec.name, "output": shown(spec.output.uri), "nominal_time": when}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "job.yaml").write_text(spec.to_yaml(), encoding="utf-8")
            environment["working_dir"] = folder

            def submit_job() -> str:
                return client.submit_job(
                    entrypoint=shlex.join(
                        ["python", "-m", "pipeline", "refresh", "job.yaml", *words]
                    ),
                    submission_id=job_id,
                    runtime_env=environment,
                    metadata=metadata,
                    entrypoint_num_cpus=driver_cpus or None,
                )

            try:
                _answer(address, submit_job)
                say(f"submitted {job_id}")
            except ClusterError:
                # another process was faster, or the answer to an accepted request was lost
                statuses = job_statuses()
                if job_id not in statuses:
                    raise
    if job_id in statuses:
        say(f"{job_id} already exists ({statuses[job_id]}); following it")
    follower = _Follower(client, job_id)
    try:
        return follower.follow()
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            say(f"{job_id} keeps running; the same command and --nominal-time follow it again")
            return 130
        say(f"stopping {job_id}; finished parts are kept")
        _answer(address, lambda: client.stop_job(job_id))
        return follower.follow() or 130


def submission_id(spec: JobSpec, when: datetime.datetime) -> str:
    """The idempotence key of one refresh: the name of the job, its nominal time in UTC, and a hash
    of the whole spec."""
    spec_hash = content_hash(spec.model_dump(mode="json"), 8)
    return f"corpus-embed-{spec.name}-{when.astimezone(datetime.UTC):%Y%m%dT%H%M%SZ}-{spec_hash}"


def _environment(runtime_env: str | None, code: str | None) -> dict[str, Any]:
    """The Ray runtime environment of the job. Raises SpecError."""
    environment: dict[str, Any] = {}
    try:
        if runtime_env:
            fields = load_yaml(Path(runtime_env).read_bytes()) or {}
            if not isinstance(fields, dict):
                raise YamlMistake("a runtime environment is a mapping, such as env_vars: {…}")
            environment |= fields
    except (OSError, YamlMistake) as error:
        raise SpecError(f"--runtime-env {runtime_env}: {error}") from error
    if code:
        package = Path(code, "pipeline")
        if not (package / "__main__.py").exists():
            raise SpecError(
                f"--code {code}: the folder has no package `pipeline`; give the root of a checkout"
            )
        modules = environment.get("py_modules", [])
        environment |= {"py_modules": [*modules, str(package)], "excludes": ["**/__pycache__/"]}
    return environment


class _LogLost(Exception):
    """The stream of the log broke off before the end of the job, or was silent for too long."""


class _Follower:
    """Copies the log of a job to standard output until the job ends, each character once."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._address = client.get_address()
        self._n_printed = 0
        self._silent_s = SILENT_S

    def follow(self) -> int:
        """Returns the exit code of the job; 143 when it was stopped. Raises ClusterError when the
        job server cannot be reached for LOST_S, or does not deliver the log of a job that ended."""
        ended_s: float | None = None
        while True:
            loss: _LogLost | None = None
            try:
                self._copy_log()
            except _LogLost as error:
                loss = error
            job = _answer(self._address, lambda: self._client.get_job_info(self._job_id))
            if job.status.is_terminal():
                if loss is None:
                    break
                ended_s = ended_s or time.monotonic()
                if time.monotonic() - ended_s > LOST_S:
                    raise _cluster_error(self._address, loss) from loss
            time.sleep(RECONNECT_S)
        if job.status == JobStatus.SUCCEEDED:
            return 0
        return 143 if job.status == JobStatus.STOPPED else job.driver_exit_code or 1

    def _copy_log(self) -> None:
        n_received = 0
        for text in self._log():
            sys.stdout.write(text[max(0, self._n_printed - n_received) :])
            sys.stdout.flush()
            n_received += len(text)
            if n_received > self._n_printed:
                self._n_printed = n_received
                self._silent_s = SILENT_S

    def _log(self) -> Iterator[str]:
        """The log in pieces, from its beginning to the end of the job. Raises _LogLost, or
        ClusterError when the job server refuses the websocket."""
        with asyncio.Runner() as runner:
            pieces = self._client.tail_job_logs(self._job_id)
            while True:
                try:
                    text = runner.run(_next_piece(pieces, self._silent_s))
                except aiohttp.WSServerHandshakeError as error:
                    raise ClusterError(
                        f"job server {shown(self._address)}: refused the websocket that carries "
                        f"the log of {self._job_id}: {error.status} {error.message}. Use an "
                        "address without a proxy, or let the proxy pass websockets; the job keeps "
                        "running, and the same command follows it again."
                    ) from error
                except (aiohttp.ClientError, OSError, RuntimeError) as error:
                    if isinstance(error, TimeoutError):
                        self._silent_s = min(2 * self._silent_s, 24 * SILENT_S)
                    loss = f"the log of {self._job_id} was lost: {reason(error)}"
                    raise _LogLost(loss) from error
                if text is None:
                    return
                yield text


async def _next_piece(pieces: AsyncIterator[str], silent_s: float) -> str | None:
    """The next piece of the log; None at its end. Raises TimeoutError after `silent_s`."""
    async with asyncio.timeout(silent_s):
        return await anext(pieces, None)


def _answer(address: str | None, request: Callable[[], T]) -> T:
    """The answer of the job server to a request, which is repeated for up to LOST_S while the
    server cannot be reached. Raises ClusterError."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((requests.ConnectionError, requests.Timeout)),
        wait=tenacity.wait_random_exponential(max=20),
        stop=tenacity.stop_after_delay(LOST_S),
        reraise=True,
    )
    try:
        return retrying(request)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise _cluster_error(address, error) from error


def _cluster_error(address: str | None, error: Exception) -> ClusterError:
    return ClusterError(
        f"job server {shown(address or 'of RAY_ADDRESS')}: {reason(error)}. Check the address "
        "(`ray dashboard` or `kubectl port-forward` opens one) and the token (RAY_AUTH_MODE, "
        "RAY_AUTH_TOKEN), then run the same command again."
    )
