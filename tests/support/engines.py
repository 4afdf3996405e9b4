"""Loads engines for tests, with the options of the model directory unless a test chooses others."""

from __future__ import annotations

from typing import Any

from pipeline.embed import Engine, load_engine
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model_dir import ModelDir


def engine_of(model: ModelDir, *, prompt_tokens: int = 0, **choices: Any) -> Engine:
    return load_engine(model, EngineOptions.of(model, **choices), prompt_tokens)
