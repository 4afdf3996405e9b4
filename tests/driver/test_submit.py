"""Following a submitted job: its log arrives once, also after a lost connection, and its exit code
is returned.

Oracle: a job server of the test, which speaks the requests of Ray's job client, counts what it
sends, and breaks off where it is told to. A real one: tests/driver/test_cluster.py.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import web

from pipeline.driver.cluster import submit as submit_module
from pipeline.driver.cluster.submit import submission_id, submit
from pipeline.errors import ClusterError
from pipeline.job.spec import JobSpec
from tests.support.outputs import make_spec

WHEN = datetime.datetime(2026, 11, 22, 2, tzinfo=datetime.UTC)
LOG = [f"line {n} of ログ\n" for n in range(60)]


class JobServer:
    """One job that exists already. It writes `LOG`, and has ended when a follower got all of it.

    break_at: numbers of lines before which a connection is aborted, one connection each.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.break_at: list[int] = []
        self.has_websockets = True
        self.silent_connections = 0
        self.ends_at_break = False
        self.interrupt_at = -1
        self.end = {"status": "SUCCEEDED", "driver_exit_code": 0}
        self.state: dict[str, Any] = {"status": "RUNNING"}
        self.n_connections = 0
        self.n_sent = 0
        self.n_whole_logs = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> JobServer:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._jobs)
        app.router.add_get("/api/jobs/{id}", self._job)
        app.router.add_get("/api/jobs/{id}/logs", self._whole_log)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        runner = web.AppRunner(app, shutdown_timeout=0)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def _details(self) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "submission_id": self.job_id,
            "entrypoint": "",
            **self.state,
        }

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"ray_version": ray.__version__})

    async def _jobs(self, _: web.Request) -> web.Response:
        return web.json_response([self._details()])

    async def _job(self, _: web.Request) -> web.Response:
        return web.json_response(self._details())

    async def _whole_log(self, _: web.Request) -> web.Response:
        self.n_whole_logs += 1
        return web.json_response({"logs": "".join(LOG)})

    async def _stop(self, _: web.Request) -> web.Response:
        self.end = {"status": "STOPPED"}
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        self.n_connections += 1
        if not self.has_websockets:
            return web.Response(status=400, text="no websockets")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.silent_connections:
            self.silent_connections -= 1
            await socket.receive()  # until the follower gives up
            return socket
        stop = self.break_at.pop(0) if self.break_at else len(LOG)
        for number, line in enumerate(LOG[:stop]):
            if number == self.interrupt_at:
                self.interrupt_at = -1
                while sys.stdout.getvalue() != "".join(LOG[:number]):  # type: ignore[attr-defined]
                    await asyncio.sleep(0.02)  # until the follower has printed everything so far
                os.kill(os.getpid(), signal.SIGINT)
                await socket.receive()  # until the follower gives up
                return socket
            await socket.send_str(line)
            self.n_sent += len(line)
        if stop < len(LOG):
            assert request.transport is not None
            # An aborted connection discards what has not been delivered.
            await asyncio.sleep(0.2)
            request.transport.abort()
        if stop == len(LOG) or self.ends_at_break:
            self.state = self.end
        return socket


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return make_spec(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path / "model")


@pytest.fixture
def server(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit_module, "RECONNECT_S", 0.05)
    with JobServer(submission_id(spec, WHEN)) as running:
        yield running


def follow(spec: JobSpec, server: JobServer, **options: Any) -> tuple[int, list[str]]:
    """The exit code, and what was said about the submission."""
    messages: list[str] = []
    code = submit(spec, server.url, say=messages.append, nominal_time=WHEN, **options)
    return code, messages


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED"}, 1),
        ({"status": "STOPPED"}, 143),
    ],
)
def test_a_log_is_transferred_once_and_the_exit_code_is_that_of_the_job(
    spec: JobSpec,
    server: JobServer,
    capsys: pytest.CaptureFixture[str],
    end: dict[str, Any],
    code: int,
) -> None:
    server.end = end
    messages = [f"{server.job_id} already exists (RUNNING); following it"]
    assert follow(spec, server) == (code, messages)
    assert capsys.readouterr().out == "".join(LOG)
    assert (server.n_sent, server.n_connections) == (len("".join(LOG)), 1)
    assert server.n_whole_logs == 0


@pytest.mark.faults
def test_no_line_is_printed_twice_or_lost_when_the_connection_breaks(
    spec: JobSpec, server: JobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.break_at = [0, 20, 7, 40]
    assert follow(spec, server)[0] == 0
    assert capsys.readouterr().out == "".join(LOG)
    assert server.n_connections == 5


@pytest.mark.faults
def test_a_silent_connection_is_opened_again(
    spec: JobSpec,
    server: JobServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit_module, "SILENT_S", 0.25)
    server.silent_connections = 2
    clock = time.monotonic()
    assert follow(spec, server)[0] == 0
    assert capsys.readouterr().out == "".join(LOG)
    assert time.monotonic() - clock > 0.25 + 0.5  # twice as long the second time


@pytest.mark.faults
def test_a_log_that_cannot_be_had_after_the_end_of_the_job_is_an_error(
    spec: JobSpec, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_module, "LOST_S", 0.5)
    server.break_at = [3] * 1000
    server.ends_at_break = True
    clock = time.monotonic()
    with pytest.raises(ClusterError, match="the log of corpus-embed-"):
        follow(spec, server)
    assert time.monotonic() - clock < 20


@pytest.mark.faults
def test_a_server_that_refuses_websockets_is_named_with_what_to_do(
    spec: JobSpec, server: JobServer
) -> None:
    server.has_websockets = False
    with pytest.raises(ClusterError, match=r"refused the websocket .*: 400 .*let the proxy pass"):
        follow(spec, server)
    assert server.n_connections == 1


@pytest.mark.parametrize("stop", [False, True])
def test_ctrl_c_ends_following_or_stops_the_job_and_prints_no_line_twice(
    spec: JobSpec, server: JobServer, capsys: pytest.CaptureFixture[str], stop: bool
) -> None:
    server.interrupt_at = 30
    code, messages = follow(spec, server, stop_on_interrupt=stop)
    assert code == (143 if stop else 130)
    assert ("stopping" if stop else "keeps running") in messages[-1]
    printed = capsys.readouterr().out
    assert printed == "".join(LOG[: len(LOG) if stop else 30])
