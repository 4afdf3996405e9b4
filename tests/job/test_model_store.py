"""A model that is elsewhere arrives whole and is kept, or the failure is named.

Oracle: the hashes of the directory that was uploaded, and the rule's own count of faults.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.errors import ModelError, StorageError
from pipeline.job.model.store import _from_prefix, resolve
from pipeline.storage import notes, retry
from tests.conftest import S3Place
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.processes import printed_by

WEIGHTS = r"m/model\.safetensors"


@pytest.fixture
def options(
    s3: S3Place,
    proxy: FaultProxy,
    bert_mean_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Storage options for `<s3.uri>/m`, a model behind the proxy."""
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    s3.filesystem.put(f"{bert_mean_dir}/", f"{s3.key}/m/", recursive=True)
    return {"endpoint_url": proxy.endpoint_url}


@pytest.mark.parametrize(
    ("mode", "path", "count"),
    [
        ("status", "list-type=2", 7),  # botocore itself tries a refused request three times
        ("status", WEIGHTS, 7),
        ("trunc_rst", WEIGHTS, 2),
        ("trunc_fin", WEIGHTS, 2),
    ],
    ids=["listing refused", "weights refused", "weights reset", "weights cut"],
)
def test_a_store_that_fails_while_a_model_is_fetched_is_waited_out(
    s3: S3Place,
    proxy: FaultProxy,
    bert_mean_dir: Path,
    options: dict[str, Any],
    mode: Any,
    path: str,
    count: int,
) -> None:
    rule = proxy.add(Rule(mode, method="GET", path=path, count=count))
    model = resolve(f"{s3.uri}/m", storage_options=options)
    assert rule.fired == count
    assert model.files == resolve(str(bert_mean_dir)).files


def test_a_store_that_keeps_failing_is_named_with_the_file(
    s3: S3Place,
    proxy: FaultProxy,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A failed store is no mistake in the spec: a scheduler must try again."""
    monkeypatch.setattr(retry, "RETRY_SECONDS", 1.0)
    proxy.add(Rule("trunc_rst", method="GET", path=WEIGHTS))
    with pytest.raises(StorageError, match=r"read s3://.*m/model\.safetensors: still failing"):
        resolve(f"{s3.uri}/m", storage_options=options)
    assert list((tmp_path / "cache/models").iterdir()) == []


def test_a_missing_directory_and_an_unreachable_name_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="directory not found"):
        resolve("./no/such/place")
    with pytest.raises(ModelError, match="put the model in a directory"):
        resolve("nobody/no-such-model")


def test_a_hub_model_is_pinned_to_the_commit_that_was_planned(
    bert_mean_dir: Path, tmp_path: Path
) -> None:
    """Both in the job that workers get and in the spec that is stored. The cache is made as the Hub
    client makes it; no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hf"
    shutil.copytree(bert_mean_dir, home / f"hub/models--org--tiny/snapshots/{commit}")
    (home / "hub/models--org--tiny/refs").mkdir()
    (home / "hub/models--org--tiny/refs/main").write_text(commit)
    code = (
        "from pipeline.job.resolve import resolve; from pipeline.job.spec import spec_from\n"
        "spec = spec_from({'name': 'x', 'input': {'uri': 'in'}, 'output': {'uri': 'out'},\n"
        "                  'model': {'path': 'org/tiny'}})\n"
        "job = resolve(spec, 'cpu'); revision = job.spec.model.revision\n"
        "print(revision, f'revision: {revision}' in job.spec.to_yaml())"
    )
    hub = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    assert printed_by(code, environment=hub).split() == [commit, "True"]


@pytest.fixture
def prefix(bert_mean_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a model in memory."""
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for file in bert_mean_dir.rglob("*"):
        if file.is_file():
            fs.pipe_file(
                f"/models/m/{file.relative_to(bert_mean_dir).as_posix()}", file.read_bytes()
            )
    return "memory://models/m"


def test_a_prefix_is_downloaded_once_and_equals_its_source(
    prefix: str, bert_mean_dir: Path
) -> None:
    model = resolve(prefix)
    assert model.files == resolve(str(bert_mean_dir)).files
    assert model.license == resolve(str(bert_mean_dir)).license
    stamp = (model.path / "model.safetensors").stat().st_mtime_ns
    again = resolve(prefix)
    assert again.path == model.path
    assert (again.path / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("kind", ["cannot be written", "full"])
def test_a_model_is_copied_elsewhere_where_the_cache_takes_none(
    prefix: str,
    bert_mean_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Any,
    kind: str,
) -> None:
    sentences: list[str] = []
    monkeypatch.setattr(notes, "_noted", set())
    notes.listen_to_notes(sentences.append)
    cache = "/proc/nope" if kind != "full" else str(small_disk(tmp_path / "disk", "64k"))
    monkeypatch.setenv("CORPUS_EMBED_CACHE", cache)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        models = [resolve(prefix) for _ in range(2)]
    finally:
        notes.listen_to_notes(None)
    assert models[0].files == resolve(str(bert_mean_dir)).files
    assert models[0].path == models[1].path
    assert models[0].path.is_relative_to(tmp_path / f"corpus-embed-{os.geteuid()}/models")
    assert len(sentences) == 1 and f"{cache}/models" in sentences[0]
    assert not [path for path in Path(cache).rglob("*") if path.is_file()]


def test_a_model_that_no_folder_takes_is_a_sentence(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", "/proc/nope")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nope")
    with pytest.raises(StorageError, match="Set CORPUS_EMBED_CACHE"):
        resolve(prefix)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_copy_can_be_shared_as_far_as_the_umask_lets_it(prefix: str, mask: int) -> None:
    before = os.umask(mask)
    try:
        copy = resolve(prefix).path
    finally:
        os.umask(before)
    assert copy.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (copy / "config.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_changed_object_is_another_copy(prefix: str) -> None:
    first = resolve(prefix)
    fsspec.filesystem("memory").pipe_file("/models/m/vocab.txt", b"[PAD]\n")
    assert resolve(prefix).path != first.path
    assert first.path.is_dir()


def test_a_damaged_copy_is_noticed_and_fetched_again(prefix: str, bert_mean_dir: Path) -> None:
    first = resolve(prefix)
    weights = first.path / "model.safetensors"
    data = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    data[-1] ^= 1
    weights.write_bytes(data.tobytes())
    assert resolve(prefix).files == resolve(str(bert_mean_dir)).files


def test_many_processes_on_one_node_get_the_same_copy(
    prefix: str, bert_mean_dir: Path, tmp_path: Path
) -> None:
    # not the memory file system of `prefix`: all readers of an object share one position
    with ThreadPoolExecutor(4) as pool:
        url = f"local://{bert_mean_dir}"  # resolve() would use the directory itself
        models = list(pool.map(lambda _: _from_prefix(url, {}), range(8)))
    assert len({model.path for model in models}) == 1
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [models[0].path.name]


def test_a_name_in_a_prefix_cannot_leave_the_copy(prefix: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("../out.json", "a/../../out.json", "../../README.md"):
        fs.store[f"/models/m/{name}"] = fs.store["/models/m/config.json"]
    assert resolve(prefix).path.is_relative_to(tmp_path / "cache")
    assert not list(tmp_path.rglob("out.json")) and not list(tmp_path.rglob("README.md"))[1:]
