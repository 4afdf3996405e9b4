"""What a worker that has written a part reports of it. In a file of its own, because the actor that
it is reported to imports nothing else of this package, and so starts in half the time."""

from __future__ import annotations

import dataclasses

__all__ = ["FinishedPart"]


@dataclasses.dataclass(frozen=True)
class FinishedPart:
    """What the driver learns of a part that is written. index, last: its place in its split.
    amounts: from `increments` in `workers/metrics.py`, and the seconds of its writing."""

    part_id: str
    split_id: str
    index: int
    last: bool
    amounts: dict[str, float]
