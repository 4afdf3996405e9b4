"""The figures of a run: phases, totals, what is done inside of unfinished parts, rates, and the
estimated time to the end.

In: what workers report (`pipeline/workers/metrics.py`), and the phases that the driver enters. Out:
figures at any moment, for the display, JSON lines, the live record and Prometheus alike. Method:
finished parts count by their manifests; parts under way by what their embedder last reported, which
their manifest replaces. Plain arithmetic, safe to read from other threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.observe.rate import Rate, Remaining

PLANNING = "planning"
CONNECTING = "connecting"
STARTING = "starting workers"
LOADING = "loading the model"
EMBEDDING = "embedding"
COMMITTING = "committing"
PUBLISHING = "publishing"
DONE = "done"
PHASES = (PLANNING, CONNECTING, STARTING, LOADING, EMBEDDING, COMMITTING, PUBLISHING, DONE)
"""What a run does, in order; a run that has to plan again starts over."""

START_UP = (PLANNING, CONNECTING, STARTING, LOADING)
END = (COMMITTING, PUBLISHING, DONE)

TROUBLES = {
    "worker_restarts": ("worker started again", "workers started again"),
    "storage_retries": ("request tried again", "requests tried again"),
    "n_oom_halvings": ("bucket halved for memory", "buckets halved for memory"),
    "n_crashed_records": (
        "record rejected because workers failed on it",
        "records rejected because workers failed on them",
    ),
    "n_replaced": (
        "document in which U+FFFD stands for bytes that are no character",
        "documents in which U+FFFD stands for bytes that are no character",
    ),
}
"""What a run recovered from: name in `Progress.totals`, and words for people, for one and for
several."""

BUSY = 0.9
"""Share of their time that embedders work when nothing before them is too slow."""
NOTICEABLE = 0.1
"""Share of the embedders' time below which no stage before them is what they wait for."""
SECONDS = "seconds."
REASONS = "rejects."
"""What the names of totals start with that are sums by stage, and by reason."""


