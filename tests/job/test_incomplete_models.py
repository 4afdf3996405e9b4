"""A model directory that lacks a file, or has it in a form that is not loaded, is refused with what
to do about it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.embed.loading import load_engine
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.directory import read_model
from pipeline.job.model.store import resolve
from tests.support.model_dirs import bert_dense_normalize


@pytest.fixture
def model_dir(bert_mean_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_mean_dir, tmp_path / "embedder"))


def test_the_two_lines_that_convert_pickled_weights_work_as_they_are_printed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets = np.array([0, 4])
    ids = np.array([2, 9, 8, 3], np.int32)
    before = resolve(str(model_dir))
    expected = load_engine(before, EngineOptions.of(before)).embed(ids, offsets)
    torch.save(load_file(model_dir / "model.safetensors"), model_dir / "pytorch_model.bin")
    (model_dir / "model.safetensors").unlink()
    monkeypatch.chdir(model_dir.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(model_dir), model_dir.name, model_dir.as_uri()):
        with pytest.raises(ModelError) as refusal:
            resolve(name)
        shutil.rmtree("converted", ignore_errors=True)
        lines = "\n".join(line.strip() for line in str(refusal.value).splitlines()[-2:])
        exec(lines, {})
        after = resolve("converted")
        vectors = load_engine(after, EngineOptions.of(after)).embed(ids, offsets)
        np.testing.assert_array_equal(vectors, expected)


def test_the_lines_name_a_model_of_the_hub_by_its_id_and_ask_for_a_copy_of_a_prefix(
    model_dir: Path,
) -> None:
    (model_dir / "model.safetensors").unlink()
    for source, name in (("BAAI/bge-m3", "'BAAI/bge-m3'"), ("s3://models/m3", "'COPY'")):
        with pytest.raises(ModelError) as refusal:
            read_model(model_dir, source)
        assert f"SentenceTransformer({name}).save_pretrained('converted')" in str(refusal.value)
        assert ("COPY is a folder" in str(refusal.value)) is source.startswith("s3:")


def test_a_directory_of_this_machine_without_any_weights_is_not_called_pickled(
    model_dir: Path,
) -> None:
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights .* Restore them from their source") as error:
        resolve(str(model_dir))
    assert "ickle" not in str(error.value)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2271064456\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_clone_without_its_large_files_is_called_one(model_dir: Path, name: str) -> None:
    (model_dir / name).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        resolve(str(model_dir))


def test_a_file_that_is_missing_is_not_called_unreadable(tmp_path: Path) -> None:
    path = bert_dense_normalize(tmp_path / "m", layers=1)
    (path / "2_Dense" / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"2_Dense: no model\.safetensors"):
        resolve(str(path))
    (tmp_path / "kept").rename(path / "2_Dense" / "model.safetensors")
    (path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"1_Pooling/config\.json not found\. Restore it"):
        resolve(str(path))
