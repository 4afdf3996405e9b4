"""Files of a local disk appear whole, under a free name, and with the mode that the umask leaves.

Oracle: what `open` and `mkdir` of Python make under the same umask; the answers of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.errors import StorageError
from pipeline.storage import local_files
from pipeline.storage.local_files import create_whole, disk_of
from pipeline.storage.store import Store
from tests.support.stand_in import make_spec, run


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_object_and_folder_of_an_output_has_the_mode_that_the_umask_leaves(
    tmp_path: Path, mask: int
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"id": "1", "text": "a", "lang": "x"}\n{"id": "2"}\n')
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"], "card": {}},
    )
    with umask(mask):
        run(spec)
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
    entries = list((tmp_path / "out").rglob("*"))
    roots = {entry.parts[len(tmp_path.parts) + 1] for entry in entries}
    assert roots == {"data", "_meta", "README.md", "croissant.json"}
    assert {mode(entry) for entry in entries if entry.is_file()} == {mode(tmp_path / "file")}
    assert {mode(entry) for entry in entries if entry.is_dir()} == {mode(tmp_path / "folder")}


def without_links(monkeypatch: pytest.MonkeyPatch, answer: int = errno.EPERM) -> None:
    def link(*_: object) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("answer", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_hard_links_has_another_create_only_primitive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    without_links(monkeypatch, answer)
    store = Store(str(tmp_path / "out"))
    store.check_conditional_put()
    barrier = Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        return store.put_if_absent("data/x", bytes([number]) * 100_000)

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert store.read("data/x") == bytes([created.index(True)]) * 100_000
    assert list((tmp_path / "out/_meta/tmp").iterdir()) == []


def test_a_disk_without_any_create_only_primitive_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    monkeypatch.setattr(local_files, "_rename_to_free_name", lambda *_: errno.EINVAL)
    with pytest.raises(StorageError, match="hard links") as caught:
        Store(str(tmp_path / "out")).check_conditional_put()
    assert disk_of(tmp_path) in str(caught.value)
    assert "credentials" not in str(caught.value).lower()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_folder_that_forbids_new_names_is_not_called_a_disk_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    monkeypatch.setattr(local_files, "_rename_to_free_name", lambda *_: errno.EACCES)
    with pytest.raises(PermissionError):
        create_whole(tmp_path / "x", tmp_path / "staging", b"x")


def test_a_disk_is_named_by_its_mount(tmp_path: Path) -> None:
    assert disk_of(Path("/proc/self/status")) == "the proc file system at /proc"
    assert disk_of(tmp_path / "not/there/yet").endswith(
        " at " + os.fspath(next(p for p in (tmp_path, *tmp_path.parents) if p.is_mount()))
    )
