"""What calls of an engine have done. No torch: workers count without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

__all__ = ["EngineStats", "OnBucket"]

OnBucket = Callable[[int], None]
"""Takes the number of tokens of a bucket that was queued."""


@dataclass
class EngineStats:
    """Sums over calls of `Engine.embed`. `n_padded_tokens` counts what was computed, padding
    included; `seconds` run from the turn of a call to its last vector. on_bucket: called with the
    tokens of each bucket, for displays."""

    n_texts: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    n_batches: int = 0
    seconds: float = 0.0
    n_oom_halvings: int = 0
    on_bucket: OnBucket | None = None

    def add(self, other: EngineStats) -> None:
        """Count what another engine has done."""
        for field in fields(self):
            if field.name != "on_bucket":
                sum_ = getattr(self, field.name) + getattr(other, field.name)
                setattr(self, field.name, sum_)

    @property
    def padding_share(self) -> float:
        """Of the computed tokens, 0 to 1."""
        return 1 - self.n_tokens / self.n_padded_tokens if self.n_padded_tokens else 0.0
