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


def engine_of(model: ModelDir, *, prompt_tokens: int = 0, **choices: Any) -> Engine:
    with mock.patch.object(loading, "times_float32", return_value=1.0):
        return load_engine(model, EngineOptions.of(model, **choices), prompt_tokens)
