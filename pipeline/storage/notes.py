"""Sentences for the person behind a process: what it waits for, and what it does without.

Whoever notices something says it here; whoever knows the person listens: the command line, the
display of a run, and in a worker the actor that passes it on to the driver. Without a listener it
goes to Python's log, which by default is standard error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["listen_to_notes", "note", "note_once"]

_log = logging.getLogger(__name__)
_listener: Callable[[str], object] = _log.warning
_noted: set[str] = set()


def listen_to_notes(listener: Callable[[str], object] | None) -> None:
    """Call `listener` with each sentence of this process from now on; None: Python's log again."""
    global _listener
    _listener = listener or _log.warning


def note(sentence: str) -> None:
    _listener(sentence)


def note_once(topic: str, sentence: str) -> None:
    """`note`, unless this process has noted something about `topic` before."""
    if topic not in _noted:
        _noted.add(topic)
        note(sentence)
