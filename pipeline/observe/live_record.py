"""How far a run has come, for whoever asks from another terminal or node.

    _meta/live/<run_id>-<nonce>-<number>.json    create-only; each in place of the one before

In: a `Progress`. Out: an object that `corpus-embed status` reads. The record of a run that has
ended is gone; that of a run that died stays, and counts as silent once it is SILENT_S old, or at
once where its process is known to be gone. Nothing is ever decided from it, and a store that does
not take it hurts nothing. Cost: two small requests each EVERY_S seconds, none in the first FIRST_S.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.errors import CorpusEmbedError
from pipeline.observe.figures import figures
from pipeline.observe.progress import Progress
from pipeline.output.work import is_dead, this_process
from pipeline.storage import layout
from pipeline.storage.store import Store

FIRST_S = 3.0
"""After how long a run writes its first record: who runs shorter needs none."""
EVERY_S = 10.0
"""Seconds between two records."""
SILENT_S = 60.0
"""Age of its last record after which a run counts as silent."""


class LiveRun(NamedTuple):
    """A run that has left a record. since, seen: when it began, and when it wrote the record, ISO
    8601 by its own clock. silent_s: seconds since then. is_silent: whether it has probably died.
    figures: see `observe/figures.py`."""

    run_id: str
    job: str
    host: str
    process: int
    since: str
    seen: str
    silent_s: float
    is_silent: bool
    figures: dict[str, Any]


@contextlib.contextmanager
def recorded(store: Store, run_id: str, job: str, progress: Progress) -> Iterator[None]:
    """Write records while the block runs, and delete the last one after it. job: its name."""
    has_ended = threading.Event()
    nonce = os.urandom(8).hex()
    since = _now()
    number = 0

    def write() -> None:
        nonlocal number
        wait_s = FIRST_S
        while not has_ended.wait(wait_s):
            wait_s = EVERY_S
            record = {
                **this_process(),
                "run_id": run_id,
                "job": job,
                "since": since.isoformat(timespec="seconds"),
                "seen": _now().isoformat(timespec="seconds"),
                "figures": figures(progress),
            }
            with contextlib.suppress(OSError, CorpusEmbedError):
                path = layout.live_record(run_id, nonce, number + 1)
                store.put_if_absent(path, json.dumps(record).encode())
                number += 1
                if number > 1:
                    store.delete(layout.live_record(run_id, nonce, number - 1))

    thread = threading.Thread(target=write, name="live record", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(EVERY_S)  # a store that hangs does not hold up the end
        with contextlib.suppress(OSError, CorpusEmbedError):
            for last in range(max(1, number - 1), number + 1):
                store.delete(layout.live_record(run_id, nonce, last))


def live_runs(store: Store) -> list[LiveRun]:
    """The runs that have left a record, the latest first; what is no record is left out. Raises
    StorageError when the store cannot be listed."""
    newest: dict[str, tuple[int, str]] = {}
    for path in store.list(layout.LIVE):
        location = layout.locate(path)
        if location is not None and location.kind == "live record":
            run = path.rpartition("-")[0]
            newest[run] = max(newest.get(run, (0, "")), (location.number or 0, path))
    runs = []
    for _, path in newest.values():
        with contextlib.suppress(OSError, CorpusEmbedError, ValueError, KeyError, TypeError):
            runs.append(_read(store, path))
    return sorted(runs, key=lambda run: run.seen, reverse=True)


def _read(store: Store, path: str) -> LiveRun:
    """Raises KeyError, TypeError or ValueError for what is no record."""
    record = json.loads(store.read(path))
    seen = datetime.datetime.fromisoformat(record["seen"])
    silent_s = max(0.0, (_now() - seen).total_seconds())
    facts = record["figures"]
    if not isinstance(facts, dict) or not isinstance(facts["phase"], str):
        raise TypeError(path)
    return LiveRun(
        run_id=str(record["run_id"]),
        job=str(record["job"]),
        host=str(record["host"]),
        process=int(record["process"]),
        since=str(datetime.datetime.fromisoformat(record["since"])),
        seen=str(seen),
        silent_s=round(silent_s, 1),
        is_silent=silent_s > SILENT_S or is_dead(store, path),
        figures=facts,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
