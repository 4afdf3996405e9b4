"""What of the input could not be read: shards that break off or cannot be decoded somewhere.

Comes in: manifests. Goes out: a record for each damaged shard, and a sentence where they are too
many. A run asks while it works and before it commits, `verify` afterwards, from storage alone.
Bytes are those of the shard as it is stored. Where nobody can say how many are missing, as behind
the end of a shard that was cut off, the whole shard counts. Cost: a pass over the manifests.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Shard

MAX_SHOWN = 3
"""How many damaged shards a sentence names."""


@dataclasses.dataclass(frozen=True)
class DamagedShard:
    """A shard of which something could not be read.

    lost_bytes: how many of its `size_bytes` stored bytes; 0 where an earlier release did not count.
    """

    uri: str
    size_bytes: int
    lost_bytes: int

    def __str__(self) -> str:
        share = f"{self.lost_bytes / max(1, self.size_bytes):.0%} of {self.size_bytes} bytes"
        return f"{shown(self.uri)} ({share if self.lost_bytes else 'an unknown share'})"


def damaged_shards(parts: Iterable[Manifest]) -> list[DamagedShard]:
    """The damaged shards that some parts come from, those with the largest losses first."""
    lost_bytes: dict[Shard, int] = defaultdict(int)
    for part in parts:
        if not any(source.damaged for source in part.sources):
            continue
        shards = {(span.shard.uri, span.shard.etag): span.shard for span in part.split.spans}
        for source in part.sources:
            if source.damaged:
                unplanned = Shard(uri=source.uri, etag=source.etag, size_bytes=source.lost_bytes)
                shard = shards.get((source.uri, source.etag), unplanned)
                lost_bytes[shard] += source.lost_bytes
    damaged = [
        DamagedShard(shard.uri, shard.size_bytes, min(n_bytes, shard.size_bytes))
        for shard, n_bytes in lost_bytes.items()
    ]
    return sorted(damaged, key=lambda shard: (-shard.lost_bytes, shard.uri))


def damage_problem(
    damaged: Sequence[DamagedShard], n_shards: int, input_bytes: int, limit: float
) -> str | None:
    """A sentence where more of the input is lost than `limit` allows, of its bytes or of its
    shards; a shard counts as lost with more than half of its bytes."""
    lost_bytes = sum(shard.lost_bytes for shard in damaged)
    n_lost = sum(2 * shard.lost_bytes > shard.size_bytes for shard in damaged)
    if lost_bytes <= limit * input_bytes and n_lost <= limit * n_shards:
        return None
    return (
        f"{lost_bytes} of {input_bytes} bytes of the input ({lost_bytes / input_bytes:.1%}) "
        f"could not be read, and {n_lost} of its {n_shards} shards are lost; "
        f"runtime.max_damaged_fraction allows {limit:.1%} of either. Damaged are "
        f"{named(damaged)}."
    )


def named(damaged: Sequence[DamagedShard]) -> str:
    """The damaged shards in words, the largest losses first."""
    return ", ".join(_names(damaged))


def _names(damaged: Sequence[DamagedShard]) -> Iterator[str]:
    yield from map(str, damaged[:MAX_SHOWN])
    if len(damaged) > MAX_SHOWN:
        yield f"and {len(damaged) - MAX_SHOWN} more"
