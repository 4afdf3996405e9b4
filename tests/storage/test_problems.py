"""Every way in which a store cannot be used is an error of ours: in words, with the spec's key.

Oracle: the class of the error, the exit code, and words that name what was wrong. The errors are
raised by the libraries themselves, never by stand-ins.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.planning.places import output_of
from pipeline.errors import CorpusEmbedError, SpecError, StorageError
from pipeline.storage import retry
from pipeline.storage.preflight import check_place
from pipeline.storage.problems import reason
from pipeline.storage.store import Store
from tests.conftest import S3Place
from tests.support.stand_in import make_spec

pytest.importorskip("s3fs")  # its import binds a socket, which would be taken for the test's
S3 = "s3://lake/x"
ENDPOINT = {"endpoint_url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("uri", "options", "words"),
    [
        (S3, {"endpont_url": "http://x"}, "endpont_url: unknown option for s3; did you mean 'endp"),
        (S3, {"annon": True}, "annon: unknown option for s3; did you mean 'anon'?"),
        (S3, {"headers": {}}, "headers: unknown option for s3; remove it."),
        (S3, {"client_kwargs": {"region_nam": "x"}}, "client_kwargs.region_nam: unknown option"),
        (S3, {"config_kwargs": {"conect_timeout": 1}}, "did you mean 'connect_timeout'?"),
        (S3, {"client_kwargs": 5}, "client_kwargs: a mapping of options is needed, not 5"),
        (S3, {"endpoint_url": "127.0.0.1:9"}, "'127.0.0.1:9' has no protocol. Write http://127.0"),
        (S3, {"endpoint_url": "https://"}, "'https://' has no protocol"),
        (S3, {"endpoint_url": 9000}, "'9000' has no protocol"),
        (S3, {"client_kwargs": {"endpoint_url": "x:9"}}, "client_kwargs.endpoint_url: 'x:9' has"),
        ("https://host/x", ENDPOINT, "endpoint_url: unknown option for https"),
        ("http://host/x", {"anon": True}, "anon: unknown option for http"),
    ],
)
def test_an_option_that_the_store_does_not_know_is_named_before_any_request(
    uri: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        Store(uri, options)
    assert "output.storage_options." in str(caught.value)
    assert words in str(caught.value)


def test_the_endpoint_of_the_environment_is_checked_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(SpecError, match=r"AWS_ENDPOINT_URL: '127\.0\.0\.1:9' has no protocol"):
        Store(S3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert Store(S3).endpoint == "http://127.0.0.1:9 (AWS_ENDPOINT_URL)"


def test_options_that_stores_do_know_are_taken() -> None:
    Store(
        S3,
        {
            **ENDPOINT,
            "anon": True,
            "profile": "reader",
            "use_ssl": False,
            "client_kwargs": {"region_name": "eu-west-1", "verify": False},
            "config_kwargs": {"s3": {"addressing_style": "path"}},
            "default_cache_type": "none",
            "skip_instance_cache": True,
        },
    )
    Store("https://host/x", {"headers": {"X-A": "b"}, "client_kwargs": {"trust_env": True}})
    Store("/tmp/x", ENDPOINT)  # a list of inputs can be of several stores


def test_a_missing_bucket_is_named_with_its_server(s3: S3Place) -> None:
    store = Store("s3://no-such-bucket/x", s3.storage_options)
    words = rf"the bucket 'no-such-bucket' does not exist on {s3.endpoint_url} \(output\."
    for use in (store.list, store.read, store.read_or_none, store.info):
        with pytest.raises(StorageError, match=words):
            use("_meta/snapshots")
    with pytest.raises(SpecError, match=words):
        check_place(store)
    check_place(Store(s3.uri, s3.storage_options))


@pytest.mark.parametrize(
    ("uri", "options", "words"),
    [
        ("s3://Bad_Bucket!/x", {}, 'Invalid bucket name "Bad_Bucket!"'),
        (S3, {"profile": "nosuch"}, r"profile \(nosuch\) could not be found"),
        (S3, {"config_kwargs": {"retries": {"total_max_attempts": "x"}}}, r"Check output\.stor"),
    ],
)
def test_what_only_a_request_brings_out_is_an_error_of_ours(
    s3: S3Place, uri: str, options: dict[str, Any], words: str
) -> None:
    store = Store(uri, {**s3.storage_options, **options, "skip_instance_cache": True})
    for use in (store.list, store.read, lambda path: store.put_if_absent(path, b"x")):
        with pytest.raises(StorageError, match=words) as caught:
            use("_meta/x")
        assert caught.value.__cause__ is not None  # for --debug


@pytest.mark.parametrize("is_offline", [True, False])
def test_the_hub_without_network_is_an_error_of_ours(
    is_offline: bool, refusing_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline is never transient, and a refused connection is."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.5)
    counted: list[int] = []
    monkeypatch.setattr(retry, "_on_retry", lambda: counted.append(1))
    store = Store("hf://datasets/a/b", {"endpoint": refusing_url, "skip_instance_cache": True})
    with pytest.raises(StorageError, match=r"offline|HF_HUB_OFFLINE|cannot reach"):
        store.list("x")
    assert bool(counted) is not is_offline


def test_the_text_of_an_error_is_one_line_without_the_query_of_a_url() -> None:
    error = ValueError("bad\nanswer from https://h/k?X-Amz-Signature=canary&b=c for 'x'")
    assert reason(error) == "ValueError: bad answer from https://h/k?… for 'x'"


def file_in_place(tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    return str(tmp_path / "file")


LOCAL_PLACES = {
    "a file": (lambda tmp: file_in_place(tmp), "is a file, and an output is a folder"),
    "below a file": (lambda tmp: file_in_place(tmp) + "/a/b", "is a file"),
    "proc": (lambda _: "/proc/x", "nothing can be written in /proc"),
    "a broken link": (lambda tmp: str(dangling(tmp)), "is a link that leads nowhere"),
    "a long step": (lambda tmp: f"{tmp}/{'d' * 256}", "is 256 bytes long"),
    "a long step of Japanese": (lambda tmp: f"{tmp}/{'語' * 86}", "is 258 bytes long"),
    "a long path": (lambda tmp: f"{tmp}/" + "/".join(["d" * 200] * 20), "Choose a shorter one"),
}


def dangling(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    return tmp_path / "link"


@pytest.mark.parametrize("kind", LOCAL_PLACES)
def test_a_local_place_where_no_output_can_be_is_a_mistake_of_the_spec(
    tmp_path: Path, kind: str
) -> None:
    uri, words = LOCAL_PLACES[kind]
    with pytest.raises(SpecError, match=words) as caught:
        output_of(make_spec(tmp_path / "in", uri(tmp_path)))
    assert "output.uri" in str(caught.value)


def test_a_disk_that_is_read_only_is_named(tmp_path: Path, small_disk: Any) -> None:
    disk = small_disk(tmp_path / "disk", "64k")
    if os.system(f"mount -o remount,ro {disk}"):
        pytest.skip("remounting is refused here")
    with pytest.raises(SpecError, match="read-only file system"):
        output_of(make_spec(tmp_path / "in", disk / "out"))
    with pytest.raises(StorageError, match="read-only"):
        Store(str(disk / "out")).put_if_absent("data/x", b"x")


def test_asking_a_local_place_leaves_nothing_there(tmp_path: Path) -> None:
    output_of(make_spec(tmp_path / "in", tmp_path / "a/b/out"))
    output_of(make_spec(tmp_path / "in", tmp_path))
    assert not list(tmp_path.iterdir())
    assert tempfile.gettempdir()  # the default folder is not touched by a choice of another


@pytest.mark.parametrize(
    ("section", "uri", "words"),
    [
        ("output", "memory://x", "output.uri memory://x: memory:// is the memory of one process"),
        ("output", "MEMORY://x", "memory of one process"),
        ("output", "https://host/x", "can be read but not written"),
        ("output", "s3://", "no bucket is named"),
        ("output", "s3:///x", "no bucket is named"),
        ("output", f"s3://lake/{'k' * 800}", "Choose a shorter one"),
        ("input", "memory://x", "input.uri memory://x: memory:// is the memory of one process"),
        ("model", "memory://x", "model.path memory://x: memory:// is the memory of one process"),
    ],
)
def test_a_place_that_no_worker_can_reach_or_write_is_a_mistake_of_the_spec(
    tmp_path: Path, section: str, uri: str, words: str
) -> None:
    key = "path" if section == "model" else "uri"
    spec = make_spec(tmp_path / "in", tmp_path / "out", **{section: {key: uri}})
    with pytest.raises(SpecError, match=words):
        output_of(spec)


def test_every_error_of_a_local_store_is_of_ours(tmp_path: Path) -> None:
    """Oracle: nothing but our classes, and FileNotFoundError where the caller asks for it."""
    file_in_place(tmp_path)
    (tmp_path / "out/data").mkdir(parents=True)
    for store in (Store(str(tmp_path / "file")), Store(str(tmp_path / "out"))):
        for path in ("data", "data/" + "n" * 300, "data/x/" + "/".join(["d" * 250] * 20)):
            for use in (
                store.read,
                store.open,
                store.info,
                store.list,
                lambda path, store=store: store.put_if_absent(path, b"x"),
            ):
                try:
                    use(path)
                except (CorpusEmbedError, FileNotFoundError):
                    continue


def test_a_folder_that_refuses_is_not_about_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)  # root is refused nothing
    with pytest.raises(StorageError, match="Check the owner and the mode of its folder") as caught:
        Store(str(tmp_path)).put_if_absent("data/x", b"x")
    assert "redentials" not in str(caught.value)
