"""What every engine promises besides the vectors themselves: order, bounds, memory, errors,
independence of batching."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.embed import budget, linear, steps
from pipeline.embed.budget import device_key, find_budget, remembered_budget
from pipeline.errors import ModelError
from pipeline.job.model.store import resolve
from tests.support.engines import engine_of
from tests.support.model_dirs import bert_mean, llama_last_token
from tests.support.processes import printed_by

LENGTHS = np.array([3, 17, 1, 0, 17, 40, 2, 5, 17, 64, 1, 33])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return bert_mean(tmp_path_factory.mktemp("embed") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return llama_last_token(tmp_path_factory.mktemp("embed") / "llama")


@pytest.fixture
def copy(bert, tmp_path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def short_of_memory(engine, n_tokens):
    """The engine's forward on a device whose memory holds `n_tokens`."""
    forward = engine._forward

    def limited(ids, offsets, rows):
        if (offsets[rows + 1] - offsets[rows]).sum() > n_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, offsets, rows)

    return limited


def ragged(
    lengths: np.ndarray = LENGTHS, n_ids: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.random.default_rng(seed).integers(5, n_ids, offsets[-1]).astype(np.int32), offsets


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_vector_does_not_depend_on_what_it_is_batched_with(family, kind, request):
    ids, offsets = ragged()
    model = resolve(str(request.getfixturevalue(family)))
    engine = engine_of(model, engine=kind, max_batch_tokens=90)
    together = engine.embed(ids, offsets)
    for i in np.flatnonzero(LENGTHS):
        alone = engine.embed(ids[offsets[i] : offsets[i + 1]], np.array([0, LENGTHS[i]]))
        # 2e-5: GEMMs of other shapes sum in another order; the vectors have length of about 8
        np.testing.assert_allclose(together[i], alone[0], atol=2e-5)


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_nan_stays_in_the_vector_of_its_own_text(family, kind, request, tmp_path):
    """So a vector that is not finite is never computed once more, its text alone."""
    path = Path(shutil.copytree(request.getfixturevalue(family), tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    (table,) = (name for name in weights if re.search("word_embeddings|embed_tokens", name))
    weights[table][7] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    ids, offsets = ragged()
    ids[ids == 7] = 8
    ids[offsets[4] + 3] = ids[offsets[9] - 1] = 7  # among rows of its length, and of others
    vectors = engine_of(resolve(str(path)), engine=kind).embed(ids, offsets)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    assert broken.tolist() == [3, 4, 8]  # row 3 has no tokens


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_shape_dtype_and_counts_are_as_promised(bert, kind):
    ids, offsets = ragged()
    engine = engine_of(resolve(str(bert)), engine=kind, max_batch_tokens=64)
    vectors = engine.embed(ids, offsets)
    assert (vectors.shape, vectors.dtype, vectors.flags.c_contiguous) == (
        (12, engine.dim),
        np.float32,
        True,
    )
    assert (engine.stats.n_texts, engine.stats.n_tokens) == (12, LENGTHS.sum())
    assert engine.stats.n_padded_tokens >= engine.stats.n_tokens
    assert engine.stats.n_batches > 1
    assert engine.stats.seconds > 0
    if kind == "packed":
        assert engine.stats.padding_share == 0
    engine.embed(ids, offsets)
    assert engine.stats.n_texts == 24


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_a_text_without_tokens_is_a_row_of_nan_and_nothing_else_is(bert, kind):
    vectors = engine_of(resolve(str(bert)), engine=kind).embed(*ragged())
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == [3]


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_nothing_in_gives_nothing_out(bert, kind):
    engine = engine_of(resolve(str(bert)), engine=kind)
    assert engine.embed(np.zeros(0, np.int32), np.zeros(1, np.int64)).shape == (0, engine.dim)


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_out_of_memory_halves_the_bucket_and_loses_no_row(bert, kind, monkeypatch):
    ids, offsets = ragged()
    expected = engine_of(resolve(str(bert)), engine=kind).embed(ids, offsets)
    engine = engine_of(resolve(str(bert)), engine=kind, max_batch_tokens=512)
    monkeypatch.setattr(engine, "_forward", short_of_memory(engine, n_tokens=70))
    np.testing.assert_allclose(engine.embed(ids, offsets), expected, atol=2e-5)
    assert engine.stats.n_oom_halvings > 0
    assert engine.budget_tokens < 512
    halvings = engine.stats.n_oom_halvings
    engine.embed(ids, offsets)
    assert engine.stats.n_oom_halvings - halvings <= 1  # the smaller budget is remembered


def test_out_of_memory_with_a_single_text_is_raised(bert, monkeypatch):
    engine = engine_of(resolve(str(bert)))

    def no_memory(ids, offsets, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        engine.embed(*ragged())


def test_values_that_are_not_finite_come_back_as_they_are(copy):
    engine = engine_of(resolve(str(copy)))
    engine._body._words[7] = torch.inf
    vectors = engine.embed(np.array([2, 7, 3, 2, 8, 3], np.int32), np.array([0, 3, 6]))
    assert np.isfinite(vectors).all(axis=1).tolist() == [False, True]


def test_too_long_texts_and_foreign_ids_are_named_before_the_device_sees_them(bert):
    engine = engine_of(resolve(str(bert)), engine="packed")
    with pytest.raises(ModelError, match="513 tokens"):
        engine.embed(np.full(513, 5, np.int32), np.array([0, 513]))
    with pytest.raises(ModelError, match="another model"):
        engine.embed(np.array([10**6], np.int32), np.array([0, 1]))


def test_missing_weights_are_an_error_not_random_numbers(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        engine_of(resolve(str(copy)))


def test_a_family_without_a_packed_forward_is_served_padded(copy):
    from transformers import AutoModel, ElectraConfig

    (copy / "model.safetensors").unlink()
    config = ElectraConfig(
        vocab_size=3000,
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
    )
    AutoModel.from_config(config).save_pretrained(copy)
    model = resolve(str(copy))
    assert engine_of(model).name == "padded"
    with pytest.raises(ModelError, match="electra"):
        engine_of(model, engine="packed")


def test_rotary_positions_that_depend_on_the_length_are_served_padded(llama, tmp_path):
    path = Path(shutil.copytree(llama, tmp_path / "dynamic"))
    config = json.loads((path / "config.json").read_text())
    theta = config.pop("rope_theta", 10000.0)
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": theta, "factor": 2.0}
    (path / "config.json").write_text(json.dumps(config))
    assert engine_of(resolve(str(path))).name == "padded"


def test_a_plain_transformers_directory_needs_a_named_pooling(copy):
    (copy / "modules.json").unlink()
    model = resolve(str(copy))
    with pytest.raises(ModelError, match="names no pooling"):
        engine_of(model)
    ids, offsets = ragged()
    packed = engine_of(model, pooling="max").embed(ids, offsets)
    np.testing.assert_allclose(
        packed, engine_of(model, pooling="max", engine="padded").embed(ids, offsets), atol=2e-5
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_does_not_find_is_named(bert):
    with pytest.raises(ModelError, match=r"'cuda': torch .* finds no GPU"):
        engine_of(resolve(str(bert)), device="cuda")


@pytest.mark.parametrize(
    "wrong",
    [{"engine": "padded"}, {"device": "cuda"}, {"pooling": "mean", "model_type": "mpnet"}],
    ids=str,
)
def test_int8_where_it_cannot_run_is_an_error_and_not_another_dtype(copy, wrong):
    if "device" in wrong and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**config, "model_type": wrong.pop("model_type", config["model_type"])})
    )
    with pytest.raises(ModelError, match=r"int8|finds no GPU"):
        engine_of(resolve(str(copy)), dtype="int8", **wrong)


def test_an_int8_vector_does_not_depend_on_its_batch_and_shows_values_that_are_not_finite(copy):
    ids, offsets = ragged()
    engine = engine_of(resolve(str(copy)), dtype="int8", max_batch_tokens=90)
    together = engine.embed(ids, offsets)
    for i in np.flatnonzero(LENGTHS):
        alone = engine.embed(ids[offsets[i] : offsets[i + 1]], np.array([0, LENGTHS[i]]))
        # a sum in another order moves a value over the edge of two of 255 steps: one step of a few
        # values of a row
        np.testing.assert_allclose(together[i], alone[0], atol=2e-2)
    engine._body._words[7] = torch.inf
    vectors = engine.embed(np.array([2, 7, 3, 2, 8, 3], np.int32), np.array([0, 3, 6]))
    assert np.isfinite(vectors).all(axis=1).tolist() == [False, True]


def test_loading_an_engine_changes_no_global_thread_count(bert):
    before = torch.get_num_threads()
    engine_of(resolve(str(bert)))
    assert torch.get_num_threads() == before


def test_the_package_its_gpu_benchmarks_and_gpu_tests_need_torch_and_transformers_alone():
    """A GPU machine without the libraries of readers, writers and runs can measure the engines."""
    strange = {"ray", "fugashi", "pyarrow", "fsspec", "pydantic", "hypothesis"}
    modules = "benchmarks.gpu, benchmarks.gpu_limits, tests.conftest, tests.embed.test_gpu"
    code = (
        "import sys, sentence_transformers; before = {*sys.modules}; "  # it takes what there is
        f"import {modules}; print({strange} & {{*sys.modules}} - before)"
    )
    assert printed_by(code) == "set()\n"


def rewritten(copy: Path, rename) -> None:
    """The weights under other names, in two shards with an index, as large and task models come."""
    from safetensors.torch import load_file, save_file

    weights = {
        rename(name): weight for name, weight in load_file(copy / "model.safetensors").items()
    }
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, copy / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"bert.{name}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    ],
    ids=["sharded", "of a task model", "old names"],
)
def test_weights_are_found_in_shards_and_under_the_names_of_task_models_and_old_checkpoints(
    bert, copy, rename
):
    ids, offsets = ragged()
    expected = engine_of(resolve(str(bert))).embed(ids, offsets)
    rewritten(copy, rename)
    engine = engine_of(resolve(str(copy)))
    assert engine.name == "packed_bert"
    np.testing.assert_array_equal(engine.embed(ids, offsets), expected)


def test_a_weight_of_another_shape_or_a_shard_outside_the_directory_is_an_error(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**config, "vocab_size": config["vocab_size"] - 1})
    )
    with pytest.raises(ModelError, match=r"word_embeddings\.weight"):
        engine_of(resolve(str(copy)))
    (copy / "config.json").write_text(json.dumps(config))
    rewritten(copy, lambda name: name)
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../x.safetensors"}})
    )
    with pytest.raises(ModelError, match="no file of the directory"):
        engine_of(resolve(str(copy)))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["linear", "llama3"],
)
def test_stretched_rotary_positions_are_those_of_transformers(llama, tmp_path, rope):
    path = Path(shutil.copytree(llama, tmp_path / "stretched"))
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 500.0, **rope}
    (path / "config.json").write_text(json.dumps(config))
    ids, offsets = ragged()
    model = resolve(str(path))
    packed, padded = (
        engine_of(model, engine=kind).embed(ids, offsets) for kind in ("packed", "padded")
    )
    np.testing.assert_allclose(packed, padded, atol=2e-5)
    plain = engine_of(resolve(str(llama))).embed(ids, offsets)
    assert np.nanmax(np.abs(packed - plain)) > 1e-2


