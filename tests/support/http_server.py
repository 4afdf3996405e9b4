"""An HTTP server of this process for as long as a test needs one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["QuietHandler", "serving"]


class QuietHandler(BaseHTTPRequestHandler):
    """Answers are the business of subclasses; nothing is written to standard error."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """The address of a server whose requests `handler` answers: a class of handlers, or a function
    that makes one. It takes no more of them when the block is left."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()
