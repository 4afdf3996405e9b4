"""The engine that a plan names is the one that a worker loads, and the plan says why.

Oracle: the engine that `load_engine` returns for the same directory and options.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from pipeline.cli.display import show_plan
from pipeline.driver.planning.plan import make_plan
from pipeline.embed.choice import choose
from pipeline.embed.families import FAMILIES
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.store import resolve
from pipeline.job.resolve import resolve as resolve_job
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean, llama_last_token, static
from tests.support.outputs import make_spec, write_shard
from tests.support.stand_in import store_of

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def changed(model: ModelDir, path: Path, **config: Any) -> ModelDir:
    """A copy of the directory, with other values in its config.json."""
    copy = Path(shutil.copytree(model.path, path))
    stated = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**stated, **config}))
    return resolve(str(copy))


@pytest.mark.parametrize(
    ("make", "config", "engine", "reason"),
    [
        (bert_mean, {}, "packed", "model_type 'bert'"),
        (llama_last_token, {}, "packed", "model_type 'llama'"),
        (static, {}, "static", "a StaticEmbedding model is a table of its tokens' vectors"),
        (bert_mean, {"hidden_act": "mish"}, "padded", "the activation 'mish' is not one of"),
        (
            llama_last_token,
            {"rope_parameters": DYNAMIC, "rope_scaling": None},
            "padded",
            "rotary positions of type 'dynamic' depend on the text's length",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_engine_that_is_loaded_is_the_one_of_the_plan(
    make: Any, config: dict[str, Any], engine: str, reason: str, tmp_path: Path
) -> None:
    model = resolve(str(make(tmp_path / "made")))
    if config:
        model = changed(model, tmp_path / "changed", **config)
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "hello"}])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), model.path)
    plan = make_plan(resolve_job(spec, "cpu"), store_of(spec))
    facts = plan.summary()
    assert facts["engine"] == engine
    assert facts["engine_reason"].startswith(reason)
    assert engine_of(model).name.startswith(engine)
    console = Console(file=io.StringIO(), width=400)
    show_plan(console, plan)
    assert f"{engine}: {reason}" in console.file.getvalue()


@pytest.mark.parametrize(
    ("options", "config", "reason"),
    [
        ({"engine": "padded"}, {}, "runtime.engine asks for it"),
        ({}, {"model_type": "mpnet"}, "model_type 'mpnet' has no packed forward"),
        ({}, {"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ({"device": "cuda"}, {}, "needs bfloat16 or float16, and the dtype is float32"),
        (
            {"device": "cuda", "dtype": "bfloat16"},
            {"hidden_size": 104},
            "those of this model have 26",
        ),
    ],
    ids=str,
)
def test_a_padded_engine_has_a_reason(
    options: dict[str, Any], config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = resolve(str(bert_mean(tmp_path / "made")))
    object.__setattr__(model, "config", {**model.config, **config})
    choice = choose(model, EngineOptions.of(model, **options))
    assert (choice.engine, choice.shape) == ("padded", None)
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("head_dim", "engine"),
    [(26, "padded"), (64, "packed"), (112, "packed"), (128, "packed"), (256, "packed"),
     (264, "padded")],
)  # fmt: skip
def test_a_gpu_takes_heads_that_flash_attention_takes(
    head_dim: int, engine: str, tmp_path: Path
) -> None:
    model = resolve(str(llama_last_token(tmp_path / "made")))
    model = changed(model, tmp_path / "changed", head_dim=head_dim)
    llama = FAMILIES["llama"]
    weights = llama.shapes(llama.read(model.config))
    save_file(
        {name: torch.zeros(shape) for name, shape in weights.items()},
        model.path / "model.safetensors",
    )
    options = EngineOptions.of(model, device="cuda", dtype="bfloat16")
    assert choose(model, options).engine == engine


@pytest.mark.parametrize(
    "choices",
    [{"engine": "packed", "dtype": "bfloat16", "device": "cuda"}, {"dtype": "int8"}],
    ids=str,
)
def test_a_plan_refuses_what_no_worker_could_load(choices: dict[str, Any], tmp_path: Path) -> None:
    model = resolve(str(bert_mean(tmp_path / "made")))
    model = changed(model, tmp_path / "changed", model_type="electra")
    with pytest.raises(ModelError, match="the packed engine cannot run this model: model_type"):
        choose(model, EngineOptions.of(model, **choices))


def test_workers_read_the_directory_of_their_own_node(tmp_path: Path) -> None:
    spec = make_spec("in", str(tmp_path / "out"), bert_mean(tmp_path / "made"))
    job = resolve_job(spec, "cpu")
    sent = pickle.loads(pickle.dumps(job))
    assert (sent, sent.model_here) == (job, None)
