"""Shards are found where the spec says, and read as the very objects that were planned, on disk and
on a real S3."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, ShardChanged, SpecError
from pipeline.read.input import shards as shards_module
from pipeline.read.input.shards import list_shards, open_shard
from pipeline.read.parts import cut
from pipeline.storage.lineage import Span, Split
from tests.support.stand_in import job_of, make_spec


def names(shards: list[Any], root: str) -> list[str]:
    return [shard.uri.split(root)[-1].lstrip("/") for shard in shards]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in (
        "b.jsonl",
        "a.jsonl.gz",
        "sub/c.txt",
        "sub/deep/d.parquet",
        "_temporary/x.jsonl",
        ".hidden.jsonl",
        "_SUCCESS",
        "sub/_meta.jsonl",
        "sub/.git/e.jsonl",
        "readme.md",
        "archive.zip",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_gives_every_visible_file_of_a_known_format_sorted(folder: Path) -> None:
    shards = list_shards([str(folder)], {})
    assert names(shards, str(folder)) == [
        "a.jsonl.gz",
        "b.jsonl",
        "sub/c.txt",
        "sub/deep/d.parquet",
    ]
    assert [shard.size_bytes for shard in shards] == [10, 7, 9, 18]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["b.jsonl"]),
        ("**/*.txt", ["sub/c.txt"]),
        ("sub/[cd].txt", ["sub/c.txt"]),
        ("?.jsonl*", ["a.jsonl.gz", "b.jsonl"]),
        ("_temporary/*", ["_temporary/x.jsonl"]),  # asked for by name
    ],
)
def test_a_glob_gives_what_it_matches(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(list_shards([f"{folder}/{pattern}"], {}), str(folder)) == expected


def test_a_file_named_twice_is_one_shard_and_any_name_can_be_named(folder: Path) -> None:
    uris = [f"{folder}/b.jsonl", f"file://{folder}/b.jsonl", str(folder), f"{folder}/readme.md"]
    uris_below = names(list_shards(uris, {}), str(folder))
    assert uris_below == ["a.jsonl.gz", "b.jsonl", "readme.md", "sub/c.txt", "sub/deep/d.parquet"]


def test_a_name_with_glob_characters_is_found(tmp_path: Path) -> None:
    (tmp_path / "part [1] 100%?.jsonl").write_text("x")
    shards = list_shards([f"{tmp_path}/part [1] 100%?.jsonl"], {})
    with open_shard(shards[0], {}) as file:
        assert file.read() == b"x"


def test_a_linked_file_is_read_as_the_file_behind_it_and_a_dead_link_or_pipe_is_no_shard(
    tmp_path: Path,
) -> None:
    (tmp_path / "in/.store").mkdir(parents=True)
    (tmp_path / "in/.store/blob").write_text("content")
    (tmp_path / "in/folder.jsonl").mkdir()
    (tmp_path / "in/a.jsonl").symlink_to(tmp_path / "in/.store/blob")
    (tmp_path / "in/dead.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/folder-link.jsonl").symlink_to(tmp_path / "in/.store")
    os.mkfifo(tmp_path / "in/pipe.jsonl")  # opening it would wait for ever
    for uri in (f"{tmp_path}/in", f"{tmp_path}/in/*.jsonl"):
        shards = list_shards([uri], {})
        assert names(shards, str(tmp_path / "in")) == ["a.jsonl"]
        with open_shard(shards[0], {}) as file:
            assert file.read() == b"content"


def test_a_link_that_leads_out_of_the_named_folder_is_an_error_and_its_target_is_not_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/b.jsonl").write_text("not yours")
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a.jsonl").write_text("content")
    (tmp_path / "in/sub/linked.jsonl").symlink_to("../../private/b.jsonl")
    for uri in (
        f"{tmp_path}/in",
        f"{tmp_path}/in/",
        f"{tmp_path}/in/**/*.jsonl",
        f"{tmp_path}/in/sub/l*.jsonl",
    ):
        with pytest.raises(
            SpecError, match=r"sub/linked\.jsonl is a link to .*private/b\.jsonl, outside of"
        ):
            list_shards([uri], {})
    (shard,) = list_shards([f"{tmp_path}/in/sub/linked.jsonl"], {})  # somebody named it
    assert shard.size_bytes == len("not yours")


def test_linked_folders_are_not_entered_and_a_linked_root_is_a_root(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/b.jsonl").write_text("not yours")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("content")
    (tmp_path / "in/linked").symlink_to("../private")
    (tmp_path / "in/loop").symlink_to(".")
    for uri in (
        f"{tmp_path}/in",
        f"{tmp_path}/in/**",
        f"{tmp_path}/in/*/*.jsonl",
        f"{tmp_path}/in/*.jsonl",
    ):
        with contextlib.suppress(
            SpecError
        ):  # "no input found there", where a pattern wants a folder
            assert names(list_shards([uri], {}), f"{tmp_path}/in") == ["a.jsonl"]
    (tmp_path / "root").symlink_to("in")
    (tmp_path / "in/inside.jsonl").symlink_to("a.jsonl")
    # a link to a file that is listed itself is a second name of that file
    assert names(list_shards([f"{tmp_path}/root"], {}), "root") == ["a.jsonl"]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/", "*.nothing", "empty", "in/*.md"])
def test_a_uri_that_names_nothing_is_a_mistake_in_the_spec(folder: Path, name: str) -> None:
    (folder.parent / "empty").mkdir()
    with pytest.raises(SpecError, match=r"Check input\.uri"):
        list_shards([f"{folder.parent}/{name}"], {})


def test_an_unknown_protocol_is_a_mistake_in_the_spec() -> None:
    with pytest.raises(SpecError, match="protocol 'nosuch'"):
        list_shards(["nosuch://bucket/a.jsonl"], {})


def one(path: Path) -> Any:
    return list_shards([str(path)], {})[0]


def test_an_empty_shard_is_read_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with open_shard(one(tmp_path / "a.jsonl"), {}) as file:
        assert file.read() == b""


@pytest.mark.parametrize("change", ["other content", "same length", "touched", "gone", "folder"])
def test_a_shard_that_is_another_object_than_the_planned_one_is_not_opened(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"planned")
    shard = one(path)
    if change in ("gone", "folder"):
        path.unlink()
    if change == "folder":
        path.mkdir()
    elif change == "touched":
        os.utime(path, (1, 1))
    elif change != "gone":
        path.write_bytes(b"changed" if change == "same length" else b"longer content")
        os.utime(path, (2, 2))
    with pytest.raises(InputError if change == "folder" else ShardChanged):
        open_shard(shard, {})


@pytest.mark.parametrize("change", ["cut short", "emptied", "grown", "replaced", "gone"])
def test_a_local_shard_that_changes_while_it_is_read_is_noticed_at_the_end(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (3 << 20))
    with open_shard(one(path), {}) as file:
        assert len(file.read(1 << 20)) == 1 << 20
        if change == "replaced":
            other = tmp_path / "new"
            other.write_bytes(b"y" * (3 << 20))
            other.replace(path)
        elif change == "gone":
            path.unlink()
        else:
            os.truncate(path, {"cut short": 2 << 20, "emptied": 0, "grown": 4 << 20}[change])
        with pytest.raises(ShardChanged):
            file.read()


def split_of(root: Path, spec: Any, span: dict[str, Any]) -> Split:
    return Split(spans=(Span(shard=one(root), **span),), part_bytes=1024)


def test_a_change_outside_the_span_that_is_read_still_ends_the_split(tmp_path: Path) -> None:
    """A byte range ends before the end of the file, so nothing but the check after the last record
    can notice."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"".join(json.dumps({"id": str(i), "text": "x" * 50}).encode() + b"\n" for i in range(2000))
    )
    spec = make_spec(path, tmp_path / "out")
    parts = cut(split_of(path, spec, {"start": 0, "stop": 20_000}), job_of(spec))
    assert next(parts).index == 0
    os.utime(path, (1, 1))
    with pytest.raises(ShardChanged):
        list(parts)


