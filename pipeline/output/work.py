"""Who works on an output now: a mark that lives as long as its process, by the store's clock.

    _meta/work/<activity>-<fingerprint>-<nonce>-<beat>   a run, compact, publish or vacuum is alive

Runs, compactions and publications create objects that nothing names yet, and adopt those of
earlier attempts; a vacuum deletes what nothing names. Each side creates its mark before it looks
for the other's: a vacuum sees everybody who was there before its listing and leaves what they could
adopt, and whoever comes later waits until the vacuum has ended. So at no moment does one of them
take away what another is about to name. A mark counts as long as it changed less than SILENT_S ago,
and its process is not known to have ended. A process that was suspended for longer can lose its
objects, and finds that at its commit (`commit_snapshot` looks for its files). Cost: a listing and
two small requests an activity, one a minute while it lasts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import CorpusEmbedError
from pipeline.output.lease import TTL_S, Pulse, beating, is_alive
from pipeline.storage import layout
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

SILENT_S = TTL_S
"""How long, in seconds, a mark counts after its last sign of life."""
NOTE_S = 3.0
"""How long, in seconds, a wait for a vacuum goes without a word."""
POLL_S = 0.5
VACUUM = "vacuum"


@contextlib.contextmanager
def under_way(
    store: Store, activity: str, fingerprint: str = "", *, waits: bool = True
) -> Iterator[None]:
    """Mark that a run, a compaction or a publication is under way, and wait for a vacuum to end
    (`waits`).

    fingerprint: of what is written. An output without a snapshot gets no mark, since nothing can be
    vacuumed there; nor does one that this process cannot write to, where it creates nothing.
    """
    if not store.list(layout.SNAPSHOTS):
        yield
        return
    with _marked(store, activity, fingerprint):
        if waits:
            _wait_for_vacuum(store)
        yield


@contextlib.contextmanager
def vacuuming(store: Store) -> Iterator[Pulse]:
    """Mark that a vacuum is under way. Whoever is there before it has a mark in what the caller
    lists afterwards; once the pulse is lost, somebody else may be there, too."""
    with _marked(store, VACUUM, "") as pulse:
        yield pulse


@contextlib.contextmanager
def _marked(store: Store, activity: str, fingerprint: str) -> Iterator[Pulse]:
    mark = f"{activity}-{fingerprint}-{os.urandom(8).hex()}"
    holder = json.dumps(this_process()).encode()
    try:
        store.put_if_absent(layout.work(mark, 0), holder)
    except (OSError, CorpusEmbedError):  # a reader without the permission to write
        yield Pulse(SILENT_S)
        return
    pulse = Pulse(SILENT_S)
    try:
        with beating(store, lambda beat: layout.work(mark, beat), SILENT_S, holder) as pulse:
            yield pulse
    finally:
        with contextlib.suppress(OSError, CorpusEmbedError):  # then it grows silent
            store.delete(layout.work(mark, pulse.count))


def _wait_for_vacuum(store: Store) -> None:
    """Return once no vacuum is alive. A vacuum that starts from now on sees this process' mark."""
    started_s = time.monotonic()
    is_noted = False
    while vacuums := [path for path in store.list(layout.WORK) if _is_vacuum(path)]:
        if not _any_alive(store, vacuums):
            return
        if not is_noted and time.monotonic() - started_s > NOTE_S:
            log.warning(
                "%s: waiting for a vacuum to end (%s)",
                store.shown_uri,
                (store.read_or_none(vacuums[0]) or b"?").decode(errors="replace"),
            )
            is_noted = True
        time.sleep(POLL_S)


def _is_vacuum(path: str) -> bool:
    location = layout.locate(path)
    return location is not None and location.kind == "work" and location.name == VACUUM


def _any_alive(store: Store, paths: list[str]) -> bool:
    now = store.time()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # it has just beaten, or ended
            changed_at = store.changed_at(store.info(path))
            if is_alive(changed_at, now, SILENT_S) and not is_dead(store, path):
                return True
    return False


def is_dead(store: Store, path: str) -> bool:
    """Whether the process that left a mark is known to have ended: it ran where this one does, and
    is not there any more. False for one that cannot be seen from here."""
    try:
        holder = json.loads(store.read_or_none(path) or b"{}")
        process = int(holder["process"])
        if holder["namespace"] is None or holder["namespace"] != _namespace() or process <= 0:
            return False
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except (
        ValueError,
        KeyError,
        TypeError,
        OSError,
        CorpusEmbedError,
        OverflowError,
        RecursionError,
    ):
        return False
    return False


def this_process() -> dict[str, Any]:
    """What `is_dead` knows this process by, as the fields of a JSON object."""
    return {"host": platform.node(), "process": os.getpid(), "namespace": _namespace()}


def _namespace() -> str | None:
    """What numbers of processes are comparable in: this boot of a machine, and a container of it.
    None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
