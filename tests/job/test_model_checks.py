"""What a model directory says twice and differently, or cannot run, is known before anything is
loaded; and every worker has the software that the fingerprint names."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ModelError, SpecError, WorkerError
from pipeline.job import resolve as job_module
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.store import resolve
from pipeline.job.model.tokenizer_versions import versions
from pipeline.job.vector_identity import has_same_vectors
from pipeline.storage.lineage import content_hash
from pipeline.tokenize import load_tokenizer
from tests.support.model_dirs import bert_dense_normalize, bert_japanese, bert_mean
from tests.support.outputs import make_spec


@pytest.fixture
def copy(bert_mean_dir, tmp_path) -> Path:
    return Path(shutil.copytree(bert_mean_dir, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not None}))


def test_an_adapter_alone_is_called_one(copy):
    (copy / "config.json").unlink()
    edit(copy / "adapter_config.json", peft_type="LORA", base_model_name_or_path="x/y")
    with pytest.raises(ModelError, match=r"adapter .*without its base model x/y\. Merge"):
        resolve(str(copy))


def test_a_module_that_needs_what_no_transformer_gives_is_named(copy):
    modules = json.loads((copy / "modules.json").read_text())
    lstm = {"idx": 1, "name": "1", "path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}
    (copy / "modules.json").write_text(json.dumps([modules[0], lstm, *modules[1:]]))
    with pytest.raises(ModelError, match=r"module 1_LSTM of modules\.json is LSTM"):
        resolve(str(copy))


@pytest.mark.parametrize(
    "activation", ["transformers.activations.GELUActivation", "own.module.Swish", "builtins.eval"]
)
def test_a_dense_whose_activation_would_be_replaced_is_refused(activation, tmp_path):
    path = bert_dense_normalize(tmp_path / "m", layers=1)
    assert resolve(str(path)).max_dimension == 48
    edit(path / "2_Dense" / "config.json", activation_function=activation)
    with pytest.raises(ModelError, match=f"2_Dense/config.json .*{activation}.*Tanh"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_features": 47}, r"64 → 47 dimensions .*\(48, 64\)"),
        ({"in_features": 63}, r"63 → 48 dimensions .* the modules before it give 64"),
        ({"bias": False}, r"64 → 48 dimensions and bias False, .*linear\.bias"),
        ({"out_features": None}, r"64 → None dimensions"),
    ],
    ids=str,
)
def test_a_dense_whose_weights_do_not_fit_is_refused(change, message, tmp_path):
    path = bert_dense_normalize(tmp_path / "m", layers=1)
    edit(path / "2_Dense" / "config.json", **change)
    with pytest.raises(ModelError, match=f"2_Dense/config.json says {message}"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "x"}),
        ("sentence_bert_config.json", {"max_seq_length": []}),
        ("config_sentence_transformers.json", {"prompts": 1}),
        ("config_sentence_transformers.json", {"prompts": {"document": 3}}),
        ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}),
        ("tokenizer_config.json", {"unk_token": 1}),
        ("tokenizer.json", {"post_processor": {"type": "TemplateProcessing"}}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Metaspace", "replacement": 1}}),
        ("tokenizer.json", {"added_tokens": [0]}),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_a_mistake_of_its_file(file, changes, llama_dir, tmp_path):
    copy = Path(shutil.copytree(llama_dir, tmp_path / "copy"))
    edit(copy / file, **changes)
    with pytest.raises(ModelError, match=file.replace(".", r"\.")):
        load_tokenizer(resolve(str(copy)))


@pytest.mark.parametrize("entry", [0, "x", [], {"name": "1", "path": "1_Pooling"}], ids=str)
def test_modules_that_are_none_are_a_mistake_of_their_file(entry, copy):
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps([modules[0], entry]))
    with pytest.raises(ModelError, match=r"modules\.json does not hold"):
        resolve(str(copy))


def test_a_pooling_whose_vectors_a_dense_cannot_take_is_refused(tmp_path):
    model = resolve(str(bert_dense_normalize(tmp_path / "m", layers=1)))
    assert EngineOptions.of(model, pooling="cls").pooling == "cls"
    with pytest.raises(ModelError, match=r"'cls\+mean' gives vectors of another width"):
        EngineOptions.of(model, pooling="cls+mean")


@pytest.mark.parametrize(("asked", "warns"), [(True, True), (False, False), (None, False)])
def test_an_eos_that_the_tokenizer_does_not_add_is_a_warning(
    asked, warns, llama_dir, tmp_path, caplog
):
    copy = shutil.copytree(llama_dir, tmp_path / "copy")
    edit(copy / "tokenizer_config.json", add_eos_token=asked, eos_token="</s>")
    with caplog.at_level(logging.WARNING, "pipeline"):
        model = resolve(str(copy))
    assert ("add_eos_token: true" in caplog.text) is warns
    # what is warned of is what happens
    eos = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    last = int(load_tokenizer(model).encode(["a"]).ids[-1])
    assert last != [piece for piece, _ in eos].index("</s>")


def test_a_default_prompt_that_is_not_there_is_a_warning(copy, caplog):
    edit(copy / "config_sentence_transformers.json", default_prompt_name="passage", prompts={})
    resolve(str(copy))
    assert "default prompt 'passage'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncate_dim": 100_000}, "100000, but the vectors of .* have 64 dimensions"),
        ({"truncate_dim": 65}, "65, but"),
        ({"revision": "v1"}, "model.revision 'v1': only models of the Hub .* is a directory"),
    ],
)
def test_choices_that_the_model_cannot_follow_are_refused(
    changes, message, bert_mean_dir, tmp_path
):
    spec = make_spec("in", str(tmp_path / "out"), str(bert_mean_dir), model=changes)
    with pytest.raises(SpecError, match=message):
        job_module.resolve(spec, "cpu")


def test_a_relative_path_is_stored_as_the_place_it_was(bert_mean_dir, tmp_path, monkeypatch):
    shutil.copytree(bert_mean_dir, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    job = job_module.resolve(make_spec("in", str(tmp_path / "out"), "m"), "cpu")
    monkeypatch.chdir("/")
    assert job.model().path == tmp_path / "m"


def test_a_short_name_of_the_hub_is_completed(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"sentence-transformers/all-MiniLM-L6-v2\?.*--model"):
        resolve("all-MiniLM-L6-v2")


def test_a_directory_without_a_tokenizer_is_called_that(copy):
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="the directory has no tokenizer"):
        versions(resolve(str(copy)))


def test_vocab_txt_alone_needs_no_sentencepiece(copy):
    (copy / "tokenizer.json").unlink()
    assert set(versions(resolve(str(copy)))) == {"tokenizers", "transformers", "unicode"}


JAPANESE = "BertJapaneseTokenizer"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"fugashi", "unidic-lite"}),
        ({"subword_tokenizer_type": "character"}, {"fugashi", "unidic-lite", "transformers"}),
        ({"word_tokenizer_type": "basic", "mecab_kwargs": None}, {"transformers"}),
    ],
)
def test_the_fingerprint_names_what_cuts_japanese_words(settings, names, tmp_path):
    path = bert_japanese(tmp_path / "m", layers=1)
    edit(path / "tokenizer_config.json", **settings)
    assert set(versions(resolve(str(path)))) == names | {"unicode"}


def test_a_class_that_only_config_json_names_gives_the_same_ids_and_names(tmp_path):
    path = bert_japanese(tmp_path / "m", layers=1)
    stated = resolve(str(path))
    expected = load_tokenizer(stated).encode(["吾輩は猫である。", "東京[CLS]"])
    other = Path(shutil.copytree(path, tmp_path / "other"))
    edit(other / "tokenizer_config.json", tokenizer_class=None)
    edit(other / "config.json", tokenizer_class=JAPANESE)
    model = resolve(str(other))
    assert versions(model) == versions(stated)
    assert (
        load_tokenizer(model).encode(["吾輩は猫である。", "東京[CLS]"]).ids.tolist()
        == expected.ids.tolist()
    )


def test_a_dictionary_of_its_own_is_known_by_its_content(tmp_path):
    import unidic_lite

    path = bert_japanese(tmp_path / "m", layers=1)
    expected = load_tokenizer(resolve(str(path))).encode(["吾輩は猫である。"]).ids.tolist()
    dictionary = Path(shutil.copytree(unidic_lite.DICDIR, tmp_path / "my dictionary"))
    option = f'-d "{dictionary}" -r "{dictionary}/mecabrc"'
    edit(path / "tokenizer_config.json", mecab_kwargs={"mecab_dic": None, "mecab_option": option})
    first = versions(resolve(str(path)))
    assert set(first) == {"fugashi", "mecab dictionary", "transformers", "unicode"}
    assert load_tokenizer(resolve(str(path))).encode(["吾輩は猫である。"]).ids.tolist() == expected
    with (dictionary / "unk.def").open("a") as file:
        file.write("\n")
    assert versions(resolve(str(path)))["mecab dictionary"] != first["mecab dictionary"]
    shutil.rmtree(dictionary)
    with pytest.raises(ModelError, match="names no folder of this machine"):
        versions(resolve(str(path)))


def test_int8_jobs_alone_name_its_arithmetic_and_take_no_vector_of_an_earlier_one(
    bert_mean_dir, tmp_path
):
    def job_of(dtype):
        spec = make_spec("in", str(tmp_path / "out"), str(bert_mean_dir), model={"dtype": dtype})
        return job_module.resolve(spec, "cpu")

    new = job_of("int8")
    old = {**new.identity, "model": dict(new.identity["model"])}
    assert old["model"].pop("int8_algorithm") == job_module.INT8_ALGORITHM > 1
    assert content_hash(old, 16) != new.fingerprint
    assert not has_same_vectors(old, new.identity)
    for dtype in ("float32", "bfloat16", "float16"):
        # what jobs of these dtypes hashed before there was a second arithmetic
        assert job_of(dtype).identity == {**old, "model": {**old["model"], "dtype": dtype}}


@pytest.mark.parametrize(
    "difference", ["tokenizers", "unicode", "algorithm", "int8_algorithm", "release", "more"]
)
def test_a_worker_with_other_software_than_the_driver_writes_no_row(
    difference, bert_mean_dir, tmp_path
):
    model = {"dtype": "int8"} if difference == "int8_algorithm" else {}
    spec = make_spec("in", str(tmp_path / "out"), str(bert_mean_dir), model=model)
    job = job_module.resolve(spec, "cpu")
    assert job.model_of_worker().files == job.identity["model"]["files"]
    identity = {**job.identity, "tokenizer": dict(job.identity["tokenizer"])}
    changes: dict[str, Any] = {"identity": identity}
    if difference == "algorithm":
        identity["algorithm"] = 1
    elif difference == "int8_algorithm":
        identity["model"] = {**identity["model"], difference: 1}
    elif difference == "release":
        changes["release"] = "0.0.9"
    else:
        identity["tokenizer"][difference] = "0.13.0"
    name = {"release": "corpus-embed", "algorithm": "algorithm"}.get(difference, difference)
    with pytest.raises(WorkerError, match=rf"(?s)node .* has .*{name}.* Install the versions"):
        dataclasses.replace(job, **changes).model_of_worker()


def test_bert_mean_is_built_from_its_files(tmp_path):
    assert resolve(str(bert_mean(tmp_path / "m", layers=1))).plain_tokenizer is not None
