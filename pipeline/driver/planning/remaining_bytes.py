"""How many bytes of records the splits of a plan hold, for the estimated time to the end.

In: a plan. Out: a `Remaining`, which finished splits correct. Method: uncompressed shards have the
bytes that the store tells; compressed ones are taken to be COMPRESSION_RATIO times as large until
`sample` has opened the first MAX_SAMPLED of each compression. Cost: the start of these shards, at
most SAMPLE_BYTES decompressed of each.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict

from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.splits import COMPRESSION_RATIO, estimated_bytes
from pipeline.errors import CorpusEmbedError
from pipeline.observe.rate import PlannedSplit, Remaining
from pipeline.read.compression import compression_of, decompressed_blocks
from pipeline.read.input.shards import open_shard
from pipeline.storage.lineage import Shard

MAX_SAMPLED = 3
"""How many shards of a compression are opened."""
SAMPLE_BYTES = 4 << 20
"""How much of each is decompressed."""


def remaining_of(plan: Plan) -> Remaining:
    """The splits of a plan that have something to do."""
    format = plan.job.spec.input.format
    done_bytes: dict[str, int] = defaultdict(int)
    for part in plan.done:
        done_bytes[part.split.split_id] += part.record_bytes
    return Remaining(
        PlannedSplit(
            split_id := todo.split.split_id,
            _kind(todo.split.spans[0].shard),
            estimated_bytes(todo.split, format),
            done_bytes[split_id],
            frozenset(todo.finished),
        )
        for todo in plan.todo
    )


def sample(plan: Plan, remaining: Remaining) -> None:
    """Open some compressed shards of a plan and correct `remaining` by what they hold. A shard that
    cannot be read corrects nothing."""
    options = plan.job.spec.input.storage_options
    shards: dict[str, list[Shard]] = defaultdict(list)
    for todo in plan.todo:
        for span in todo.split.spans:
            kind = _kind(span.shard)
            if kind and span.is_whole and len(shards[kind]) < MAX_SAMPLED:
                shards[kind].append(span.shard)
    for kind, of_kind in shards.items():
        n_compressed, n_decompressed = 0, 0
        for shard in of_kind:
            with (
                contextlib.suppress(CorpusEmbedError, OSError),
                open_shard(shard, options) as file,
            ):
                for block in decompressed_blocks(file, shard.uri):
                    n_decompressed += len(block)
                    if n_decompressed > SAMPLE_BYTES:
                        break
                n_compressed += file.tell()
        if n_compressed:
            remaining.assume(kind, n_decompressed / n_compressed / COMPRESSION_RATIO)


def _kind(shard: Shard) -> str:
    return compression_of(shard.uri) or ""
