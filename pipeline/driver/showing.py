"""What a run shows while it works: figures and notes, through a function of the caller.

In: the `Progress` of a run, and notes on what it waits for. Out: calls of a `Watch`, by default
lines in Python's log. A display is never a reason to stop: whoever calls it goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.observe.progress import Progress

log = logging.getLogger(__name__)

Watch = Callable[[Progress, list[str]], None]
"""Shows figures and notes."""


def log_notes(_progress: Progress, notes: list[str]) -> None:
    """For runs without a display: notes on what they are waiting for go to Python's log, which by
    default is standard error."""
    for note in notes:
        log.warning(note)


def shielded(watch: Watch) -> Watch:
    """`watch` as a run may call it: a display that fails (a full disk, a closed pipe, a bug) shows
    nothing, and neither a request that is being repeated nor a commit notices."""

    def show(progress: Progress, notes: list[str]) -> None:
        try:
            watch(progress, notes)
        except Exception as error:  # noqa: BLE001 - see above
            log.debug("the display failed: %s: %s", type(error).__name__, error)

    return show


def count_retry(progress: Progress) -> None:
    """Counts one repeated request of the driver."""
    progress.add({"storage_retries": 1})
