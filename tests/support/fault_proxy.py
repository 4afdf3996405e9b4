"""An HTTP proxy that stands between a client and the S3 server and misbehaves on demand.

In: the server's endpoint and rules. Out: an endpoint of its own, and a log of what went through.
Requests are forwarded byte for byte with their Host header, so that SigV4 signatures (which cover
it) stay valid; use path-style addresses. One thread with an asyncio loop; a request and its answer
are held in memory whole, which is fine for tests.

    with FaultProxy(s3.endpoint_url) as proxy:
        proxy.add(Rule("status", method="GET", path=r"docs-0000\\d", count=2))  # 503 twice
        ...
        assert [r.fault for r in proxy.log] == ["status", "status", None]

Modes
    status      answers `status` (default 503 SlowDown) without asking the server
    reset       cuts the connection with RST before the server sees the request
    hang        reads the request and answers nothing for `delay_s`, then closes
    slow        answers as the server does, `delay_s` later
    trunc_fin   sends the head and part of the body, then closes politely
    trunc_rst   the same, then RST
    flip        flips one bit in the middle of the body
    lost        the server gets and applies the request; the client gets RST instead of the answer
    ok200err    answers 200 with an error document, unapplied: S3 does so on Copy and on
                CompleteMultipartUpload
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.support.http_messages import (
    HEAD_LIMIT_BYTES,
    Message,
    error_answer,
    read_answer,
    read_request,
)

Mode = Literal[
    "status", "reset", "hang", "slow", "trunc_fin", "trunc_rst", "flip", "lost", "ok200err"
]


@dataclass
class Rule:
    """When to misbehave (all conditions must hold) and how."""

    mode: Mode
    method: str = ".*"  # regular expression for the whole method
    path: str = ""  # searched in the request target, query included
    probability: float = 1.0
    count: int | None = None  # fires at most this often; None: always
    skip: int = 0  # the first matches that are left alone
    status: int = 503
    delay_s: float = 60.0
    keep: float = 0.5  # trunc: the share of the body that is sent
    fired: int = field(default=0, init=False)
    _matched: int = field(default=0, init=False)

    def fires(self, method: str, target: str, draw: random.Random) -> bool:
        """Whether this request is hit; counts it."""
        if self.count is not None and self.fired >= self.count:
            return False
        if not re.fullmatch(self.method, method) or not re.search(self.path, target):
            return False
        self._matched += 1
        if self._matched <= self.skip or draw.random() >= self.probability:
            return False
        self.fired += 1
        return True


@dataclass(frozen=True)
class Seen:
    """One request: what it asked for, what the server said (None when it was not asked), which
    fault was applied."""

    method: str
    target: str
    status: int | None
    fault: Mode | None


class FaultProxy:
    """See the module's docstring. A context manager; `add` and `clear` may be called at any time
    from any thread."""

    def __init__(self, upstream_url: str, seed: int = 0) -> None:
        upstream = urlsplit(upstream_url)
        self._upstream = (upstream.hostname or "127.0.0.1", upstream.port or 80)
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._log: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.endpoint_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, *rules: Rule) -> Rule:
        """Appends rules (the first that fires decides); returns the last, whose `fired` can be
        read."""
        with self._lock:
            self._rules.extend(rules)
        return rules[-1]

    def clear(self) -> None:
        """Forgets rules and log."""
        with self._lock:
            self._rules.clear()
            self._log.clear()

    @property
    def log(self) -> list[Seen]:
        """A copy of what went through so far, in the order of completion."""
        with self._lock:
            return list(self._log)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._client, "127.0.0.1", 0, limit=HEAD_LIMIT_BYTES)

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the proxy is closing
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is finished."""
        request = await read_request(reader, writer)
        method, target, _ = request.first.split(" ", 2)
        with self._lock:
            rule = next(
                (rule for rule in self._rules if rule.fires(method, target, self._draw)), None
            )
        mode = rule.mode if rule else None
        answer = None
        if rule is None or mode in {"slow", "trunc_fin", "trunc_rst", "flip", "lost"}:
            answer = await self._forward(request)
            seen = Seen(method, target, answer.status, mode)
        else:
            seen = Seen(method, target, None, mode)
        # Logged before the answer leaves: a client that has its answer must find it in the log.
        with self._lock:
            self._log.append(seen)
        if rule is not None and mode in {"hang", "slow"}:
            await asyncio.sleep(rule.delay_s)
            if mode == "hang":
                return False
        if rule is not None and mode in {"status", "ok200err"}:
            answer = error_answer(rule.status if mode == "status" else 200, target)
        if answer is None or mode == "lost":
            _reset(writer)
            return False
        body = answer.body if rule is None else _damaged(answer.body, rule)
        await _send(writer, answer, method, body)
        if mode == "trunc_rst":
            # an RST that overtakes the bytes would throw away what was already sent
            await asyncio.sleep(0.05)
            _reset(writer)
        return mode not in {"trunc_fin", "trunc_rst"}

    async def _forward(self, request: Message) -> Message:
        """Asks the server over a connection of its own."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=HEAD_LIMIT_BYTES)
        try:
            # Neither header is part of a signature; the body has been read whole, so there is
            # nothing to expect.
            writer.write(
                request.head(without={"connection", "expect"}, extra=[("Connection", "close")])
                + request.body
            )
            await writer.drain()
            return await read_answer(reader, request.first.split(" ", 1)[0])
        finally:
            writer.close()


def _damaged(body: bytes, rule: Rule) -> bytes:
    if rule.mode == "flip" and body:
        middle = len(body) // 2
        return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if rule.mode in {"trunc_fin", "trunc_rst"}:
        return body[: int(len(body) * rule.keep)]
    return body


async def _send(writer: asyncio.StreamWriter, answer: Message, method: str, body: bytes) -> None:
    """Writes the head of `answer`, saying the length of its whole body, and then `body`."""
    # A HEAD answer tells the length of a body that does not follow: keep what the server said.
    length = [("Content-Length", str(len(answer.body)))] if method != "HEAD" else []
    replaced = {"transfer-encoding", "connection"} | ({"content-length"} if length else set())
    writer.write(answer.head(without=replaced, extra=length) + (b"" if method == "HEAD" else body))
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST: a linger time of zero discards the queue instead of a polite FIN."""
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
