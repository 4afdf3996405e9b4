"""The output root: create-only writes, paths that stay inside, retries that end; locally and on a
real S3 server."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpecError, StorageError
from pipeline.storage import layout, retry
from pipeline.storage.retry import is_transient
from pipeline.storage.store import Store


def race(uri: str, options: dict[str, Any], number: int, results: Any) -> None:
    results.put(
        (number, Store(uri, options).put_if_absent("_meta/race", f"writer {number}".encode()))
    )


def eight_racers(uri: str, options: dict[str, Any]) -> list[int]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [
        context.Process(target=race, args=(uri, options, number, results)) for number in range(4)
    ]
    for racer in racers:
        racer.start()
    outcome = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    return [number for number, won in outcome if won]


def test_of_many_racing_creates_exactly_one_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    winners = eight_racers(str(tmp_path), {})
    assert len(winners) == 1
    assert Store(str(tmp_path)).read("_meta/race") == f"writer {winners[0]}".encode()


def test_of_many_racing_creates_on_s3_exactly_one_wins_and_its_bytes_stay(s3: Any) -> None:
    winners = eight_racers(s3.uri, s3.storage_options)
    assert len(winners) == 1
    assert Store(s3.uri, s3.storage_options).read("_meta/race") == f"writer {winners[0]}".encode()


def test_a_refused_create_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.put_if_absent("data/a=1/x", b"first")
    assert not store.put_if_absent("data/a=1/x", b"second")
    assert store.read("data/a=1/x") == b"first"
    assert list((tmp_path / "_meta" / "tmp").iterdir()) == []
    assert store.list("data") == {"data/a=1/x": 5}


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", ""])
def test_a_path_cannot_leave_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(StorageError, match="inside the output"):
        Store(str(tmp_path)).put_if_absent(path, b"x")


@pytest.mark.parametrize("link", ["data", "data/a=1", "data/a=1/x", "_meta/tmp"])
def test_a_link_cannot_lead_out_of_the_root(tmp_path: Path, link: str) -> None:
    (tmp_path / "elsewhere/a=1").mkdir(parents=True)
    (tmp_path / "elsewhere/a=1/x").write_bytes(b"mine")
    (tmp_path / "elsewhere/x").write_bytes(b"mine")
    (tmp_path / "out" / link).parent.mkdir(parents=True)
    target = {"data": "elsewhere", "data/a=1": "elsewhere/a=1", "data/a=1/x": "elsewhere/x"}.get(
        link, "elsewhere"
    )
    (tmp_path / "out" / link).symlink_to(tmp_path / target)
    store = Store(str(tmp_path / "out"))
    if link == "_meta/tmp":
        with pytest.raises(StorageError, match="a link leads out of the output"):
            store.put_if_absent("data/y", b"x")
        return
    for use in (
        store.read,
        store.open,
        store.delete,
        store.list,
        lambda path: store.put_if_absent(path, b"x"),
    ):
        with pytest.raises(StorageError, match="a link leads out of the output"):
            use("data/a=1/x")
    assert {path.read_bytes() for path in (tmp_path / "elsewhere").rglob("x")} == {b"mine"}
    assert not (tmp_path / "elsewhere/a=1/y").exists()


def test_a_linked_root_and_links_that_stay_inside_are_used(tmp_path: Path) -> None:
    (tmp_path / "disk/more").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk")
    (tmp_path / "disk/data").symlink_to("more")
    store = Store(str(tmp_path / "out"))
    assert store.put_if_absent("data/x", b"1")
    assert store.read("data/x") == b"1"


def test_the_preflight_accepts_a_folder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    Store(str(tmp_path)).check_conditional_put()
    assert Store(str(tmp_path)).list("_meta") == {}


def test_the_preflight_accepts_a_real_s3_server(s3: Any) -> None:
    store = Store(s3.uri, s3.storage_options)
    store.check_conditional_put()
    assert store.list("_meta") == {}


def test_the_preflight_refuses_a_store_that_lists_other_names_than_were_written(s3: Any) -> None:
    """The server of the tests folds doubled slashes. A root never has any; this one is given some
    behind the back of `normalized_output`."""
    store = Store(s3.uri, s3.storage_options)
    store.root = store.root.replace("/", "//", 1)
    with pytest.raises(StorageError, match="lists objects under other names"):
        store.check_conditional_put()


def test_the_preflight_tries_a_name_like_those_of_partitions(s3: Any, tmp_path: Path) -> None:
    for store in (Store(s3.uri, s3.storage_options), Store(str(tmp_path))):
        store.check_conditional_put(is_partitioned=True)
        assert store.list("_meta") == {}
    step = layout.partition_step("語", "a/b %2F=#?")
    location = layout.locate(layout.probe("0f", step))
    assert location is not None and location.kind == "probe"


def test_the_preflight_names_wrong_credentials_without_showing_them(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret")
    store = Store(s3.uri, {**s3.storage_options, "skip_instance_cache": True})
    with pytest.raises(StorageError, match="cannot be written") as caught:
        store.check_conditional_put()
    assert "canary" not in str(caught.value)


def test_the_preflight_refuses_a_store_that_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a store that answers yes to both
    monkeypatch.setattr(Store, "_link", lambda self, path, data: True)
    with pytest.raises(StorageError, match="conditional writes"):
        Store(str(tmp_path)).check_conditional_put()


def test_a_transient_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ConnectionResetError("reset"), TimeoutError("slow"), 42]

    def request() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    assert retry.retried(request, "read x") == 42


def test_retries_end_at_the_deadline_and_say_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.5)

    def request() -> int:
        raise ConnectionResetError("reset by peer")

    with pytest.raises(StorageError, match=r"read s3://b/k: still failing after \d+ attempts"):
        retry.retried(request, "read s3://b/k")


def test_a_full_disk_is_named_and_nothing_half_written_stays(
    tmp_path: Path, small_disk: Any
) -> None:
    store = Store(str(small_disk(tmp_path / "disk", "256k")))
    with pytest.raises(
        StorageError, match=r"write .*/disk/data/x: no room\. Make room.*No space left"
    ):
        store.put_if_absent("data/x", bytes(1_000_000))
    assert [path for path in (tmp_path / "disk").rglob("*") if path.is_file()] == []
    assert store.put_if_absent("data/x", b"small")


def test_every_retry_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([ConnectionResetError("reset")] * 5)
    counted: list[int] = []
    monkeypatch.setattr(retry.tenacity.nap.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(retry, "_on_retry", lambda: counted.append(1))

    def request() -> str:
        for error in answers:
            raise error
        return "answer"

    assert retry.retried(request, "read s3://b/k") == "answer"
    assert len(counted) == 5


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), OSError(22, "x")]
)
def test_a_final_answer_is_not_tried_again(error: Exception) -> None:
    assert not is_transient(error)


def test_what_s3fs_makes_of_a_503_is_transient() -> None:
    error = OSError(16, "SlowDown")
    cause = Exception()
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": 503}, "Error": {"Code": "SlowDown"}}  # type: ignore[attr-defined]
    error.__cause__ = cause
    assert is_transient(error)


def test_an_unknown_protocol_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="nosuch"):
        Store("nosuch://x/y")


def test_a_store_travels_to_a_worker(tmp_path: Path) -> None:
    import pickle

    store = pickle.loads(pickle.dumps(Store(str(tmp_path), {})))
    assert store.put_if_absent("a", b"1")
    assert os.listdir(tmp_path)
