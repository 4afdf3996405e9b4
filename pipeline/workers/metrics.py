"""Counting what a run does: totals over finished parts, rates, and the estimated time to the end.

Plain arithmetic without Ray or a terminal: the write stage reports each manifest,
`pipeline/cli/display.py` shows the result. Every figure comes from manifests, so it counts exactly
what is already safe.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from pipeline.storage.lineage import Manifest

_SUMMED = (
    "n_records",
    "n_documents",
    "n_rejects",
    "n_rows",
    "n_tokens",
    "n_embedded_tokens",
    "n_padded_tokens",
    "n_truncated",
    "n_embedded",
    "n_reused",
    "record_bytes",
    "n_oom_halvings",
)

TROUBLES = {
    "worker_restarts": "workers started again",
    "storage_retries": "requests tried again",
    "n_oom_halvings": "buckets halved for memory",
    "n_crashed_records": "records rejected because workers failed on them",
    "n_replaced": "documents in which U+FFFD stands for bytes that are no character",
}
"""What a run recovered from: name in `Progress.totals` and words for people."""

BUSY = 0.9
"""Share of their time that embedders work when nothing before them is too slow."""


def increments(manifest: Manifest) -> dict[str, float]:
    """What one finished part adds to the totals: counts, stage seconds (`seconds.embed` …) and
    `parts`."""
    amounts: dict[str, float] = {name: getattr(manifest, name) for name in _SUMMED}
    amounts |= {f"seconds.{stage}": seconds for stage, seconds in manifest.seconds.items()}
    amounts["n_crashed_records"] = sum(
        manifest.reject_reasons.get(name, 0) for name in ("crashed_worker", "out_of_memory")
    )
    amounts["n_replaced"] = sum(source.n_replaced for source in manifest.sources)
    amounts["lost_bytes"] = lost_bytes(manifest)
    amounts["n_files"] = len(manifest.data_files)
    amounts["data_bytes"] = sum(file.size_bytes for file in manifest.data_files)
    amounts["parts"] = 1
    return amounts


def lost_bytes(manifest: Manifest) -> int:
    """Stored bytes of its shards that a part could not read."""
    return sum(source.lost_bytes for source in manifest.sources)


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
