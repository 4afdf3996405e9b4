"""A page in a real browser: Chromium without a window, spoken to by its DevTools protocol.

In: a file and the size and colour scheme of a screen. Out: what expressions on the page are, what
the pointer finds, every request and every line of the console. The browser has no network: the
names of all hosts are mapped to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

TIMEOUT_S = 60.0


def chromium() -> str | None:
    """The path of a Chromium of this machine (Debian's package is `chromium`)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One tab. requests: URLs that were asked for, without those that hold
    their data. console: what was logged, errors and violations
    of the page's policy included."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.requests: list[str] = []
        self.console: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=TIMEOUT_S)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    async def value(self, expression: str) -> Any:
        """What an expression is on the page; promises are awaited."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not await self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, (expression, self.console)
            await asyncio.sleep(0.1)

    async def show(self, path: Path, *, width: int, scheme: str = "light") -> None:
        """Load a file on a screen `width` pixels wide."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        await self.call("Page.navigate", url=path.resolve().as_uri())

    async def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _note(self, method: str, fields: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = fields["request"]["url"]
            self.requests += [] if url.startswith("data:") else [url]
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(fields["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.console.append(fields["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(str([argument.get("value") for argument in fields["args"]]))


@contextlib.asynccontextmanager
async def browser(program: str, folder: Path) -> AsyncIterator[Browser]:
    """A browser whose profile lies in `folder`, with one empty tab."""
    arguments = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
        *("--no-first-run", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND"),
    )
    process = subprocess.Popen(
        [program, *arguments, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = await _port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = await response.json(content_type=None)
            (url,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Browser(socket)
    finally:
        process.kill()
        process.wait()


async def _port(path: Path) -> int:
    """The port that the browser has chosen, which it writes into a file."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        lines = path.read_text(encoding="utf-8").split() if path.exists() else []
        if len(lines) > 1:
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise TimeoutError("the browser did not start")
