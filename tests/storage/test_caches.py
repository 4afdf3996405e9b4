"""The caches of a node: one root for all of them, and files that appear whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.driver.cluster import log_path
from pipeline.embed import budget
from pipeline.storage.caches import cache_folder, write_whole


def test_one_variable_moves_every_cache_and_logs_can_be_moved_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("CORPUS_EMBED_CACHE", "CORPUS_EMBED_LOG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_folder("models") == tmp_path / "home/.cache/corpus-embed/models"
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    assert cache_folder("models") == tmp_path / "cache/models"
    assert log_path() == tmp_path / "cache/logs/ray.log"
    monkeypatch.setenv("CORPUS_EMBED_LOG_DIR", str(tmp_path / "logs"))
    assert log_path() == tmp_path / "logs/ray.log"
    assert not (tmp_path / "home").exists()


def test_the_budget_of_a_gpu_is_kept_where_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        device, name = "cuda", "packed_bert"

    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path))
    monkeypatch.setattr(budget, "find_budget", lambda _engine, _candidates: 4096)
    assert budget.remembered_budget(Engine(), "key") == 4096  # type: ignore[arg-type]
    assert (tmp_path / "budgets" / "key.json").exists()


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"

    def fails(_old: object, _new: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"third")
    assert [entry.read_bytes() for entry in path.parent.iterdir()] == [b"second"]