def test_a_file_that_may_not_be_read_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x")
    shard = one(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(InputError, match="refused"):
        open_shard(shard, {})


def test_s3_prefix_key_and_glob_are_listed_with_etag_and_size(s3: Any) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "_temporary/c.jsonl", "d.md"):
        s3.filesystem.pipe_file(f"{s3.key}/{name}", name.encode())
    for uri, expected in (
        (s3.uri, ["a.jsonl", "sub/b.jsonl"]),
        (f"{s3.uri}/", ["a.jsonl", "sub/b.jsonl"]),
        (f"{s3.uri}/sub/*.jsonl", ["sub/b.jsonl"]),
        (f"{s3.uri}/a.jsonl", ["a.jsonl"]),
    ):
        shards = list_shards([uri], s3.storage_options)
        assert names(shards, s3.key) == expected
    head = s3.filesystem.info(f"{s3.key}/a.jsonl")
    assert (shards[0].uri, shards[0].etag) == (f"{s3.uri}/a.jsonl", head["ETag"].strip('"'))
    assert shards[0].size_bytes == len("a.jsonl")


def test_s3_keys_with_wildcards_are_exact_names_and_folder_markers_are_no_shards(s3: Any) -> None:
    """The S3 console makes a folder by an object without bytes whose name ends with a slash."""
    keys = ["wiki/a[1].jsonl", "wiki/a1.jsonl", "wiki/AA/wiki_00", "wiki/what?.jsonl"]
    for key in keys:
        s3.filesystem.pipe_file(f"{s3.key}/{key}", key.encode())
    bucket, _, root = s3.key.partition("/")
    for marker in ("wiki/", "wiki/AA/"):
        s3.filesystem.call_s3("put_object", Bucket=bucket, Key=f"{root}/{marker}", Body=b"")
    for key in keys:
        (shard,) = list_shards([f"{s3.uri}/{key}"], s3.storage_options, "jsonl")
        with open_shard(shard, s3.storage_options) as file:
            assert file.read() == key.encode()
    for uri in (f"{s3.uri}/wiki", f"{s3.uri}/wiki/", f"{s3.uri}/wiki/**"):
        assert names(list_shards([uri], s3.storage_options, "jsonl"), s3.key) == sorted(keys)