def test_the_budget_is_probed_once_for_a_model_and_device_and_read_from_then_on(
    bert, llama, tmp_path, monkeypatch
):
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path))
    model = resolve(str(bert))
    engine = engine_of(model)
    before = engine.stats
    key = device_key(model.files, engine)
    budget_tokens = remembered_budget(engine, key, (200, 400))
    assert budget_tokens in (200, 400)
    assert engine.stats is before and engine.budget_tokens == 2048
    assert device_key(model.files, engine_of(model)) == key
    assert device_key(model.files, engine_of(model, dtype="bfloat16")) != key
    assert device_key(resolve(str(llama)).files, engine) != key
    monkeypatch.setattr(engine, "embed", None)  # a second search would fail
    assert remembered_budget(engine, key, (200, 400)) == budget_tokens
    (tmp_path / "budgets" / f"{key}.json").write_text("torn")
    with pytest.raises(TypeError):
        remembered_budget(engine, key, (200, 400))


def test_a_budget_that_memory_does_not_hold_ends_the_search(bert, monkeypatch):
    engine = engine_of(resolve(str(bert)))
    monkeypatch.setattr(engine, "_forward", short_of_memory(engine, n_tokens=300))
    assert find_budget(engine, (200, 400, 800)) == 200


def test_the_smallest_of_budgets_that_are_about_as_fast_is_taken(bert, monkeypatch):
    engine = engine_of(resolve(str(bert)))
    seen = {}

    def seconds(engine, ids, offsets, _stats):
        seen[engine.budget_tokens] = ids
        speeds = {200: 900.0, 400: 985.0, 800: 1000.0, 1600: 995.0}
        return ids.size / speeds[engine.budget_tokens]

    monkeypatch.setattr(budget, "_seconds", seconds)
    assert find_budget(engine, (200, 400, 800, 1600)) == 400
    assert all(ids.size >= 7 * tokens for tokens, ids in seen.items())  # several buckets
    assert 100 < seen[800].max() < engine.n_ids
    assert np.unique(seen[800]).size > 100


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_budget_is_looked_for_only_where_many_texts_follow(bert, monkeypatch, is_tuned):
    tuned = []
    monkeypatch.setattr(steps, "fastest", lambda step, *_: tuned.append(step) or step)
    engine_of(resolve(str(bert)), is_tuned=is_tuned)
    assert bool(tuned) is is_tuned


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_vectors_are_the_same_where_torch_lacks_the_private_onednn_operators(
    family, request, monkeypatch
):
    ids, offsets = ragged()
    model = resolve(str(request.getfixturevalue(family)))
    with_onednn = engine_of(model).embed(ids, offsets)
    monkeypatch.setattr(linear, "_has_onednn", lambda _dtype: False)
    engine = engine_of(model)
    assert not engine._body._layers[0].kv._is_packed
    # 2e-5 as above: sums in another order
    np.testing.assert_allclose(engine.embed(ids, offsets), with_onednn, atol=2e-5)
