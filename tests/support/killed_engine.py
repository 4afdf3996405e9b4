"""An engine that kills its process on some texts, and how children load it. No torch: a child
starts in a second."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from pipeline.embed.stats import EngineStats
from pipeline.errors import WorkerError
from pipeline.workers.steps import Embeds
from tests.support.stand_in import HashEngine

KILLS, RAISES = b"!", b"?"


class KilledEngine(HashEngine):
    """Dies on one kind of text and raises on another."""

    def __init__(self, is_tuned: bool) -> None:
        super().__init__()
        self.tuning = {"tuned": str(is_tuned)}

    def embed(self, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> np.ndarray:
        if KILLS[0] in ids:
            ctypes.string_at(0)
        if RAISES[0] in ids:
            raise ValueError("cannot be embedded")
        return super().embed(ids, offsets, stats)


def load(*, is_tuned: bool) -> Embeds:
    return KilledEngine(is_tuned)


def load_short_of_memory(folder: Path, *, is_tuned: bool) -> Embeds:
    """As `load_engine` in a child that does not get the memory."""
    (folder / str(len(list(folder.iterdir())))).touch()
    if not is_tuned:
        raise WorkerError("there is not enough memory on 'cuda'")
    return KilledEngine(is_tuned)
