"""What S3 and the network do wrong, against a real server behind the fault proxy: refused, retried,
or found; never silent.

Oracle: the documents written, the proxy's own log of what went through, the clock.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from pipeline.errors import InputError, OutputError, StorageError
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_snapshot, snapshot_numbers
from pipeline.read.input.shards import list_shards
from pipeline.storage import retry
from pipeline.storage.store import Store
from pipeline.tools.verify.verification import verify
from tests.conftest import S3Place
from tests.support import stand_in
from tests.support.fault_proxy import FaultProxy, Rule

pytestmark = [pytest.mark.faults]

TEXTS = {f"d{n:02d}": f"document number {n} " * 6 for n in range(40)}


@pytest.fixture
def spec(s3: S3Place, proxy: FaultProxy) -> JobSpec:
    """About six parts from two shards, everything through the proxy."""
    lines = [json.dumps({"id": key, "text": text}).encode() for key, text in TEXTS.items()]
    s3.filesystem.pipe_file(f"{s3.key}/in/a.jsonl", b"\n".join(lines[:25]))
    s3.filesystem.pipe_file(f"{s3.key}/in/b.jsonl", b"\n".join(lines[25:]))
    options = {"storage_options": {"endpoint_url": proxy.endpoint_url}}
    return stand_in.make_spec(
        f"{s3.uri}/in", f"{s3.uri}/out", input=options, output=options, runtime={"part_bytes": 1024}
    )


def texts_of(s3: S3Place) -> dict[str, str]:
    rows = (
        open_dataset(f"{s3.uri}/out", storage_options=s3.storage_options)
        .to_table(["doc_id", "text"])
        .to_pylist()
    )
    assert len(rows) == len({row["doc_id"] for row in rows})
    return {row["doc_id"]: row["text"] for row in rows}


def check_verified(s3: S3Place) -> None:
    verification = verify(f"{s3.uri}/out", sample=0, storage_options=s3.storage_options)
    assert verification.ok, [check for check in verification.checks if not check.ok]


@pytest.mark.parametrize(
    ("method", "path", "error", "message"),
    [
        (
            "PUT",
            "out/data/",
            StorageError,
            "write s3://.*out/data/.*refused.*run the same command again",
        ),  # after one was written
        ("PUT", "out/_meta/snapshots", StorageError, "write s3://.*snapshots.*refused"),
        ("GET", r"out%2F_meta%2Fmanifests", StorageError, "list s3://.*manifests.*refused"),
        ("GET", r"in/b\.jsonl", InputError, r"b\.jsonl: access was refused"),
    ],
    ids=["a data file", "the snapshot", "a listing", "a shard"],
)
def test_access_denied_in_mid_run_fails_at_once_by_name_and_the_same_command_goes_on(
    s3: S3Place,
    proxy: FaultProxy,
    spec: JobSpec,
    method: str,
    path: str,
    error: type[Exception],
    message: str,
) -> None:
    # a data file is refused after the first one was written
    proxy.add(Rule("status", status=403, method=method, path=path, skip=1 if "data" in path else 0))
    clock = time.monotonic()
    with pytest.raises(error, match=message):
        stand_in.run(spec)
    assert time.monotonic() - clock < 20  # and not the five minutes of a store that is only slow
    assert sum(entry.fault is not None for entry in proxy.log) == 1
    assert load_snapshot(Store(f"{s3.uri}/out", s3.storage_options)) is None
    before = len(Store(f"{s3.uri}/out", s3.storage_options).list("_meta/manifests"))
    proxy.clear()
    engine = stand_in.HashEngine()
    assert stand_in.run(spec, engine)
    assert texts_of(s3) == TEXTS
    assert (len(engine.seen) < len(TEXTS)) == (before > 0)
    check_verified(s3)


def test_throttling_is_waited_out(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request is refused for a while; minutes of it differ only in the number
    (RETRY_SECONDS)."""
    throttle = proxy.add(Rule("status", status=503, count=8))
    stand_in.run(spec)
    assert throttle.fired == 8
    assert texts_of(s3) == TEXTS


