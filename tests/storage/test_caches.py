"""The caches of a node: one root for all of them, and files that appear whole."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.cluster.connection import log_path
from pipeline.storage import notes
from pipeline.storage.caches import cache_folder, cached, usable_folders, writable_folder
from tests.support.stand_in import HashEngine, make_spec, run


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
    from pipeline.embed import budget  # and with it torch: the other tests need none

    monkeypatch.setattr(budget, "find_budget", lambda _engine, _candidates: 4096)
    assert budget.remembered_budget(Engine(), "key") == 4096  # type: ignore[arg-type]
    assert (tmp_path / "budgets" / "key.json").exists()


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert cached("index", "a", lambda: b"first", as_bytes) == b"first"

    def fails(_old: object, _new: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    assert cached("index", "b", lambda: b"second", as_bytes) == b"second"
    entries = [entry.read_bytes() for entry in (tmp_path / "cache/index").iterdir()]
    assert entries == [b"first"]


def as_bytes(file: Path | bytes) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else file


def failing() -> bytes:
    raise AssertionError("fetched again")


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The notes of this test."""
    collected: list[str] = []
    monkeypatch.setattr(notes, "_noted", set())
    notes.listen_to_notes(collected.append)
    yield collected
    notes.listen_to_notes(None)


def unwritable(kind: str, tmp_path: Path) -> str:
    """A cache folder that root cannot write either."""
    (tmp_path / "file").touch()
    return {"proc": "/proc/nope", "a file": str(tmp_path / "file")}[kind]


@pytest.mark.parametrize("kind", ["proc", "a file"])
def test_a_cache_that_cannot_be_written_costs_a_note_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str], kind: str
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", unwritable(kind, tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("a", "b"):
        assert cached("index", name, name.encode, as_bytes) == name.encode()
        assert cached("index", name, failing, as_bytes) == name.encode()
    assert writable_folder("logs") == tmp_path / f"corpus-embed-{os.geteuid()}/logs"
    assert len(sentences) == 2  # one for each folder: index and logs
    assert str(cache_folder("index")) in sentences[0]
    assert "CORPUS_EMBED_CACHE" in sentences[0]


def test_without_any_folder_the_bytes_are_used_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", "/proc/nope")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nope")
    assert cached("index", "a", lambda: b"x", as_bytes) == b"x"
    with pytest.raises(OSError, match="/proc/nope"):
        writable_folder("logs")
    assert sentences


def test_a_full_cache_is_replaced_and_keeps_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Any, sentences: list[str]
) -> None:
    disk = small_disk(tmp_path / "disk", "256k")
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(disk))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = random.Random(0).randbytes(1_000_000)
    assert cached("index", "a", lambda: data, as_bytes) == data
    assert cached("index", "a", failing, as_bytes) == data
    assert [path for path in disk.rglob("*") if path.is_file()] == []
    assert "No space left" in sentences[0]


def test_the_temporary_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write there could put another model there."""
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"corpus-embed-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert list(usable_folders("models")) == [tmp_path / "cache/models"]
    folder.chmod(0o700)
    assert list(usable_folders("models")) == [tmp_path / "cache/models", folder / "models"]


def test_a_damaged_file_of_a_cache_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path))

    def number(file: Path | bytes) -> int:
        return int(as_bytes(file))

    assert cached("budgets", "a", lambda: b"1", number) == 1
    (tmp_path / "budgets/a").write_bytes(b"")
    assert cached("budgets", "a", lambda: b"2", number) == 2
    assert (tmp_path / "budgets/a").read_bytes() == b"2"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_cache_can_be_shared_as_far_as_the_umask_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path))
    before = os.umask(mask)
    try:
        cached("index", "a", lambda: b"x", as_bytes)
    finally:
        os.umask(before)
    assert (tmp_path / "index/a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("temporary", ["writable", "/proc/nope"])
def test_a_refresh_reuses_every_vector_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str], temporary: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", temporary.replace("writable", str(tmp_path)))
    (tmp_path / "in").mkdir()
    spec = make_spec(tmp_path / "in", f"memory://{tmp_path.name}-{os.getpid()}")

    def embedded_texts(n_texts: int) -> int:
        rows = (f'{{"id": "{n}", "text": "text {n}"}}\n' for n in range(n_texts))
        (tmp_path / "in/a.jsonl").write_text("".join(rows))
        engine = HashEngine()
        run(spec, engine)
        return len(engine.seen)

    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    assert (embedded_texts(100), embedded_texts(101)) == (100, 1)
    assert not sentences
    monkeypatch.setenv("CORPUS_EMBED_CACHE", "/proc/nope")
    assert embedded_texts(102) == 1
    assert sum("/proc/nope/index" in sentence for sentence in sentences) == 1
