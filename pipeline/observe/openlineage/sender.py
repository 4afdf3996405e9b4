"""Send events from a thread, in order, without ever keeping a run waiting.

In: a function that delivers one event, and events. Out: deliveries, and at most one warning. Cost
for the run: a queue; at its end up to PATIENCE_S.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from pipeline.storage.addresses import shown
from pipeline.storage.printable import printable

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a run that has ended waits for its last events to be delivered."""
_THREAD = "openlineage"


class Sender:
    """A thread with a queue of events. deliver: raises where an event was not taken."""

    def __init__(self, deliver: Callable[[Any], None], patience_s: float = PATIENCE_S) -> None:
        self._deliver = deliver
        self._patience_s = patience_s
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._has_warned = False
        logging.getLogger("urllib3.connectionpool").addFilter(_is_from_elsewhere)
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        self._thread.start()

    def send(self, event: Any) -> None:
        """Returns at once."""
        self._events.put(event)

    def close(self) -> None:
        """Wait for what was sent, for `patience_s` at most."""
        self._events.put(None)
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self.warn(f"not all were delivered within {self._patience_s:g} s")

    def warn(self, problem: str) -> None:
        """Log a problem, the first one only."""
        if not self._has_warned:
            self._has_warned = True
            log.warning("OpenLineage events were not sent: %s. The run continues.", problem)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._deliver(event)
            except Exception as error:  # noqa: BLE001 - a receiver is no reason to stop a run
                self.warn(problem_in(error))


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    """Drops a line for each attempt at a delivery: one warning says it all."""
    return record.threadName != _THREAD


def problem_in(error: BaseException) -> str:
    """An error in one line, without user and password of a URL in it."""
    words = f"{type(error).__name__}: {error}".split()
    return printable(" ".join(shown(word) for word in words))[:500].rstrip(".")
