"""What the actors of a run load, without Ray round them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.driver.cluster import execution
from pipeline.job.resolve import Job, resolve
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers import stages
from tests.support.model_dirs import bert_dense_normalize
from tests.support.outputs import make_spec


@contextlib.contextmanager
def unreported(_totals: Any) -> Any:
    yield


def test_with_a_prompt_an_embedder_hashes_the_weights_once_and_loads_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bert_dense_normalize(tmp_path / "m", layers=1, include_prompt=False)
    out = str(tmp_path / "out")
    job = resolve(make_spec("in", out, path, model={"prompt": "search query: "}), "cpu")
    tokenizer = load_tokenizer(job.model(), max_tokens=job.max_tokens, prompt=job.prompt)
    n_prompt = execution._prompt_tokens(job)
    assert n_prompt == tokenizer.prompt_tokens > 1
    models = []
    load_model = Job.model

    def counted(job: Job) -> Any:
        models.append(load_model(job))
        return models[-1]

    monkeypatch.setattr(Job, "model", counted)
    monkeypatch.setattr(stages, "loading", unreported)
    monkeypatch.setattr("pipeline.tokenize.load_tokenizer", None)
    embedder = stages.EmbedParts(job, Store(out), n_prompt, 1, None)
    assert len(models) == 1
    # the prompt is left out of the pooling, as the directory of the model says
    ids = tokenizer.encode(["a text"])
    others = stages.EmbedParts(job, Store(out), 0, 1, None)
    own, other = (
        stage.engine.run(lambda engine: engine.embed(ids.ids, ids.offsets))
        for stage in (embedder, others)
    )
    assert not np.allclose(own, other)


@pytest.mark.parametrize("prompt", [None, "search query: "])
def test_where_no_prompt_is_left_out_the_driver_reads_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str | None
) -> None:
    path = bert_dense_normalize(tmp_path / "m", layers=1)
    job = resolve(make_spec("in", str(tmp_path / "out"), path, model={"prompt": prompt}), "cpu")
    assert job.prompt == prompt
    monkeypatch.setattr(Job, "model", None)
    assert execution._prompt_tokens(job) == 0
