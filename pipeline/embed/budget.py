"""The token budget of a GPU, measured once for each model and kind of device, and kept.

In: an engine and candidate budgets. Out: the smallest budget that is within 2 % of the most tokens
a second, because a smaller one leaves memory and ends sooner. Method: random texts go through every
candidate in eight buckets, smallest first, so that running out of memory ends the search with the
candidates measured so far. The result lies in the cache folder `budgets`, named by the hash of
model files, device, dtype and versions. Cost: some seconds on a GPU, then one file read in each
process. A CPU keeps its default: the differences there were within the noise (benchmarks/LOG.md).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.embed.engine import Engine, log
from pipeline.embed.stats import EngineStats
from pipeline.job.release import release
from pipeline.storage.caches import cached

__all__ = ["device_key", "find_budget", "remembered_budget"]

CANDIDATES = (8_192, 16_384, 32_768, 65_536, 131_072)
TEXT_TOKENS = 100
BUCKETS = 8
ROUNDS = 3
WITHIN = 0.98
"""Of the most tokens a second."""


def device_key(files: dict[str, str], engine: Engine) -> str:
    """What a budget holds for, as a name: these model files on this kind of device."""
    of_engine = [engine.device_name, engine.name, engine.dtype]
    facts = [sorted(files.items()), *of_engine, torch.__version__, release()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def remembered_budget(engine: Engine, key: str, candidates: Sequence[int] = CANDIDATES) -> int:
    """The budget kept under `key`, or else the result of `find_budget`, which is then kept."""

    def measured() -> bytes:
        return json.dumps({"budget_tokens": find_budget(engine, candidates)}).encode()

    def budget_tokens(facts: Path | bytes) -> int:
        text = facts.read_bytes() if isinstance(facts, Path) else facts
        return int(json.loads(text)["budget_tokens"])

    return cached("budgets", f"{key}.json", measured, budget_tokens)


def find_budget(engine: Engine, candidates: Sequence[int]) -> int:
    """The smallest candidate with about the most tokens a second. The engine's budget stays as it
    was, and its statistics do."""
    budget_tokens = engine.budget_tokens
    speeds: dict[int, float] = {}
    for candidate in candidates:
        engine.budget_tokens = candidate
        offsets = np.arange(0, BUCKETS * candidate + 1, TEXT_TOKENS, dtype=np.int64)
        ids = np.random.default_rng(0).integers(0, engine.n_ids, offsets[-1]).astype(np.int32)
        stats = EngineStats()
        try:
            # the first call warms up
            seconds = [_seconds(engine, ids, offsets, stats) for _ in range(ROUNDS + 1)][1:]
        except torch.OutOfMemoryError:
            break
        if stats.n_oom_halvings:
            break
        speeds[candidate] = ids.size / min(seconds)
    engine.budget_tokens = budget_tokens
    log.info("%s: tokens/s by budget: %s", engine.name, {k: round(v) for k, v in speeds.items()})
    good = [budget for budget in speeds if speeds[budget] >= WITHIN * max(speeds.values())]
    return min(good, default=min(candidates))


def _seconds(engine: Engine, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> float:
    start_s = time.perf_counter()
    engine.embed(ids, offsets, stats)  # returns when the last vector is on the host
    return time.perf_counter() - start_s
