"""The figures of a run: totals over finished parts, rates, and the estimated time to the end.

Plain arithmetic without Ray or a terminal: the driver adds what workers report
(`pipeline/workers/metrics.py`), and `pipeline/cli/display.py` shows the result.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

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


@dataclasses.dataclass
class Progress:
    """Totals of one run. `bytes_todo` (source bytes, an estimate) is what the ETA is computed
    against."""

    bytes_todo: int = 0
    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)

    def add(self, amounts: dict[str, float]) -> None:
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, 0) + amount

    def __getitem__(self, name: str) -> int:
        return int(self.totals.get(name, 0))

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def tokens_per_s(self) -> float:
        """Tokens that went through the model a second (no padding, no reused rows) since the start,
        start-up included."""
        return self["n_embedded_tokens"] / max(self.elapsed_s, 1e-9)

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding."""
        return (
            1 - self["n_embedded_tokens"] / self["n_padded_tokens"]
            if self["n_padded_tokens"]
            else 0.0
        )

    @property
    def busy_share(self) -> float | None:
        """Share of the embedders' time, from loaded to their last part, in which they embedded;
        None before a part."""
        embed = self.totals.get("seconds.embed", 0.0)
        starved = self.totals.get("seconds.embedders_starved", 0.0)
        return embed / (embed + starved) if embed else None

    @property
    def bottleneck(self) -> str | None:
        """What limited the run: `embed`, or what embedders waited for: `read`, `tokenize` or
        `start-up`."""
        if self.busy_share is None or self.busy_share >= BUSY:
            return None if self.busy_share is None else "embed"
        waits = {stage: self.totals.get(f"seconds.{stage}", 0.0) for stage in ("read", "tokenize")}
        waits["start-up"] = self.totals["seconds.embedders_starved"] - sum(waits.values())
        return max(waits, key=lambda stage: waits[stage])

    @property
    def fraction(self) -> float:
        """Share of the source bytes that is done; stays below 1 while the estimate of them may be
        too low."""
        return min(self["record_bytes"] / self.bytes_todo, 0.99) if self.bytes_todo else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the rate so far; None before the first part."""
        return self.elapsed_s * (1 / self.fraction - 1) if self.fraction > 0 else None

    def summary(self) -> dict[str, Any]:
        """The figures of a report: totals, seconds by stage, rates."""
        return {
            **dict.fromkeys(TROUBLES, 0),
            **{
                name: int(value)
                for name, value in sorted(self.totals.items())
                if not name.startswith("seconds.")
            },
            "seconds": {
                name[8:]: round(value, 3)
                for name, value in sorted(self.totals.items())
                if name.startswith("seconds.")
            },
            "elapsed_s": round(self.elapsed_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "padding_share": round(self.padding_share, 5),
            "busy_share": None if self.busy_share is None else round(self.busy_share, 4),
            "bottleneck": self.bottleneck,
        }
