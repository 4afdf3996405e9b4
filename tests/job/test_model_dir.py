"""What `resolve` reads from a directory, held against sentence-transformers reading the same
directory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.embed.loading import load_engine
from pipeline.errors import ModelError
from pipeline.job import resolve as job_module
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.store import resolve
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers.guarded_steps import load_preparer
from tests.support.model_dirs import (
    bert_dense_normalize,
    bert_japanese,
    bert_mean,
    llama_last_token,
    minilm,
)
from tests.support.outputs import DOCUMENTS, make_spec, write_shard
from tests.support.processes import printed_by


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return bert_mean(tmp_path_factory.mktemp("model") / "bert_mean", layers=1)


@pytest.fixture
def copy(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def edit(path: Path, **changes) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not None}))


def test_the_module_is_importable_without_torch_or_a_hub_client():
    code = (
        "import sys, pipeline.job.model.directory\n"
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    assert printed_by(code) == "set()\n"


def test_the_real_minilm_directory_reads_as_its_card_says():
    model = resolve(str(minilm()))
    assert (model.pooling, model.normalize, model.max_tokens) == ("mean", True, 256)
    assert model.license == "apache-2.0"
    assert [m.kind for m in model.modules] == ["Transformer", "Pooling", "Normalize"]


def test_a_false_word_embedding_dimension_is_carried_nowhere(tmp_path):
    model = resolve(str(bert_japanese(tmp_path / "m", layers=1, word_embedding_dimension=768)))
    assert model.pooling == "cls"
    assert model.license == "cc-by-sa-4.0"
    assert model.config["hidden_size"] == 64
    assert not hasattr(model, "dimension")


def test_the_licence_name_stands_in_for_a_missing_licence(tmp_path):
    model = resolve(str(llama_last_token(tmp_path / "m", layers=1)))
    assert model.license == "sarahina-non-commercial-license"
    assert (model.pooling, model.max_tokens) == ("last_token", 8192)


def test_prompts_and_modules_behind_pooling_are_found(tmp_path):
    path = bert_dense_normalize(
        tmp_path / "m", layers=1, prompts={"query": "q: "}, include_prompt=False
    )
    model = resolve(str(path))
    assert model.prompts["query"] == "q: "
    assert not model.include_prompt
    assert [m.kind for m in model.modules[2:]] == ["Dense", "Normalize"]


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "positions"),
    [
        (128, 512, 512),
        (None, 100, 512),
        (None, 1e30, 512),
        (600, 512, 512),
        (None, None, 512),
        (64, 32, 512),
    ],
)
def test_max_tokens_is_that_of_sentence_transformers_where_the_model_has_the_positions(
    copy, sentence, tokenizer, positions
):
    from sentence_transformers import SentenceTransformer

    edit(copy / "sentence_bert_config.json", max_seq_length=sentence)
    edit(copy / "tokenizer_config.json", model_max_length=tokenizer)
    edit(copy / "config.json", max_position_embeddings=positions)
    stated = SentenceTransformer(str(copy), device="cpu").max_seq_length
    assert resolve(str(copy)).max_tokens == min(stated, positions)


@pytest.mark.parametrize(
    "mode",
    ["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ["cls", "mean"]],
)
def test_a_directory_saved_by_the_installed_release_reads_back(copy, tmp_path, mode):
    from sentence_transformers import SentenceTransformer

    (copy / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": 64, "pooling_mode": mode})
    )
    st = SentenceTransformer(str(copy), device="cpu")
    st.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    model = resolve(str(tmp_path / "saved"))
    ours = {
        "lasttoken": "last_token",
        "weightedmean": "weighted_mean",
        "mean_sqrt_len_tokens": "mean_sqrt_len",
    }
    assert model.pooling == ("cls+mean" if isinstance(mode, list) else ours.get(mode, mode))
    assert model.max_tokens == st.max_seq_length
    assert model.forward_settings == ()


@pytest.mark.parametrize(
    "setting",
    [
        {"processing_kwargs": {"text": {"add_special_tokens": False}}},
        {"processing_kwargs": {"common": {"max_length": 8}}},
        {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
        {
            "modality_config": {
                "message": {"method": "forward", "method_output_name": "last_hidden_state"}
            }
        },
    ],
    ids=str,
)
def test_settings_that_change_ids_are_refused_where_they_are_not_followed(copy, setting):
    edit(copy / "sentence_bert_config.json", **setting)
    with pytest.raises(ModelError, match="not supported"):
        resolve(str(copy))


def test_padding_settings_change_no_vector_and_are_accepted(copy):
    edit(
        copy / "sentence_bert_config.json",
        processing_kwargs={"text": {"padding": "max_length"}, "image": {"size": 1}},
    )
    assert resolve(str(copy)).forward_settings == ()


@pytest.mark.parametrize("modules", [None, 1], ids=["no modules.json", "no Pooling in it"])
def test_without_a_pooling_none_is_assumed_and_a_plan_asks_for_it(copy, tmp_path, modules):
    listed = json.loads((copy / "modules.json").read_text())[:modules]
    (copy / "modules.json").unlink()
    if modules:
        (copy / "modules.json").write_text(json.dumps(listed))
    assert resolve(str(copy)).pooling is None
    with pytest.raises(ModelError, match=r"Set model\.pooling"):
        job_module.resolve(make_spec("in", str(tmp_path / "out"), copy), "cpu")
    assert (
        job_module.resolve(
            make_spec("in", str(tmp_path / "out"), copy, model={"pooling": "cls"}), "cpu"
        ).engine.pooling
        == "cls"
    )


def test_pickle_weights_are_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"(?s)pytorch_model\.bin.*refs/pr/N.*save_pretrained"):
        resolve(str(copy))


def test_a_pickled_dense_module_is_refused_too(tmp_path):
    path = bert_dense_normalize(tmp_path / "m", layers=1)
    (path / "2_Dense" / "model.safetensors").rename(path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="2_Dense"):
        resolve(str(path))


AUTO_MAP = {"auto_map": {"AutoModel": "modeling_own.OwnModel"}}


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("config.json", {**AUTO_MAP, "model_type": "unknown_bert"}),
        ("processor_config.json", AUTO_MAP),
        ("1_Pooling/config.json", AUTO_MAP),
        ("config.json", {"text_config": AUTO_MAP}),
        ("config.json", {"_attn_implementation": "somebody/kernel"}),
        (
            "sentence_bert_config.json",
            {"model_args": {"attn_implementation": "somebody/kernel@main"}},
        ),
        ("config.json", {"use_kernels": True}),
    ],
    ids=str,
)
def test_custom_code_is_refused_wherever_a_directory_may_name_it(copy, file, setting):
    edit(copy / file, **setting)
    with pytest.raises(ModelError, match=f"{file} names custom code .*never run"):
        resolve(str(copy))


def test_a_repository_of_custom_code_and_pickles_runs_neither(copy, tmp_path):
    """The whole attack: auto_map, its Python file, and pickled weights that make a folder."""
    victim = tmp_path / "victim"
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(victim)))
    with pytest.raises(ModelError, match=r"(?s)Pickle files can run code.*save_pretrained"):
        resolve(str(copy))
    (copy / "other.safetensors").write_bytes(b"")  # not what is loaded, so the pickle would be
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        resolve(str(copy))
    edit(copy / "config.json", **AUTO_MAP, model_type="unknown_bert")
    (copy / "modeling_own.py").write_text(f"import os; os.mkdir({str(victim)!r})")
    with pytest.raises(ModelError, match="custom code"):
        resolve(str(copy))
    assert not victim.exists()


@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_a_known_architecture_runs_its_own_class_where_the_directory_names_code(
    copy, tmp_path, engine
):
    ids = np.array([2, 9, 8, 3], np.int32)
    offsets = np.array([0, 4])
    before = resolve(str(copy))
    expected = load_engine(before, EngineOptions.of(before, engine=engine)).embed(ids, offsets)
    tokens = load_tokenizer(before).encode(["a text"]).ids.tolist()
    victim = tmp_path / "victim"
    (copy / "modeling_own.py").write_text(f"import os; os.mkdir({str(victim)!r})")
    edit(copy / "config.json", **AUTO_MAP)
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.Own", None]})
    model = resolve(str(copy))
    vectors = load_engine(model, EngineOptions.of(model, engine=engine)).embed(ids, offsets)
    np.testing.assert_array_equal(vectors, expected)
    assert load_tokenizer(model).encode(["a text"]).ids.tolist() == tokens
    assert not victim.exists()


def test_weights_of_another_architecture_are_never_filled_up_at_random(copy):
    """What remote code computes under the name of a known architecture: ALiBi has no positions."""
    weights = load_file(copy / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("position_embeddings.weight"))
    del weights[name]
    save_file(weights, copy / "model.safetensors")
    edit(copy / "config.json", **AUTO_MAP)
    model = resolve(str(copy))
    with pytest.raises(ModelError, match="missing from the weights"):
        load_engine(model, EngineOptions.of(model))
    with pytest.raises(ModelError, match=r"lack .*position_embeddings.*random numbers"):
        load_engine(model, EngineOptions.of(model, engine="padded"))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_changes_after_planning_is_noticed_on_every_worker(copy, tmp_path):
    """Both actors load what Job.model() gives them on their node: one flipped bit in weights or
    vocabulary stops them."""
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS[:1])
    job = job_module.resolve(make_spec(str(tmp_path / "in"), str(tmp_path / "out"), copy), "cpu")
    received = pickle.loads(pickle.dumps(job))
    assert received.model().files == job.identity["model"]["files"]
    for file in ("model.safetensors", "vocab.txt"):
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        for load in (
            received.model,
            lambda: load_engine(received.model(), received.engine),
            lambda: load_preparer(received, "run", Store("memory://none"), []),
        ):
            with pytest.raises(ModelError, match="model files on this node differ"):
                load()
        (copy / file).write_bytes(data)


def test_a_module_of_foreign_code_is_refused(copy):
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = "own_code.Pooling"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"own_code\.Pooling"):
        resolve(str(copy))


def test_identity_sees_weights_and_vocabulary_but_neither_card_nor_other_backends(copy):
    before = resolve(str(copy)).files
    (copy / "README.md").write_text("another card")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "config.json").write_text("{}")
    (copy / "pytorch_model.bin").write_bytes(b"old")
    assert resolve(str(copy)).files == before
    with (copy / "vocab.txt").open("a") as file:
        file.write("new\n")
    assert resolve(str(copy)).files != before


def test_sharded_safetensors_are_one_model(copy, plain):
    from transformers import AutoModel

    (copy / "model.safetensors").unlink()
    AutoModel.from_pretrained(plain).save_pretrained(copy, max_shard_size="200KB")
    names = resolve(str(copy)).files
    assert "model.safetensors.index.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1