class Progress:
    """What one run has done. totals: sums over its finished parts, and over what workers count
    otherwise. clock: seconds, monotonic. started: by that clock, now by default. on_change: called
    after each change of the phase."""

    def __init__(
        self,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.totals: dict[str, float] = {}
        self.remaining = Remaining(())
        self.phase = PLANNING
        self.workers: Mapping[str, int] = {}
        self._lock = threading.RLock()
        self._clock = clock
        self._on_change = on_change
        self._phase_s: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.started = self._entered_s = clock() if started is None else started
        self._under_way: dict[str, Mapping[str, float]] = {}
        self._rate = Rate()
        self._fraction = 0.0

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        with self._lock:
            if phase == self.phase:
                return
            now_s = self._clock()
            self._phase_s[self.phase] += now_s - self._entered_s
            self.phase = phase
            self._entered_s = now_s
            if phase == EMBEDDING:
                self._rate.read(now_s, self.live("record_bytes"))
        self._on_change()

    def add(self, amounts: Mapping[str, float]) -> None:
        """Add to the totals."""
        with self._lock:
            for name, amount in amounts.items():
                self.totals[name] = self.totals.get(name, 0) + amount

    def advance(self, part_id: str, amounts: Mapping[str, float]) -> None:
        """A part is under way, and so much of it is done. An attempt that starts over after the
        death of its worker does not take back what an earlier one had reached."""
        with self._lock:
            before = self._under_way.get(part_id, {})
            self._under_way[part_id] = {
                name: max(amount, before.get(name, 0)) for name, amount in amounts.items()
            }

    def finish_part(self, part_id: str, amounts: Mapping[str, float]) -> None:
        """A part is finished, with all that its manifest counts."""
        with self._lock:
            self._under_way.pop(part_id, None)
            self.add(amounts)

    def read_clock(self) -> None:
        """Take a reading for the rate of embedding; to be called regularly while a run works."""
        with self._lock:
            if self.phase == EMBEDDING:
                self._rate.read(self._clock(), self.live("record_bytes"))

    def __getitem__(self, name: str) -> int:
        return int(self.totals.get(name, 0))

    def live(self, name: str) -> float:
        """A total with what is done of the parts under way."""
        with self._lock:
            under_way = sum(amounts.get(name, 0) for amounts in self._under_way.values())
            return self.totals.get(name, 0) + under_way

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self.started

    def seconds_in(self, *phases: str) -> float:
        """Wall-clock seconds that the run was in some phases."""
        with self._lock:
            current_s = self._clock() - self._entered_s if self.phase in phases else 0.0
            return current_s + sum(self._phase_s[phase] for phase in phases)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that went through the model a second (no padding, no reused rows) while the run
        was embedding, start-up and end excluded."""
        seconds = self.seconds_in(EMBEDDING)
        return self.live("n_embedded_tokens") / seconds if seconds else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding."""
        n_padded = self["n_padded_tokens"]
        return 1 - self["n_embedded_tokens"] / n_padded if n_padded else 0.0

    @property
    def busy_share(self) -> float | None:
        """Share of the embedders' time, from loaded to their last part, in which they embedded;
        None before a part."""
        embed_s = self.totals.get("seconds.embed", 0.0)
        starved_s = self.totals.get("seconds.embedders_starved", 0.0)
        return embed_s / (embed_s + starved_s) if embed_s else None

    @property
    def bottleneck(self) -> str | None:
        """What took most of the run: `start-up` or `end`, where they lasted longer than the
        embedding, otherwise the `stage_limit`. None before a part."""
        if self.busy_share is None:
            return None
        phases = {
            "start-up": self.seconds_in(*START_UP),
            "end": self.seconds_in(*END),
            EMBEDDING: self.seconds_in(EMBEDDING),
        }
        longest = max(phases, key=lambda name: phases[name])
        return longest if longest != EMBEDDING and phases[longest] > 0 else self.stage_limit

    @property
    def stage_limit(self) -> str | None:
        """What limits the embedding: `embed`, or what embedders wait for: `read`, `tokenize`, or
        `hand-over` where neither of them works for a tenth of that time. None before a part."""
        busy_share = self.busy_share
        if busy_share is None or busy_share >= BUSY:
            return None if busy_share is None else "embed"
        stages = {stage: self.totals.get(SECONDS + stage, 0.0) for stage in ("read", "tokenize")}
        slowest = max(stages, key=lambda stage: stages[stage])
        embedders_s = self.totals["seconds.embed"] / busy_share
        return slowest if stages[slowest] >= NOTICEABLE * embedders_s else "hand-over"

    @property
    def fraction(self) -> float:
        """Share of the source bytes that is done. It never falls, and stays below 1 until every
        planned split is finished, since the estimate of them may be too low."""
        with self._lock:
            total_bytes = self.remaining.total_bytes
            if self.remaining.is_done:
                self._fraction = 1.0
            elif total_bytes:
                share = min(self.live("record_bytes") / total_bytes, 0.99)
                self._fraction = max(self._fraction, share)
            return self._fraction

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the embedding at the rate of late; None before anything is
        embedded, and after the embedding."""
        with self._lock:
            if self.phase != EMBEDDING:
                return None
            rest_bytes = max(0.0, self.remaining.total_bytes - self.live("record_bytes"))
            return self._rate.seconds_for(rest_bytes, self._clock())

    @property
    def reject_reasons(self) -> dict[str, int]:
        """Number of rejects by reason, in finished parts."""
        return {name: int(value) for name, value in self._totals_of(REASONS)}

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds of workers by stage, in finished parts."""
        return {name: round(value, 3) for name, value in self._totals_of(SECONDS)}

    def _totals_of(self, prefix: str) -> list[tuple[str, float]]:
        """The totals whose names start with a prefix, by the rest of the name."""
        with self._lock:
            totals = sorted(self.totals.items())
        return [(name[len(prefix) :], x) for name, x in totals if name.startswith(prefix)]

    def summary(self) -> dict[str, Any]:
        """The figures of a report: totals, seconds by stage and by phase, rates."""
        counts = {
            name: int(value)
            for name, value in sorted(self.totals.items())
            if not name.startswith((SECONDS, REASONS))
        }
        return {
            **dict.fromkeys(TROUBLES, 0),
            **counts,
            "reject_reasons": self.reject_reasons,
            "seconds": self.stage_seconds,
            "elapsed_s": round(self.elapsed_s, 3),
            "start_up_s": round(self.seconds_in(*START_UP), 3),
            "embedding_s": round(self.seconds_in(EMBEDDING), 3),
            "end_s": round(self.seconds_in(*END), 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "padding_share": round(self.padding_share, 5),
            "busy_share": None if self.busy_share is None else round(self.busy_share, 4),
            "bottleneck": self.bottleneck,
        }
