"""A wait names what it waits for, and ends when the patience of the one who waits does."""

from __future__ import annotations

import functools
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from pipeline.errors import SpecError, StorageError
from pipeline.storage import notes, retry, waits
from pipeline.storage.retry import patience, patience_s, retried
from pipeline.storage.store import Store

PLACE = "http://127.0.0.1:9 (input.storage_options.endpoint_url)"


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The notes of this test, in a time that is twenty times faster."""
    collected: list[str] = []
    monkeypatch.setattr(waits, "_monitor", waits._Monitor(first_note_s=0.15))
    monkeypatch.setattr(waits, "NEXT_NOTE_S", 0.5)
    notes.listen_to_notes(collected.append)
    yield collected
    notes.listen_to_notes(None)


def until(is_so: Callable[[], object]) -> bool:
    """Waits for something that another thread does; False after a minute without it."""
    end_s = time.monotonic() + 60
    while not is_so() and time.monotonic() < end_s:
        time.sleep(0.01)
    return bool(is_so())


def wake() -> None:
    """The monitor looks at the clock, and at what is under way, again."""
    with waits._monitor.changed:
        waits._monitor.changed.notify()


def refuse() -> None:
    raise ConnectionRefusedError(111, "Connection refused by https://host/k?X-Amz-Signature=canary")


@pytest.mark.thorough
def test_a_request_that_fails_is_named_early_and_again(sentences: list[str]) -> None:
    """It is named only once it has failed, and fails for good when it was named twice."""
    n_calls = itertools.count(1)
    waits.name_waits_after(1e6)

    def refused_late() -> None:
        if next(n_calls) == 2:
            waits.name_waits_after(0.0)
            wake()
            until(lambda: len(sentences) >= 2)
        refuse()

    start_s = time.monotonic()
    with patience(3), pytest.raises(StorageError) as caught:
        retried(refused_late, "list s3://lake/crawl", PLACE)
    assert 2 <= len(sentences) <= 2 + (time.monotonic() - start_s) / waits.NEXT_NOTE_S
    for sentence in sentences:
        assert re.fullmatch(
            r"list s3://lake/crawl: cannot reach http://127\.0\.0\.1:9 "
            r"\(input\.storage_options\.endpoint_url\): connection refused; "
            r"trying until \d\d:\d\d, Ctrl-C stops",
            sentence,
        )
    assert f"cannot reach {PLACE}: connection refused" in str(caught.value)
    assert "canary" not in str(caught.value) + "".join(sentences)


def test_a_request_that_hangs_is_named_although_it_says_nothing(sentences: list[str]) -> None:
    assert retried(lambda: until(lambda: sentences) and 7, "read s3://b/k", PLACE) == 7
    assert re.fullmatch(
        rf"read s3://b/k: not answered by {re.escape(PLACE)} after \d+ s; Ctrl-C stops",
        sentences[0],
    )


def test_requests_that_are_answered_in_time_are_not_named(
    sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    waits.name_waits_after(1.0)

    def request(seconds: float) -> None:
        now_s[0] += seconds
        wake()
        time.sleep(0.001)

    for _ in range(30):
        retried(lambda: request(0.9), "read s3://b/k")
    assert not sentences
    retried(lambda: request(1.0) or until(lambda: sentences), "read s3://b/late")
    assert [sentence.split(": ")[0] for sentence in sentences] == ["read s3://b/late"]


def test_of_many_requests_the_one_that_waits_longest_is_named(sentences: list[str]) -> None:
    asked: list[int] = []

    def request(number: int) -> None:
        asked.append(number)
        until(lambda: sentences)

    requests = [functools.partial(request, number) for number in range(20)]
    threads = [
        threading.Thread(target=retried, args=(requests[number], f"read {number}"))
        for number in range(20)
    ]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda n_asked=number + 1: len(asked) == n_asked)
    for thread in threads:
        thread.join()
    assert re.fullmatch(r"read 0: not answered after \d+ s; Ctrl-C stops", sentences[0])
    assert len(sentences) <= 3


def test_a_display_that_fails_ends_neither_the_request_nor_later_notes(
    sentences: list[str],
) -> None:
    calls: list[str] = []

    def broken(sentence: str) -> None:
        calls.append(sentence)
        raise OSError("stderr is closed")

    notes.listen_to_notes(broken)
    assert retried(lambda: until(lambda: len(calls) >= 2) and 7, "read s3://b/k") == 7


def test_a_forked_process_names_its_own_waits(sentences: list[str]) -> None:
    retried(lambda: None, "the parent's thread runs")
    reader, writer = os.pipe()
    if not (child := os.fork()):
        waits.NEXT_NOTE_S = 0.5
        is_named = threading.Event()

        def note(sentence: str) -> None:
            os.write(writer, sentence.encode())
            is_named.set()

        notes.listen_to_notes(note)
        retried(lambda: is_named.wait(60), "read in the child")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).startswith(b"read in the child")


def test_patience_ends_with_its_block_and_never_exceeds_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 300.0)
    assert (patience_s(), retry.is_impatient()) == (300, False)
    with patience(20):
        assert (patience_s(), retry.is_impatient()) == (20, True)
        with patience(None):  # a run that a person has started
            assert (patience_s(), retry.is_impatient()) == (300, False)
        monkeypatch.setattr(retry, "RETRY_SECONDS", 5.0)
        assert patience_s() == 5
    assert patience_s() == 5


@pytest.mark.parametrize("text", ["5 minutes", "", "-1", "nan", "inf", "1e9"])
def test_a_patience_that_is_no_number_of_seconds_is_a_sentence(text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"CORPUS_EMBED_RETRY_SECONDS={text}: this is")):
        retry._seconds_of_setting(text)
    assert retry._seconds_of_setting("2.5") == 2.5


def test_a_store_that_refuses_is_given_up_when_patience_ends(
    refusing_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    start_s = time.monotonic()
    with patience(2):
        store = Store("s3://lake/x", {"endpoint_url": refusing_url})
        with pytest.raises(StorageError) as caught:
            store.list("_meta")
    assert time.monotonic() - start_s < 20
    place = f"{refusing_url} (output.storage_options.endpoint_url)"
    assert f"cannot reach {place}: connection refused" in str(caught.value)


def test_a_store_that_never_answers_is_given_up_too(
    refusing_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections, and that is all it does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with socket.create_server(("127.0.0.1", 0)) as server, patience(1):
        port = server.getsockname()[1]
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": {"read_timeout": 1}}
        with pytest.raises(StorageError, match="no answer in time"):
            Store("s3://lake/x", options).list("_meta")
