"""The token budget of a GPU, found once per model and device and remembered.

In: an engine and candidate budgets. Out: the budget that gave the most tokens a second. Method: the
same synthetic texts through every candidate, smallest first, so that running out of memory ends the
search with what was found. The result lies under ~/.cache/corpus-embed/budgets, by the hash of
model files, device, dtype and torch. Cost: about a second on a GPU, a file read after that. A CPU
keeps its default: its differences were within the noise (benchmarks/LOG.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.embed.engine import Engine, log

__all__ = ["device_key", "find_budget", "remembered_budget"]

CANDIDATES = (8_192, 16_384, 32_768, 65_536, 131_072)
TEXT_TOKENS = 100
ROUNDS = 3


def device_key(files: dict[str, str], engine: Engine) -> str:
    """Name of what a budget holds for: these model files on this kind of device."""
    device = (
        torch.cuda.get_device_name(engine.device) if engine.device.startswith("cuda") else "cpu"
    )
    facts = [sorted(files.items()), device, engine.name, engine.dtype, torch.__version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def remembered_budget(engine: Engine, key: str, candidates: Sequence[int] = CANDIDATES) -> int:
    """The budget found earlier under `key`, or the result of `find_budget`, kept for the next
    process."""
    home = os.environ.get("CORPUS_EMBED_CACHE_DIR", Path.home() / ".cache" / "corpus-embed")
    path = Path(home) / "budgets" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_text())["budget_tokens"])
    found = find_budget(engine, candidates)
    # a home that cannot be written costs the next process a second
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(
                {"budget_tokens": found, "device": engine.device, "engine": engine.name}, file
            )
        os.replace(file.name, path)
    return found


def find_budget(engine: Engine, candidates: Sequence[int]) -> int:
    """The candidate with the most tokens a second; leaves the engine's statistics and budget as
    they were."""
    stats, budget = engine.stats, engine.budget_tokens
    speeds: dict[int, float] = {}
    for candidate in candidates:
        engine.stats, engine.budget_tokens = type(stats)(), candidate
        # two buckets: copies overlap
        offsets = np.arange(0, 2 * candidate + 1, TEXT_TOKENS, dtype=np.int64)
        ids = np.zeros(int(offsets[-1]), dtype=np.int32)
        try:
            # the first one warms up
            seconds = [_timed(engine, ids, offsets) for _ in range(ROUNDS + 1)][1:]
        except torch.OutOfMemoryError:
            break
        if engine.stats.n_oom_halvings:
            break
        speeds[candidate] = ids.size / min(seconds)
    engine.stats, engine.budget_tokens = stats, budget
    log.info("%s: tokens/s by budget: %s", engine.name, {k: round(v) for k, v in speeds.items()})
    return max(speeds, key=speeds.__getitem__, default=min(candidates))


def _timed(engine: Engine, ids: np.ndarray, offsets: np.ndarray) -> float:
    started = time.perf_counter()
    engine.embed(ids, offsets)  # returns when the last result is here
    return time.perf_counter() - started
