"""Signals that would reach a library in the middle of what it cannot leave half done.

Python runs the handler of a signal between any two steps of the main thread, and an exception that
it raises comes out there. Ray 2.60 does not survive that while it connects: a process whose C++
core exists, but whose Python side was never told of it, ends with SIGSEGV (6 of 27 interruptions of
a start). So the exception waits until the library has finished.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_is_ours = threading.Event()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Run the block to its end whatever SIGINT and SIGTERM say: their handlers run at once, and
    what the first one raises is raised after the block. Handlers that the block installs are
    undone. Does nothing outside the main thread, where no handler runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, functools.partial(_hold, handler, raised))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if raised:
            raise raised[0]


def _hold(
    handler: Callable[[int, FrameType | None], Any],
    raised: list[BaseException],
    number: int,
    frame: FrameType | None,
) -> None:
    try:
        handler(number, frame)
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt and SystemExit are meant
        raised.append(error)


def interrupt_main() -> None:
    """End what blocks the main thread, from another thread: it sees a KeyboardInterrupt."""
    _is_ours.set()
    _thread.interrupt_main()


def is_ours() -> bool:
    """Whether the interruption that is being handled comes from `interrupt_main`, not from a
    person. True once for each call of it."""
    was_set = _is_ours.is_set()
    _is_ours.clear()
    return was_set