@pytest.mark.parametrize("mode", ["status", "trunc_rst"])
def test_every_request_that_was_tried_again_is_counted(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    """The tries of botocore too, which nobody above it sees. Oracle: the faults in the proxy's log.

    Not a kept connection that the server resets before it answers: the HTTP client opens another
    one, and reports it nowhere.
    """
    counted: list[int] = []
    monkeypatch.setattr(retry, "_on_retry", lambda: counted.append(1))
    methods = "GET|PUT|HEAD" if mode == "status" else "GET"
    proxy.add(Rule(mode, probability=0.3, method=methods, count=10))
    stand_in.run(spec)
    assert texts_of(s3) == TEXTS
    faults = sum(entry.fault is not None for entry in proxy.log)
    assert faults > 5
    assert len(counted) == faults


@pytest.mark.slow
def test_a_minute_of_throttling_is_waited_out(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec
) -> None:
    ends = time.monotonic() + 60
    rule = Rule("status", status=503)
    rule.fires = lambda method, target, draw: time.monotonic() < ends  # type: ignore[method-assign]
    proxy.add(rule)
    stand_in.run(spec)
    assert time.monotonic() > ends
    assert texts_of(s3) == TEXTS
    assert sum(entry.fault is not None for entry in proxy.log) < 120  # backed off, not hammered


def test_an_outage_longer_than_the_limit_ends_the_run_in_time_and_says_for_what(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 3.0)
    proxy.add(Rule("status", status=503, method="PUT", path="out/data/"))
    clock = time.monotonic()
    with pytest.raises(
        StorageError, match=r"write s3://.*data.*still failing after \d+ attempts over 3 s"
    ):
        stand_in.run(spec)
    assert time.monotonic() - clock < 20
    proxy.clear()
    stand_in.run(spec)
    assert texts_of(s3) == TEXTS


@pytest.mark.slow
def test_a_store_that_hangs_is_given_up_after_the_limit_and_not_after_25_timeouts(
    s3: S3Place, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 2.0)
    options = {
        "endpoint_url": proxy.endpoint_url,
        "config_kwargs": {"read_timeout": 0.5, "connect_timeout": 0.5},
    }
    hang = proxy.add(Rule("hang", delay_s=3))
    with pytest.raises(StorageError, match="still failing after"):
        Store(s3.uri, options).read("x")
    assert hang.fired <= 12


def test_the_preflight_passes_although_the_answer_to_its_first_write_is_lost(
    s3: S3Place, proxy: FaultProxy
) -> None:
    store = Store(s3.uri, {"endpoint_url": proxy.endpoint_url})
    proxy.add(Rule("lost", method="PUT", count=1))
    store.check_conditional_put()
    proxy.add(Rule("lost", method="PUT", count=1, skip=1))
    store.check_conditional_put()


@pytest.mark.parametrize(
    "path", ["out/data/", "out/_meta/manifests", "out/_meta/files", "out/_meta/snapshots"]
)
def test_a_lost_answer_of_any_write_doubles_nothing(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec, path: str
) -> None:
    lost = proxy.add(Rule("lost", method="PUT", path=path))
    lost.skip = 0
    lost.count = 4
    stand_in.run(spec)
    assert lost.fired
    assert snapshot_numbers(Store(f"{s3.uri}/out", s3.storage_options)) == [1]
    assert texts_of(s3) == TEXTS
    check_verified(s3)


def test_an_error_inside_a_200_is_never_taken_for_success(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec
) -> None:
    """As S3 may answer a copy or the end of a multipart upload: neither is ever used, and a PUT or
    a listing that is answered so is asked again."""
    rules = [
        Rule("ok200err", method="PUT", path="out/data/", count=2),
        Rule("ok200err", method="PUT", path="out/_meta/snapshots", count=1),
        Rule("ok200err", method="GET", path="list-type=2", count=2),
    ]
    proxy.add(*rules)
    stand_in.run(spec)
    assert [rule.fired for rule in rules] == [2, 1, 2]
    assert texts_of(s3) == TEXTS
    check_verified(s3)
    methods = Counter(entry.method for entry in proxy.log)
    # no POST: no multipart upload, no batch
    assert set(methods) <= {"PUT", "GET", "HEAD", "DELETE"}
    assert not any("uploads" in entry.target or "partNumber" in entry.target for entry in proxy.log)


@pytest.mark.parametrize("mode", ["flip", "trunc_fin", "trunc_rst"])
def test_objects_damaged_in_transit_are_read_again(
    s3: S3Place, proxy: FaultProxy, mode: Any
) -> None:
    """Small ones as well as those above the size of one ranged read, for which S3 gives no
    checksum."""
    store = Store(f"{s3.uri}/out", {"endpoint_url": proxy.endpoint_url})
    # 15 MB
    for name, data in (("small", b"manifest" * 100), ("large", bytes(range(256)) * 60_000)):
        store.put_if_absent(name, data)
        proxy.clear()
        damage = proxy.add(Rule(mode, method="GET", count=2))
        assert store.read(name) == data
        assert damage.fired == 2


def test_a_bit_flipped_in_a_manifest_a_list_or_a_data_file_on_its_way_changes_nothing(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec
) -> None:
    stand_in.run(spec, stop_after=3)
    rules = [
        Rule("flip", method="GET", path="_meta/manifests/.*json", count=2),
        Rule("flip", method="GET", path="out/data/", count=2),
        Rule("lost", method="PUT", path="out/data/", count=1),  # so that a data file is read back
    ]
    proxy.add(*rules)
    stand_in.run(spec)
    assert rules[0].fired == 2
    assert rules[1].fired
    check_verified(s3)
    assert texts_of(s3) == TEXTS


def test_a_bit_flipped_in_the_input_on_its_way_is_found_against_the_source(
    s3: S3Place, proxy: FaultProxy, spec: JobSpec
) -> None:
    """Ranged reads have no checksum on S3 (TLS has one; this is plain HTTP): the row says what was
    embedded, and reading its source again says otherwise."""
    flip = proxy.add(Rule("flip", method="GET", path=r"in/b\.jsonl", count=1))
    stand_in.run(spec)
    assert flip.fired == 1
    texts = texts_of(s3)
    changed = [key for key in TEXTS if texts.get(key) != TEXTS[key]]
    assert len(changed) == 1


@pytest.mark.slow
def test_more_than_a_thousand_shards_and_manifests_are_listed_in_pages_and_none_is_missed(
    s3: S3Place, proxy: FaultProxy
) -> None:
    client = s3.server.client()
    bucket, _, prefix = s3.key.partition("/")
    for n in range(1100):
        client.put_object(Bucket=bucket, Key=f"{prefix}/in/{n:05d}.txt", Body=b"x")
    proxy.add(Rule("status", status=503, method="GET", path="continuation-token", count=1))
    options = {"endpoint_url": proxy.endpoint_url}
    shards = list_shards([f"{s3.uri}/in"], options)
    assert [shard.uri.rpartition("/")[2] for shard in shards] == [
        f"{n:05d}.txt" for n in range(1100)
    ]
    assert len(Store(s3.uri, options).list("in")) == 1100
    assert sum("continuation-token" in entry.target for entry in proxy.log) >= 3


def test_wrong_credentials_stop_a_run_before_any_work(
    s3: S3Place, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong")
    options = {**s3.storage_options, "skip_instance_cache": True}
    clock = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot be written.*refused") as caught:
        Store(f"{s3.uri}/out", options).check_conditional_put()
    assert "canary" not in str(caught.value)
    assert time.monotonic() - clock < 20


def test_a_manifest_that_is_no_manifest_is_named(s3: S3Place, spec: JobSpec) -> None:
    stand_in.run(spec, stop_after=2)
    name = next(iter(Store(f"{s3.uri}/out", s3.storage_options).list("_meta/manifests")))
    s3.filesystem.pipe_file(f"{s3.key}/out/{name}", b"<?xml version='1.0'?><Error/>")
    with pytest.raises(OutputError, match=name.rpartition("/")[2]):
        stand_in.run(spec)
