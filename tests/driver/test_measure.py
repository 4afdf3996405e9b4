"""The speed of this machine, measured in child processes.

Oracle: the clock, and the processes that are left.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from pipeline.driver.estimate.measure import measured_rate
from pipeline.driver.estimate.rates import Rate, model_hash
from pipeline.job.cpu_features import cpu_name
from pipeline.job.resolve import resolve
from tests.support.outputs import make_spec
from tests.support.processes import below

TEXTS = [np.arange(5, 5 + length, dtype=np.int32) for length in (8, 30, 16)] * 20


def test_a_speed_is_measured_beside_this_process_and_leaves_nothing(bert_mean_dir: Path) -> None:
    others = below(os.getpid()).keys()  # servers of other tests
    job = resolve(make_spec("in", "out", bert_mean_dir), "cpu")
    started_s = time.monotonic()
    rate = measured_rate(job, TEXTS, 0, 1, 1, limit_s=120)
    elapsed_s = time.monotonic() - started_s
    assert isinstance(rate, Rate)
    assert (rate.device_name, rate.model, rate.source) == (cpu_name(), model_hash(job), "measured")
    # what one process did in all of this time is less than what it did in a part of it
    assert rate.tokens_per_s > rate.n_tokens / elapsed_s > 0
    assert below(os.getpid()).keys() <= others


def test_a_model_that_cannot_be_loaded_has_no_speed_and_is_tried_once(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    others = below(os.getpid()).keys()
    model = shutil.copytree(bert_mean_dir, tmp_path / "model")
    job = resolve(make_spec("in", "out", model), "cpu")
    (model / "model.safetensors").write_bytes(b"damaged")
    problem = measured_rate(job, TEXTS, 0, 1, 1, limit_s=120)
    assert isinstance(problem, str) and "model.safetensors" in problem
    assert below(os.getpid()).keys() <= others


def test_a_model_that_loads_for_too_long_has_no_speed_and_says_so(bert_mean_dir: Path) -> None:
    others = below(os.getpid()).keys()  # servers of other tests
    job = resolve(make_spec("in", "out", bert_mean_dir), "cpu")
    problem = measured_rate(job, TEXTS, 0, 1, 1, limit_s=0.01)
    assert isinstance(problem, str) and "took more than 0 s" in problem
    assert below(os.getpid()).keys() <= others
