"""What `resolve` reads from a directory, held against sentence-transformers reading the same
directory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.embed.loading import load_engine
from pipeline.errors import ModelError
from pipeline.job import resolve as job_module
from pipeline.job.model_store import resolve
from pipeline.storage.store import Store
from pipeline.workers.guarded_steps import load_preparer
from tests.support.model_dirs import (
    bert_dense_normalize,
    bert_japanese,
    bert_mean,
    llama_last_token,
    minilm,
)
from tests.support.outputs import DOCUMENTS, make_spec, write_shard


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
        "import sys, pipeline.job.model_dir\n"
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )


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
    ("choice", "warns"),
    [
        ({}, True),
        ({"prompt": ""}, False),
        ({"prompt_name": "document"}, False),
        ({"prompt": "x"}, False),
    ],
)
def test_a_job_that_passes_over_the_prompts_of_a_model_is_told(tmp_path, caplog, choice, warns):
    path = bert_dense_normalize(
        tmp_path / "m", layers=1, prompts={"query": "q: ", "document": "d: "}
    )
    job = job_module.resolve(make_spec("in", str(tmp_path / "out"), path, model=choice), "cpu")
    # one fingerprint, whether the empty prompt is written out or not
    assert (job.prompt is None) == (choice in ({}, {"prompt": ""}))
    assert ("has prompts ['document', 'query']" in caplog.text) == warns


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
def test_max_tokens_resolves_as_sentence_transformers_resolves_it(
    copy, sentence, tokenizer, positions
):
    from sentence_transformers import SentenceTransformer

    edit(copy / "sentence_bert_config.json", max_seq_length=sentence)
    edit(copy / "tokenizer_config.json", model_max_length=tokenizer)
    edit(copy / "config.json", max_position_embeddings=positions)
    assert (
        resolve(str(copy)).max_tokens == SentenceTransformer(str(copy), device="cpu").max_seq_length
    )


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
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*save_pretrained"):
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
        ("config.json", AUTO_MAP),
        ("tokenizer_config.json", AUTO_MAP),
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
    with pytest.raises(ModelError, match=r"Pickle files can run code.*save_pretrained"):
        resolve(str(copy))
    (copy / "other.safetensors").write_bytes(b"")  # not what is loaded, so the pickle would be
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        resolve(str(copy))
    edit(copy / "config.json", **AUTO_MAP)
    (copy / "modeling_own.py").write_text(f"import os; os.mkdir({str(victim)!r})")
    with pytest.raises(ModelError, match="custom code"):
        resolve(str(copy))
    assert not victim.exists()


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


def test_a_hub_model_is_pinned_to_the_commit_that_was_planned(copy, tmp_path):
    """In the job that workers get, and in the spec that is stored. A cache made as the Hub client
    makes it; no network."""
    commit, home = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hf"
    shutil.copytree(copy, home / f"hub/models--org--tiny/snapshots/{commit}")
    (home / "hub/models--org--tiny/refs").mkdir()
    (home / "hub/models--org--tiny/refs/main").write_text(commit)
    code = (
        "from pipeline.job.resolve import resolve; from pipeline.job.spec import spec_from\n"
        "spec = spec_from({'name': 'x', 'input': {'uri': 'in'}, 'output': {'uri': 'out'},\n"
        "                  'model': {'path': 'org/tiny'}})\n"
        "job = resolve(spec, 'cpu'); revision = job.spec.model.revision\n"
        "print(revision, f'revision: {revision}' in job.spec.to_yaml())"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == [commit, "True"], done.stderr


def test_a_name_in_a_prefix_cannot_leave_the_copy(prefix, tmp_path):
    fs = fsspec.filesystem("memory")
    for name in ("../out.json", "a/../../out.json", "../../README.md"):
        fs.store[f"/models/m/{name}"] = fs.store["/models/m/config.json"]
    assert resolve(prefix).path.is_relative_to(tmp_path / "cache")
    assert not list(tmp_path.rglob("out.json")) and not list(tmp_path.rglob("README.md"))[1:]


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


def test_a_missing_directory_and_an_unreachable_name_say_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="directory not found"):
        resolve("./no/such/place")
    with pytest.raises(ModelError, match="put the model in a directory"):
        resolve("nobody/no-such-model")


def test_sharded_safetensors_are_one_model(copy, plain):
    from transformers import AutoModel

    (copy / "model.safetensors").unlink()
    AutoModel.from_pretrained(plain).save_pretrained(copy, max_shard_size="200KB")
    names = resolve(str(copy)).files
    assert "model.safetensors.index.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1


@pytest.fixture
def prefix(plain, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for file in plain.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"/models/m/{file.relative_to(plain).as_posix()}", file.read_bytes())
    return "memory://models/m"


def test_a_prefix_is_downloaded_once_and_equals_its_source(prefix, plain):
    model = resolve(prefix)
    assert model.files == resolve(str(plain)).files
    assert model.license == resolve(str(plain)).license
    stamp = (model.path / "model.safetensors").stat().st_mtime_ns
    again = resolve(prefix)
    assert again.path == model.path
    assert (again.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_changed_object_is_another_copy(prefix):
    first = resolve(prefix)
    fsspec.filesystem("memory").pipe_file("/models/m/vocab.txt", b"[PAD]\n")
    assert resolve(prefix).path != first.path
    assert first.path.is_dir()


def test_a_damaged_copy_is_noticed_and_fetched_again(prefix, plain):
    first = resolve(prefix)
    weights = first.path / "model.safetensors"
    data = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    data[-1] ^= 1
    weights.write_bytes(data.tobytes())
    assert resolve(prefix).files == resolve(str(plain)).files


def test_many_processes_on_one_node_get_the_same_copy(prefix, plain, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    # not the memory file system of `prefix`: all readers of an object share one position
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: resolve(f"local://{plain}"), range(8)))
    assert len({model.path for model in models}) == 1
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [models[0].path.name]
