"""The blocks of splits that a run on Ray starts from.

In: splits. Out: Arrow tables, one row for each split. Ray is not imported. Cost: their JSON.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pyarrow as pa

from pipeline.read.parts import Todo

__all__ = ["MAX_BLOCKS", "blocks_of"]

MAX_BLOCKS = 4096
"""Blocks that Ray Data is given: each costs the driver 48 KB and a millisecond before the first one
is worked on."""


def blocks_of(todo: Sequence[Todo]) -> list[pa.Table]:
    """What the dataset starts from, one row for each split: `todo` in order, in MAX_BLOCKS blocks
    at most.

    These are finished blocks and not `ray.data.range`, whose read tasks want a whole CPU each: once
    the actors hold all but a fraction of the CPUs, they wait endlessly (Ray 2.60, seen on two
    cores). One tokenizer does the splits of a block one after another; the last splits have a block
    to themselves, so that all tokenizers have work to the end.
    """
    alone = MAX_BLOCKS // 2
    n_shared = max(0, len(todo) - alone)
    size = max(1, math.ceil(n_shared / (MAX_BLOCKS - alone)))
    starts = [*range(0, n_shared, size), *range(n_shared, len(todo))]
    return [
        pa.table({"todo": [split.to_json() for split in todo[start:stop]]})
        for start, stop in itertools.pairwise([*starts, len(todo)])
    ]
