"""Loads engines for tests, with the options of the model directory unless a test chooses others.

Dtypes that this CPU emulates are not refused: their vectors are right on every machine, and tests
have few of them.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from pipeline.embed import Engine, load_engine, loading
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir


def engine_of(
    model: ModelDir, *, prompt_tokens: int = 0, is_tuned: bool = False, **choices: Any
) -> Engine:
    with mock.patch.object(loading, "times_float32", return_value=1.0):
        options = EngineOptions.of(model, **choices)
        return load_engine(model, options, prompt_tokens, is_tuned=is_tuned)