@pytest.mark.parametrize("change", ["overwritten", "gone"])
def test_an_s3_shard_that_changes_between_plan_and_read_is_not_read(s3: Any, change: str) -> None:
    key = f"{s3.key}/a.jsonl"
    s3.filesystem.pipe_file(key, b"planned")
    shard = list_shards([s3.uri], s3.storage_options)[0]
    if change == "gone":
        s3.filesystem.rm_file(key)
    else:
        s3.filesystem.pipe_file(key, b"changed")  # the same length
    with pytest.raises(ShardChanged):
        open_shard(shard, s3.storage_options)


@pytest.mark.parametrize("change", ["overwritten", "gone"])
def test_an_s3_shard_that_changes_while_it_is_read_ends_the_read_and_is_never_mixed(
    s3: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "RANGE_BYTES", 1 << 16)
    key, size = f"{s3.key}/a.jsonl", 5 << 20
    s3.filesystem.pipe_file(key, b"a" * size)
    shard = list_shards([s3.uri], s3.storage_options)[0]
    seen = b""

    def read_all() -> None:
        nonlocal seen
        with open_shard(shard, s3.storage_options) as file:
            while block := file.read(1 << 16):
                if not seen:
                    if change == "gone":
                        s3.filesystem.rm_file(key)
                    else:
                        s3.filesystem.pipe_file(key, b"b" * size)
                seen += block

    with pytest.raises(ShardChanged):
        read_all()
    assert 0 < len(seen) < size
    assert set(seen) == set(b"a")


def test_a_missing_bucket_is_a_mistake_in_the_spec(s3: Any) -> None:
    for uri in (
        "s3://no-such-bucket-here/a.jsonl",
        "s3://no-such-bucket-here/*.jsonl",
        "s3://no-such-bucket-here",
    ):
        with pytest.raises(SpecError, match=r"Check input\.uri"):
            list_shards([uri], s3.storage_options)


def test_wrong_or_absent_credentials_are_a_clear_error_without_secrets(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.filesystem.pipe_file(f"{s3.key}/a.jsonl", b"x")
    shard = list_shards([s3.uri], s3.storage_options)[0]
    fresh = {**s3.storage_options, "skip_instance_cache": True}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-not-the-key")
    for uri in (s3.uri, f"{s3.uri}/*.jsonl", f"{s3.uri}/a.jsonl"):
        with pytest.raises(InputError, match="Check the credentials") as caught:
            list_shards([uri], fresh)
        assert "canary" not in str(caught.value)
    with pytest.raises(InputError, match="Check the credentials"):
        open_shard(shard, fresh)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InputError, match="Check the credentials"):
        list_shards([s3.uri], fresh)
