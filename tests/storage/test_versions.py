"""Versions: what each store says of an object, and which changes are seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.storage.versions import is_size_only, is_version, version_of, without_change_time

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "s3": ({"ETag": '"a"', "LastModified": "1"}, {"ETag": '"b"', "LastModified": "1"}),
    "gs": ({"etag": "CJ=", "created": 1, "updated": 1}, {"etag": "CK=", "created": 1}),
    "hf": ({"blob_id": "0f"}, {"blob_id": "1f"}),
    "lakefs": ({"checksum": "0f", "mtime": 1}, {"checksum": "1f", "mtime": 1}),
    "http with a digest": ({"Content-MD5": "a"}, {"Content-MD5": "b"}),
    "http": ({"Last-Modified": "Wed, 25 Nov"}, {"Last-Modified": "Thu, 26 Nov"}),
    "sftp": ({"mtime": 1}, {"mtime": 2}),
    "ftp": ({"modify": "20261125"}, {"modify": "20261126"}),
    "webhdfs": ({"modificationTime": 1}, {"modificationTime": 2}),
    "webdav": ({"created": 1, "modified": 1}, {"created": 1, "modified": 2}),
    "memory": ({"created": 1}, {"created": 2}),
}


@pytest.mark.parametrize("store", CHANGES)
def test_a_change_that_keeps_the_size_gives_another_version(store: str) -> None:
    """What the file systems of fsspec answer, shortened."""
    before, after = ({"name": "a", "size": 30, **info} for info in CHANGES[store])
    assert version_of(before) != version_of(after)
    assert version_of(before) == version_of(dict(before))
    assert is_version(version_of(before), before) and not is_version(version_of(before), after)
    assert not is_size_only(version_of(before))
    assert without_change_time(f"{store}://a", version_of(before)) == version_of(before)


def test_a_server_that_tells_the_size_alone_is_known_for_it(tmp_path: Path) -> None:
    assert is_size_only(version_of({"name": "a", "size": 30, "type": "file"}))
    path = tmp_path / "a.jsonl"
    path.write_text("before 1970")
    os.utime(path, (-5, -5))
    version = version_of(fsspec.filesystem("file").info(str(path)))
    assert not is_size_only(version)
    assert without_change_time(f"file://{path}", version) == "-5.0-11"


@pytest.mark.parametrize("how", ["replaced", "rewritten"])
def test_a_local_file_with_time_and_size_kept_has_another_version(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("before")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    disk = fsspec.filesystem("file")
    before = version_of(disk.info(str(path)))
    source = tmp_path / "b.jsonl" if how == "replaced" else path
    source.write_text("after!")
    os.utime(source, (1_700_000_000, 1_700_000_000))
    source.replace(path)
    info = disk.info(str(path))
    assert not is_version(before, info)
    # releases before could not tell them apart, and what they stored is taken as it was meant
    earlier = "1700000000.0-6"
    assert is_version(earlier, info)
    assert without_change_time(f"file://{path}", version_of(info)) == earlier
    assert without_change_time(f"file://{path}", earlier) == earlier
