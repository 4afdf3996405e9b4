"""One refresh of an output at a time: a numbered lease made of create-only objects, timed by the
store's clock.

    _meta/leases/<n>/holder.json   creating it takes lease n; names the holder
    _meta/leases/<n>/beat-<k>      the holder is alive
    _meta/leases/<n>/released      the holder is done

The newest lease counts. Another process takes n + 1 when n is released, or when nothing of it was
changed within `ttl_s` of now by the store's clock. A lease saves the money of doing the same work
twice. Correctness never rests on it: a holder that was paused, lost its lease and continues does
what any second run does, and the commit protocol settles that. Cost: four small requests to take
it, one a minute to keep it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator

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
    try:
        with beating(store, lambda beat: layout.lease(number, f"beat-{beat}"), ttl_s):
            yield number
    finally:
        with contextlib.suppress(OSError, CorpusEmbedError):  # then it expires
            store.put_if_absent(layout.lease(number, "released"), b"")


def is_alive(changed_at: float, now: float, ttl_s: float) -> bool:
    """Whether a sign of life counts; both times by the store's clock, in seconds since 1970.

    One that is dated in the future, by a clock that was wrong or a copy that kept its times, counts
    for `ttl_s` and no longer: a living process would have given a sign since.
    """
    return abs(now - changed_at) < ttl_s


class Pulse:
    """What a process knows of its own signs of life. count: the number of the last one, 0 for none.

    is_lost: whether it was silent for `ttl_s` at any time, so that others may count it as dead.
    """

    def __init__(self, ttl_s: float) -> None:
        self.count = 0
        self._ttl_s = ttl_s
        self._last_s = time.time()  # unlike a monotonic clock, it runs while a machine sleeps
        self._was_lost = False

    def beat(self) -> None:
        self._was_lost = self.is_lost
        self._last_s = time.time()
        self.count += 1

    @property
    def is_lost(self) -> bool:
        return self._was_lost or time.time() - self._last_s > self._ttl_s


@contextlib.contextmanager
def beating(
    store: Store, path_of: Callable[[int], str], ttl_s: float, content: bytes = b""
) -> Iterator[Pulse]:
    """Create `path_of(1)`, `path_of(2)`, … as signs of life, each in place of the one before, five
    in `ttl_s`, until the block ends."""
    done = threading.Event()
    pulse = Pulse(ttl_s)

    def beat() -> None:
        while not done.wait(ttl_s / 5):
            # at worst, a lost beat lets another process start
            with contextlib.suppress(OSError, CorpusEmbedError):
                store.put_if_absent(path_of(pulse.count + 1), content)
                pulse.beat()
                _delete(store, path_of(pulse.count - 1))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield pulse
    finally:
        done.set()
        thread.join()


def _take(store: Store, ttl_s: float) -> int:
    locations = {name: layout.locate(name) for name in store.list(layout.LEASES)}
    names = [name for name, location in locations.items() if location]
    last = max((location.number or 0 for location in locations.values() if location), default=0)
    newest = [name for name in names if name.startswith(layout.lease(last) + "/")]
    if last and layout.lease(last, "released") not in newest:
        try:
            times = [store.changed_at(store.info(name)) for name in newest]
        except FileNotFoundError:  # a beat that its holder has just replaced
            times = [store.time()]
        now = store.time()
        if living := [when for when in times if is_alive(when, now, ttl_s)]:
            silent_s = max(0.0, now - max(living))
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
