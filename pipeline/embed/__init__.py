"""Turns token ids into vectors. The only room that imports torch, and only where it runs: what
`choice` needs does without.

engine      the interface of every engine, and the loop over buckets
choice      which engine serves a model, and why
stats       what calls of an engine have done; memory: whether a device is out of it
loading     `load_engine`, which loads that engine: one of the three below
packed      the unpadded engine
forward     its forward, from layers and the steps between products
families    names of weights by model_type
configs     what config.json says of a forward, as sizes and rotary positions
static      the engine of StaticEmbedding models
padded      the engine of every other sentence-transformers directory
buckets     which rows share a forward pass; budget: how many tokens a GPU takes at once
attention   attention over packed rows
linear      linear layers with oneDNN; int8: the same in 8-bit integers
products    the products of oneDNN that linear layers take
fused       steps between the products that torch.compile makes faster
weights     safetensors, read without transformers
pooling     rows of hidden states → one vector a row
head        Dense, Normalize and truncation behind pooling
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.embed.engine import Engine
    from pipeline.embed.loading import load_engine
    from pipeline.embed.stats import EngineStats

__all__ = ["Engine", "EngineStats", "load_engine"]

_LAZY = {"Engine": "engine", "EngineStats": "stats", "load_engine": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
