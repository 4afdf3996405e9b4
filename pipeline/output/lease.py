"""One refresh of an output at a time: a numbered lease made of create-only objects, timed by the
store's clock.

    _meta/leases/<n>/holder.json   creating it takes lease n; names the holder
    _meta/leases/<n>/beat-<k>      the holder is alive
    _meta/leases/<n>/released      the holder is done

The newest lease counts. Another process takes n + 1 when n is released, or when nothing of it is
younger than `ttl_s` by the store's clock. A lease saves the money of doing the same work twice.
Correctness never rests on it: a holder that was paused, lost its lease and continues does what any
second run does, and the commit protocol settles that. Cost: four small requests to take it, one a
minute to keep it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterator

from pipeline.errors import CorpusEmbedError, LeaseHeld
from pipeline.storage import layout
from pipeline.storage.store import Store

TTL_S = 300.0
"""How long, in seconds, a holder can be silent before another process takes over."""


@contextlib.contextmanager
def hold(store: Store, ttl_s: float = TTL_S) -> Iterator[int]:
    """Hold the lease of an output; yields its number. Raises LeaseHeld while another process has
    it."""
    number = _take(store, ttl_s)
    done = threading.Event()
    arguments = (store, number, ttl_s / 5, done)
    thread = threading.Thread(target=_beat, args=arguments, name="lease", daemon=True)
    thread.start()
    try:
        yield number
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError, CorpusEmbedError):  # then it expires
            store.put_if_absent(layout.lease(number, "released"), b"")


def _take(store: Store, ttl_s: float) -> int:
    names = list(store.list(layout.LEASES))
    last = max((int(name.split("/")[2]) for name in names), default=0)
    newest = [name for name in names if name.startswith(layout.lease(last) + "/")]
    if last and layout.lease(last, "released") not in newest:
        try:
            when = max(store.changed_at(store.info(name)) for name in newest)
        except FileNotFoundError:  # a beat that its holder has just replaced
            when = store.time()
        silent_s = store.time() - when
        if silent_s < ttl_s:
            expiry = f"it expires after {ttl_s:.0f} s of silence"
            raise _held(store, last, f"last sign of life {silent_s:.0f} s ago; {expiry}")
    holder = layout.lease(last + 1, "holder.json")
    identity = {"host": platform.node(), "process": os.getpid(), "nonce": os.urandom(8).hex()}
    me = json.dumps(identity).encode()
    if not store.put_if_absent(holder, me) and store.read(holder) != me:
        raise _held(store, last + 1, "taken at the same moment")
    for name in names:
        _delete(store, name)
    return last + 1


def _beat(store: Store, number: int, every_s: float, done: threading.Event) -> None:
    count = 0
    while not done.wait(every_s):
        # at worst, a lost beat lets another run start
        with contextlib.suppress(OSError, CorpusEmbedError):
            store.put_if_absent(layout.lease(number, f"beat-{count + 1}"), b"")
            count += 1
            _delete(store, layout.lease(number, f"beat-{count - 1}"))


def _delete(store: Store, name: str) -> None:
    with contextlib.suppress(CorpusEmbedError):  # vacuum deletes what a writer cannot
        store.delete(name)


def _held(store: Store, number: int, why: str) -> LeaseHeld:
    stored = store.read_or_none(layout.lease(number, "holder.json")) or b"?"
    holder = stored.decode(errors="replace")
    return LeaseHeld(
        f"{store.shown_uri}: another refresh holds lease {number} ({why}); holder: {holder}. "
        "Nothing was started. Run again when it is done; `corpus-embed run` does not ask for the "
        "lease."
    )
