"""The number of learned positions, held against the forward of transformers itself, and headers of
safetensors files that are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import ModelError
from pipeline.job.model.weight_files import learned_positions, tensor_shapes, weight_files

SIZES = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
TABLES: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, {}),
    "roberta, padding 1": (transformers.RobertaConfig, {"pad_token_id": 1}),
    "roberta, padding 3": (transformers.RobertaConfig, {"pad_token_id": 3}),
    "xlm-roberta": (transformers.XLMRobertaConfig, {}),
    "camembert": (transformers.CamembertConfig, {}),
    "mpnet": (transformers.MPNetConfig, {}),
    "luke": (transformers.LukeConfig, {"entity_vocab_size": 10, "entity_emb_size": 8}),
    "electra": (transformers.ElectraConfig, {"embedding_size": 8}),
    "distilbert": (transformers.DistilBertConfig, {"dim": 8, "n_heads": 2, "hidden_dim": 8}),
    "albert": (transformers.AlbertConfig, {"embedding_size": 8}),
    "gpt2": (transformers.GPT2Config, {"n_embd": 8, "n_head": 2, "n_layer": 1}),
    "deberta-v2": (transformers.DebertaV2Config, {"position_biased_input": True}),
}


def saved(directory: Path, model: Any) -> tuple[dict[str, Any], int | None]:
    model.eval().save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    return config, learned_positions(config, tensor_shapes(directory))


@pytest.mark.parametrize("name", TABLES)
def test_a_text_of_as_many_tokens_runs_and_one_more_does_not(name: str, tmp_path: Path) -> None:
    kind, settings = TABLES[name]
    config = kind(**{**SIZES, "max_position_embeddings": 20, **settings})
    model = transformers.AutoModel.from_config(config)
    _, positions = saved(tmp_path, model)
    assert positions is not None
    with torch.no_grad():
        model(torch.full((1, positions), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, positions + 1), 7))


def test_computed_positions_are_no_table(tmp_path: Path) -> None:
    llama = transformers.LlamaModel(transformers.LlamaConfig(**SIZES, max_position_embeddings=20))
    assert saved(tmp_path, llama)[1] is None


@pytest.mark.parametrize("change", ["cut", "longer", "no header", "no json", "huge header"])
def test_a_file_that_is_not_whole_is_refused_by_name(change: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    saved(tmp_path, transformers.BertModel(transformers.BertConfig(**SIZES)))
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:-5],
            "longer": whole + b"\0",
            "no header": b"\1",
            "no json": (4).to_bytes(8, "little") + b"{{{{",
            "huge header": (1 << 40).to_bytes(8, "little") + whole[8:],
        }[change]
    )
    with pytest.raises(ModelError, match=r"model\.safetensors: .* [Rr]estore it from its source"):
        tensor_shapes(tmp_path)


def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ModelError, match="no file of the directory"):
        weight_files(tmp_path)
