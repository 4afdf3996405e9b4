"""A model whose config.json and weights do not belong together is refused, by the plan where the
packed engine reads it, and never completed with random numbers."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.embed.choice import choose
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import ModelDir
from pipeline.job.model.store import resolve
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean, llama_last_token

pytestmark = pytest.mark.model

Damage = Callable[[dict[str, torch.Tensor]], Any]


def damaged(make: Any, path: Path, damage: Damage | None = None, **config: Any) -> ModelDir:
    """A copy of the directory with other weights, and other values in its config.json."""
    made = make(path.parent / "made")
    copy = Path(shutil.copytree(made, path))
    if damage is not None:
        weights = load_file(copy / "model.safetensors")
        damage(weights)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**stated, **config}))
    return resolve(str(copy))


def shorten(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] = weights[name][:-1].clone()


@pytest.mark.parametrize(
    ("make", "damage", "config", "message"),
    [
        (bert_mean, shorten, {}, r"1 of \d+ tensors .*word_embeddings.weight \(\d+, 64\), not \("),
        (bert_mean, None, {"num_hidden_layers": 4}, r"tensors .*layer\.\d.*, not None"),
        (bert_mean, None, {"intermediate_size": 7}, r"tensors .*intermediate.dense.weight \(7, 64"),
        (bert_mean, None, {"num_attention_heads": None}, "a value that no bert model can have"),
        (bert_mean, None, {"hidden_size": "64"}, "a value that no bert model can have"),
        (bert_mean, None, {"num_hidden_layers": []}, "a value that no bert model can have"),
        (bert_mean, None, {"layer_norm_eps": None}, "eps is None"),
        (llama_last_token, None, {"num_attention_heads": 0}, "a value that no llama model"),
        (llama_last_token, None, {"num_key_value_heads": 3}, "4 heads of queries for 3 of keys"),
        (llama_last_token, None, {"is_causal": None}, "is_causal is None"),
        (llama_last_token, None, {"rope_parameters": 3}, "a value that no llama model can have"),
        (llama_last_token, None, {"rope_parameters": {"rope_theta": "x"}}, "rope_theta 'x'"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_plan_refuses_a_packed_model_in_one_sentence(
    make: Any, damage: Damage | None, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = damaged(make, tmp_path / "damaged", damage, **config)
    with pytest.raises(ModelError, match=message) as refusal:
        choose(model, EngineOptions.of(model))
    assert len(str(refusal.value)) < 800


def test_positions_that_are_counted_from_no_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pad_token_id 'x'"):
        damaged(bert_mean, tmp_path / "damaged", model_type="roberta", pad_token_id="x")


class Terminal:
    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.__stdout__, name)


@pytest.mark.parametrize("n_missing", [1, 2, 15])
@pytest.mark.parametrize("place", ["pipe", "terminal", "muted"])
def test_missing_layers_are_never_random(
    n_missing: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers names them in a table: alone, in a list or as a range, in colours on a terminal,
    and nowhere where logging is switched off."""
    made = json.loads((bert_mean(tmp_path / "made") / "config.json").read_text())
    layers = made["num_hidden_layers"] + n_missing
    model = damaged(bert_mean, tmp_path / "damaged", num_hidden_layers=layers)
    if place == "terminal":
        monkeypatch.setattr(sys, "stdout", Terminal())
    if place == "muted":
        monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    with pytest.raises(ModelError, match="random numbers in their place"):
        engine_of(model, engine="padded")
    assert logging.root.manager.disable == (logging.CRITICAL if place == "muted" else 0)
